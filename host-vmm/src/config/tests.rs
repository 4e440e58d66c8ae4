//! Tests of what a run is.

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
fn the_first_disk_is_the_root_unless_somebody_says_otherwise() {
    let mut config = Config {
        cmdline: "quiet".to_owned(),
        disks: vec!["a.img".parse().unwrap()],
        ..Config::of(Profile::Full, PathBuf::new())
    };
    assert!(config.full_cmdline().ends_with(" root=/dev/sda rw quiet"));
    config.profile = Profile::Para;
    config.disks[0].read_only = true;
    assert!(config.full_cmdline().ends_with(" root=/dev/vda ro quiet"));
    config.initrd = Some("guest.cpio".into());
    assert!(!config.full_cmdline().contains("root="));
    config.initrd = None;
    config.cmdline = "root=/dev/sdb".to_owned();
    assert!(config.full_cmdline().ends_with("panic=-1 root=/dev/sdb"));
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
