//! The arms of a comparison: which guest, with which facilities.

use std::fmt;
use std::str::FromStr;

/// One side of a comparison, written `full`, `kvm-pv`, `para`, or `para-console` for para without its console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// How the arm is called in results.
    pub name: String,
    /// The profile that `paravane run --guest` takes.
    pub guest: &'static str,
    /// The facilities that are switched off.
    pub without: Vec<String>,
}

/// A word that is not an arm.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no arm `{0}`; arms are full, kvm-pv, para, and para-FACILITY for para without that facility"
)]
pub struct ArmError(String);

impl FromStr for Arm {
    type Err = ArmError;

    fn from_str(name: &str) -> Result<Self, ArmError> {
        let (guest, without) = match name.split_once('-') {
            None if name == "full" => ("full", ""),
            None if name == "para" => ("para", ""),
            Some(("kvm", "pv")) => ("kvm-pv", ""),
            Some(("para", without)) if without.split('-').all(|word| !word.is_empty()) => {
                ("para", without)
            }
            _ => return Err(ArmError(name.to_owned())),
        };
        let without = without
            .split('-')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(Self {
            name: name.to_owned(),
            guest,
            without,
        })
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Arm {
    /// Whether the arm runs the patched kernel.
    #[must_use]
    pub fn is_para(&self) -> bool {
        self.guest == "para"
    }

    /// What `paravane run` takes for the arm, beside the kernel.
    #[must_use]
    pub fn run_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--guest={}", self.guest)];
        if !self.without.is_empty() {
            let list: Vec<String> = self
                .without
                .iter()
                .map(|facility| format!("-{facility}"))
                .collect();
            arguments.push(format!("--pv={}", list.join(",")));
        }
        arguments
    }
}

/// Gives the second and later arms of one name a name of their own: `full,full` is an A/A twin, whose interval shows
/// what a difference must exceed.
pub fn name_twins(arms: &mut [Arm]) {
    for index in 1..arms.len() {
        let (before, rest) = arms.split_at_mut(index);
        let Some(arm) = rest.first_mut() else {
            continue;
        };
        let plain = arm.name.clone();
        let mut number = 2;
        while before.iter().any(|other| other.name == arm.name) {
            arm.name = format!("{plain}#{number}");
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_guests_with_facilities_switched_off() {
        let arm: Arm = "para-console-clock".parse().unwrap();
        assert_eq!(
            arm.run_arguments(),
            ["--guest=para", "--pv=-console,-clock"]
        );
        assert!(arm.is_para());
        assert_eq!(
            "kvm-pv".parse::<Arm>().unwrap().run_arguments(),
            ["--guest=kvm-pv"]
        );
        for wrong in ["", "xen", "para-", "full-console", "kvm"] {
            assert!(wrong.parse::<Arm>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn twins_get_numbers() {
        let mut arms: Vec<Arm> = ["full", "full", "para", "full"]
            .map(|name| name.parse().unwrap())
            .into();
        name_twins(&mut arms);
        let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["full", "full#2", "para", "full#3"]);
    }
}
