//! The arms of a comparison: which guest, with which facilities, on which VMM.

use std::fmt;
use std::str::FromStr;

use crate::job::Kind;
use crate::peer::{self, Peer};

/// One side of a comparison, written `full`, `kvm-pv`, `para`, `direct`, `para-console` for para without its console,
/// `para+console` for para with nothing else, or by the name of a [peer]. Behind an `@` it says where and how its devices are
/// served: `para@kernel`, `para@driver-domain`, `para@poll`, `para@uring`; `full@pio` is a PC without DMA, whose driver moves each word itself.
/// `kvm-pv@patched` has the patched kernel, and uses nothing that it was patched for: what it differs by from `kvm-pv` is the
/// kernel's image, and what para differs by from it are the facilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    /// How the arm is called in results.
    pub name: String,
    /// The profile that `paravane run --guest` takes; of a peer, the nearest one.
    pub guest: &'static str,
    /// The facilities as `paravane run --pv` takes them.
    pub facilities: String,
    /// Where its devices are served, as `paravane run --io` takes it; of a peer, nothing.
    pub io: &'static str,
    /// Whether threads look at its queues, as `paravane run --poll` takes it.
    pub poll: &'static str,
    /// Whether the host's kernel has many of its disk's transfers under way at once.
    pub uring: bool,
    /// Whether it has the patched kernel without being a para guest.
    pub patched: bool,
    /// How many percent more rounds it makes of each job than it says: a slowdown planted to try the instrument.
    pub handicap: u32,
    /// The other VMM, if it is not ours.
    pub peer: Option<&'static Peer>,
}

/// Where devices are served unless an arm says otherwise.
const HOSTED: &str = "hosted";
const KERNEL: &str = "kernel";
const DRIVER_DOMAIN: &str = "driver-domain";
/// They are, and the guest's driver is to move the words of its disks itself.
const PIO: &str = "pio";
const URING: &str = "uring";
/// Not a place, but the other kernel.
const PATCHED: &str = "patched";

/// A word that is not an arm.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no arm `{0}`; arms are full, kvm-pv, para, direct, para-FACILITY for para without that facility, para+FACILITY for \
     para with that one only, and the peers {peers}; GUEST@kernel has the host's kernel serve its network, \
     GUEST@driver-domain another guest all of it, GUEST@poll has threads look at its queues under load, GUEST@uring has many transfers of its disk under way at once, full@pio does without DMA; full@patched and kvm-pv@patched have para's kernel; ARM~5 does five percent more than it says",
    peers = peer::names().collect::<Vec<_>>().join(", ")
)]
pub struct ArmError(String);

impl FromStr for Arm {
    type Err = ArmError;

    fn from_str(name: &str) -> Result<Self, ArmError> {
        let wrong = || ArmError(name.to_owned());
        let (plain, handicap) = match name.split_once('~') {
            Some((plain, percent)) => (plain, percent.parse().map_err(|_| wrong())?),
            None => (name, 0),
        };
        let (plain, place) = match plain.split_once('@') {
            Some((plain, place)) => (plain, Some(place)),
            None => (plain, None),
        };
        let (io, poll) = match place {
            None => (HOSTED, "off"),
            Some("kernel") => (KERNEL, "off"),
            Some("driver-domain") => (DRIVER_DOMAIN, "off"),
            Some("poll") => (HOSTED, "auto"),
            Some(URING) if plain != "full" => (HOSTED, "off"),
            Some(PIO) if plain == "full" => (PIO, "off"),
            Some(PATCHED) if ["full", "kvm-pv"].contains(&plain) => (HOSTED, "off"),
            Some(_) => return Err(wrong()),
        };
        let arm = |guest, facilities, peer: Option<&'static Peer>| Self {
            name: name.to_owned(),
            guest,
            facilities,
            io: if peer.is_some() { "" } else { io },
            poll,
            uring: place == Some(URING),
            patched: place == Some(PATCHED),
            handicap,
            peer,
        };
        if let Some(peer) = peer::find(plain).filter(|_| place.is_none()) {
            let guest = if peer.hypervisor.is_some() {
                "kvm-pv"
            } else {
                "full"
            };
            return Ok(arm(guest, String::new(), Some(peer)));
        }
        let (guest, rest) = ["full", "kvm-pv", "para", "direct"]
            .into_iter()
            .find_map(|guest| Some((guest, plain.strip_prefix(guest)?)))
            .ok_or_else(wrong)?;
        if rest.is_empty() {
            return Ok(arm(guest, String::new(), None));
        }
        let (sign, words) = rest.split_at_checked(1).ok_or_else(wrong)?;
        let words: Vec<&str> = words.split(sign).collect();
        if guest != "para" || !["-", "+"].contains(&sign) || words.iter().any(|w| w.is_empty()) {
            return Err(wrong());
        }
        let word = |word: &&str| match sign {
            "-" => format!("-{word}"),
            _ => (*word).to_owned(),
        };
        let facilities: Vec<String> = words.iter().map(word).collect();
        Ok(arm(guest, facilities.join(","), None))
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Arm {
    /// Whether the guest uses what its kernel was patched for.
    #[must_use]
    pub fn is_para(&self) -> bool {
        matches!(self.guest, "para" | "direct")
    }

    /// Whether the arm runs the patched kernel.
    #[must_use]
    pub fn has_patched_kernel(&self) -> bool {
        match self.peer {
            Some(peer) => peer.kernel == "para",
            None => self.patched || self.is_para(),
        }
    }

    /// Whether the arm makes launches of this kind: ones without what the arm serves elsewhere would be those of another arm.
    #[must_use]
    pub fn fits(&self, kind: &Kind) -> bool {
        match self.io {
            _ if !kind.arms.is_empty() && !kind.arms.contains(&self.name) => false,
            _ if self.uring => kind.disk() > 0,
            PIO => kind.disk() > 0,
            DRIVER_DOMAIN => kind.disk() > 0 || kind.net(),
            KERNEL => kind.net(),
            // A peer has no network here.
            _ => self.peer.is_none() || !kind.net(),
        }
    }

    /// What the arm's kernel is told beside.
    #[must_use]
    pub fn cmdline(&self) -> &'static str {
        if self.io == PIO { "libata.dma=0 " } else { "" }
    }

    /// What `paravane run` takes for the arm, beside the kernel.
    #[must_use]
    pub fn run_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--guest={}", self.guest)];
        if !self.facilities.is_empty() {
            arguments.push(format!("--pv={}", self.facilities));
        }
        if ![HOSTED, PIO].contains(&self.io) {
            arguments.push(format!("--io={}", self.io));
        }
        if self.poll != "off" {
            arguments.push(format!("--poll={}", self.poll));
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

/// The arm that `name` is the twin of, if it is one.
#[must_use]
pub fn twin_of(name: &str) -> Option<&str> {
    name.split_once('#').map(|(plain, _)| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_guests_with_facilities_switched_off_or_on() {
        let arm: Arm = "para-console-clock".parse().unwrap();
        assert_eq!(
            arm.run_arguments(),
            ["--guest=para", "--pv=-console,-clock"]
        );
        assert!(arm.is_para());
        let arm: Arm = "para+console+clock".parse().unwrap();
        assert_eq!(arm.run_arguments(), ["--guest=para", "--pv=console,clock"]);
        assert_eq!(
            "kvm-pv".parse::<Arm>().unwrap().run_arguments(),
            ["--guest=kvm-pv"]
        );
        for wrong in [
            "",
            "xen",
            "para-",
            "para--",
            "full-console",
            "kvm",
            "full~x",
            "para@home",
            "para@pio",
            "full@uring",
            "para@patched",
            "qemu-q35@kernel",
        ] {
            assert!(wrong.parse::<Arm>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_arm_says_where_its_devices_are_served() {
        let arm: Arm = "kvm-pv@kernel".parse().unwrap();
        assert_eq!(arm.run_arguments(), ["--guest=kvm-pv", "--io=kernel"]);
        let arm: Arm = "para-clock@poll~5".parse().unwrap();
        let arguments = ["--guest=para", "--pv=-clock", "--poll=auto"];
        assert_eq!(
            (arm.run_arguments(), arm.io),
            (arguments.map(String::from).into(), HOSTED)
        );
        let arm: Arm = "full@pio".parse().unwrap();
        assert_eq!(arm.run_arguments(), ["--guest=full"]);
        assert_eq!(arm.cmdline(), "libata.dma=0 ");
        assert!("para@uring".parse::<Arm>().unwrap().uring);
        let arm: Arm = "kvm-pv@patched".parse().unwrap();
        assert_eq!(arm.run_arguments(), ["--guest=kvm-pv"]);
        assert!(arm.has_patched_kernel() && !arm.is_para());
    }

    #[test]
    fn peers_and_handicaps_are_arms() {
        let arm: Arm = "qemu-q35".parse().unwrap();
        assert!(arm.peer.is_some() && !arm.is_para());
        let arm: Arm = "para-console~5".parse().unwrap();
        assert_eq!((arm.handicap, arm.facilities.as_str()), (5, "-console"));
    }

    #[test]
    fn twins_get_numbers() {
        let mut arms: Vec<Arm> = ["full", "full", "para", "full"]
            .map(|name| name.parse().unwrap())
            .into();
        name_twins(&mut arms);
        let names: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["full", "full#2", "para", "full#3"]);
        assert_eq!(twin_of("full#2"), Some("full"));
        assert_eq!(twin_of("full"), None);
    }
}
