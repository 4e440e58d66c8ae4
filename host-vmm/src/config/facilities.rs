//! Which of Paravane's facilities a guest finds: `--pv`.

use std::fmt;

use paravane_abi::registry as reg;

use super::ConfigError;

/// The facilities that a para guest finds, and whether its submission rings can be exitless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FacilitySet {
    /// A bit each, at its [`slot`].
    bits: u128,
    /// Transport T2; only with facility `ring`.
    exitless: bool,
}

/// Name and id of each facility that this VMM implements.
pub const FACILITIES: &[(&str, u32)] = &[
    ("base", reg::FACILITY_BASE),
    ("console", reg::FACILITY_CONSOLE),
    ("clock", reg::FACILITY_CLOCK),
    ("timer", reg::FACILITY_TIMER),
    ("cpuid", reg::FACILITY_CPUID),
    ("crash", reg::FACILITY_CRASH),
    ("irq", reg::FACILITY_IRQ),
    ("ipi", reg::FACILITY_IPI),
    ("tlb", reg::FACILITY_TLB),
    ("sched", reg::FACILITY_SCHED),
    ("smp", reg::FACILITY_SMP),
    ("mem", reg::FACILITY_MEM),
    ("ring", reg::FACILITY_RING),
    ("rng", reg::FACILITY_RNG),
    ("dev", reg::FACILITY_DEV),
];

/// Experiments that there is room for.
const EXPERIMENTS_MAX: u32 = 64;

/// Where this VMM keeps facility `id`: those of the facility word by their bit, experiments, which have none, behind them.
#[must_use]
pub const fn slot(id: u32) -> Option<usize> {
    const FIRST: u32 = reg::FACILITY_EXPERIMENTAL_FIRST;
    match id {
        0..64 => Some(id as usize),
        FIRST.. if id - FIRST < EXPERIMENTS_MAX => Some(64 + (id - FIRST) as usize),
        _ => None,
    }
}

/// The bit of facility `id` in a [`FacilitySet`]; none where it cannot be.
const fn bit(id: u32) -> u128 {
    match slot(id) {
        Some(slot) => 1 << slot,
        None => 0,
    }
}

/// The name of the transport that comes on top of facility `ring`.
const EXITLESS: &str = "exitless";

impl Default for FacilitySet {
    fn default() -> Self {
        Self {
            bits: FACILITIES.iter().fold(0, |bits, (_, id)| bits | bit(*id)),
            exitless: true,
        }
    }
}

impl FacilitySet {
    /// No facility, as for guests that are not para.
    pub const NONE: Self = Self {
        bits: 0,
        exitless: false,
    };

    /// The facility word of the ABI: experiments are not in it.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is the facility word"
    )]
    pub const fn word(self) -> u64 {
        self.bits as u64
    }

    /// Whether facility `id` is on.
    #[must_use]
    pub const fn has(self, id: u32) -> bool {
        self.bits & bit(id) != 0
    }

    /// The same without facility `id`.
    #[must_use]
    pub const fn without(mut self, id: u32) -> Self {
        self.bits &= !bit(id);
        self.exitless &= id != reg::FACILITY_RING;
        self
    }

    /// The transport bits of the ABI. Spec: PV-RING-1
    #[must_use]
    pub const fn transports(self) -> u32 {
        match (self.has(reg::FACILITY_RING), self.exitless) {
            (false, _) => reg::TRANSPORT_DOORBELL,
            (true, false) => reg::TRANSPORT_DOORBELL | reg::TRANSPORT_RING,
            (true, true) => reg::TRANSPORT_DOORBELL | reg::TRANSPORT_RING | reg::TRANSPORT_EXITLESS,
        }
    }

    /// Parses `--pv`: `console,clock` means just these (and `base`, which is mandatory);
    /// `-clock,-crash` means all but these. `exitless` brings `ring` along, and goes with it.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownFacility`], [`ConfigError::MandatoryFacility`].
    pub fn parse(list: &str) -> Result<Self, ConfigError> {
        let words = list.split(',').map(str::trim);
        let words = words.filter(|word| !word.is_empty());
        let mut set = if words.clone().all(|word| word.starts_with('-')) {
            Self::default()
        } else {
            Self {
                bits: bit(reg::FACILITY_BASE),
                exitless: false,
            }
        };
        for word in words {
            let removed = word.starts_with('-');
            let name = word.strip_prefix(['-', '+']).unwrap_or(word);
            if name == EXITLESS {
                set.exitless = !removed;
                if !removed {
                    set.bits |= bit(reg::FACILITY_RING);
                }
                continue;
            }
            let found = FACILITIES.iter().find(|(known, _)| *known == name);
            let (_, id) = found.ok_or_else(|| ConfigError::UnknownFacility {
                name: name.to_owned(),
                known: Self::default().to_string(),
            })?;
            match (removed, *id) {
                (true, reg::FACILITY_BASE) => return Err(ConfigError::MandatoryFacility),
                (true, id) => set.bits &= !bit(id),
                (false, id) => set.bits |= bit(id),
            }
        }
        set.exitless &= set.has(reg::FACILITY_RING);
        Ok(set)
    }
}

impl fmt::Display for FacilitySet {
    /// The list that [`FacilitySet::parse`] makes it of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = FACILITIES.iter().filter(|(_, id)| self.has(*id));
        let names = on.map(|(name, _)| *name);
        let names: Vec<_> = names.chain(self.exitless.then_some(EXITLESS)).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experiments_have_a_place_and_no_bit_in_the_facility_word() {
        let first = reg::FACILITY_EXPERIMENTAL_FIRST;
        for id in [first, first + 63] {
            let set = FacilitySet {
                bits: bit(id),
                exitless: false,
            };
            assert!(set.has(id) && !set.without(id).has(id));
            assert_eq!(set.word(), 0);
        }
        for id in [64, first - 1, first + 64, reg::FACILITY_VENDOR_FIRST] {
            assert_eq!((slot(id), bit(id)), (None, 0), "{id:#x}");
        }
    }

    #[test]
    fn pv_list_adds_or_removes() {
        let all = FacilitySet::default();
        assert_eq!(FacilitySet::parse("").unwrap(), all);
        let no_clock = FacilitySet::parse("-clock").unwrap();
        assert_eq!(no_clock.word(), all.word() & !(1 << reg::FACILITY_CLOCK));
        for set in [all, no_clock, FacilitySet::parse("-exitless").unwrap()] {
            assert_eq!(FacilitySet::parse(&set.to_string()).unwrap(), set);
        }
        let only_console = FacilitySet::parse("console").unwrap();
        assert_eq!(
            only_console.word(),
            1 << reg::FACILITY_BASE | 1 << reg::FACILITY_CONSOLE
        );
        let transports = |list| FacilitySet::parse(list).unwrap().transports();
        let (ring, exitless) = (
            reg::TRANSPORT_DOORBELL | reg::TRANSPORT_RING,
            all.transports(),
        );
        assert_eq!(exitless, ring | reg::TRANSPORT_EXITLESS);
        assert_eq!(transports("console"), reg::TRANSPORT_DOORBELL);
        assert_eq!(transports("ring"), ring);
        assert_eq!(transports("exitless"), exitless);
        assert_eq!(transports("-exitless"), ring);
        assert_eq!(transports("-ring"), reg::TRANSPORT_DOORBELL);
        assert_eq!(FacilitySet::NONE.transports(), reg::TRANSPORT_DOORBELL);
        assert!(matches!(
            FacilitySet::parse("-base"),
            Err(ConfigError::MandatoryFacility)
        ));
        assert!(matches!(
            FacilitySet::parse("konsole"),
            Err(ConfigError::UnknownFacility { .. })
        ));
    }
}
