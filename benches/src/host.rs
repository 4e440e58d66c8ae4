//! Where the guests run: this machine, or the reference host.

/// Where the guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Host {
    /// This machine's `/dev/kvm`.
    Kvm,
    /// The emulated reference host, by the clock of this machine.
    Reference,
    /// The reference host, its time counted: an instruction is a nanosecond, whatever else this machine does.
    Counted,
}

impl Host {
    /// Its name, in results and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Reference => "reference",
            Self::Counted => "counted",
        }
    }

    /// What its time is.
    pub(crate) const fn time(self) -> &'static str {
        match self {
            Self::Kvm | Self::Reference => "as it passes",
            Self::Counted => {
                "a nanosecond an instruction of the emulated processor; while it is idle, as it passes"
            }
        }
    }

    /// The class of the host that this process is on.
    #[must_use]
    pub fn here() -> Self {
        if paravane_reference_host::is_counted() {
            Self::Counted
        } else if paravane_reference_host::is_inside() {
            Self::Reference
        } else {
            Self::Kvm
        }
    }

    /// The host that was asked for, or this machine if it can run the guests: `unfit` says why it cannot.
    pub(crate) fn choose(asked: Option<Self>, unfit: Option<&str>) -> Self {
        if paravane_reference_host::is_inside() {
            return Self::here();
        }
        match (asked, unfit) {
            (Some(host), _) => host,
            (None, None) => Self::Kvm,
            (None, Some(why)) => {
                eprintln!(
                    "The launches run on the reference host, by counted time: this machine's KVM cannot run the guests: {why}"
                );
                Self::Counted
            }
        }
    }
}
