//! The file of a fleet.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;
use toml::Value;

use super::FleetError;

/// What follows a guest's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Nothing.
    #[default]
    Never,
    /// It is started again unless it has switched itself off.
    OnFailure,
    /// It is started again.
    Always,
}

/// One guest.
#[derive(Clone, Debug, Deserialize)]
pub struct Guest {
    /// How it is called.
    pub name: String,
    /// What follows its end.
    #[serde(default)]
    pub restart: Restart,
    /// How often it is started again at most.
    #[serde(default = "no_limit")]
    pub restarts: u32,
    /// Options of `paravane run`, without their dashes.
    #[serde(flatten)]
    options: toml::Table,
}

const fn no_limit() -> u32 {
    u32::MAX
}

/// Several guests.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// In the order of the file.
    #[serde(rename = "guest")]
    pub guests: Vec<Guest>,
}

impl Fleet {
    /// Reads the file; relative paths in it are of the folder that the process is in.
    ///
    /// # Errors
    ///
    /// [`FleetError::Unreadable`], [`FleetError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, FleetError> {
        let text = std::fs::read_to_string(path).map_err(|reason| FleetError::Unreadable {
            path: path.to_path_buf(),
            reason,
        })?;
        Self::parse(&text).map_err(|reason| FleetError::Malformed {
            path: path.to_path_buf(),
            reason,
        })
    }

    /// The same of a file's text.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fleet: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if fleet.guests.is_empty() {
            return Err("it has no guest: give each a table [[guest]]".to_owned());
        }
        let mut names = BTreeSet::new();
        for guest in &fleet.guests {
            if guest.name.is_empty() || !names.insert(guest.name.as_str()) {
                return Err(format!(
                    "there are two guests called {:?}, or one without a name",
                    guest.name
                ));
            }
            guest.arguments()?;
        }
        Ok(fleet)
    }
}

impl Guest {
    /// How it is virtualized, in the words of `--guest`.
    #[must_use]
    pub fn profile(&self) -> Option<&str> {
        self.options.get("guest").and_then(Value::as_str)
    }

    /// The arguments of the guest's process.
    ///
    /// # Errors
    ///
    /// Which option has no form on a command line.
    pub fn arguments(&self) -> Result<Vec<OsString>, String> {
        let mut arguments = vec![OsString::from("run")];
        for (name, value) in &self.options {
            let values = match value {
                Value::Array(values) => values.as_slice(),
                one => std::slice::from_ref(one),
            };
            for value in values {
                let option = match value {
                    Value::Boolean(true) => format!("--{name}"),
                    Value::Boolean(false) => continue,
                    Value::String(text) => format!("--{name}={text}"),
                    Value::Integer(number) => format!("--{name}={number}"),
                    _ => {
                        return Err(format!(
                            "guest {}: {name} must be a text, a number, true, or a list of these",
                            self.name
                        ));
                    }
                };
                arguments.push(option.into());
            }
        }
        // Nobody waits for one of many; who wants a limit says so.
        if !self.options.contains_key("watchdog") {
            arguments.push("--watchdog=0".into());
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_a_run_can_be_given() {
        let fleet = Fleet::parse(
            "[[guest]]\nname = \"web\"\nguest = \"para\"\ncpus = 2\nprealloc = true\ndedicated = false\n\
             disk = [\"a.img\", \"b.img,readonly\"]\ncmdline = \"-- shell\"\nrestart = \"on-failure\"\n\
             [[guest]]\nname = \"db\"\nwatchdog = 5\n",
        )
        .unwrap();
        assert_eq!(fleet.guests[0].restart, Restart::OnFailure);
        assert_eq!(
            fleet.guests[0].arguments().unwrap(),
            [
                "run",
                "--cmdline=-- shell",
                "--cpus=2",
                "--disk=a.img",
                "--disk=b.img,readonly",
                "--guest=para",
                "--prealloc",
                "--watchdog=0"
            ]
        );
        assert_eq!(
            fleet.guests[1].arguments().unwrap(),
            ["run", "--watchdog=5"]
        );
    }

    #[test]
    fn what_is_no_fleet_is_refused_with_the_reason() {
        for (text, reason) in [
            ("guest = []", "no guest"),
            ("[[guest]]\nguest = \"para\"", "name"),
            (
                "[[guest]]\nname = \"a\"\n[[guest]]\nname = \"a\"",
                "two guests called \"a\"",
            ),
            ("[[guest]]\nname = \"a\"\ncpus = 1.5", "cpus must be"),
            ("[[guest]]\nname = \"a\"\nrestart = \"often\"", "restart"),
            ("[[gest]]\nname = \"a\"", "gest"),
        ] {
            let error = Fleet::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
