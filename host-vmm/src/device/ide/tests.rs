//! The register protocol, as a driver speaks it, and as none should.

use proptest::prelude::*;
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::disk::DiskSpec;
use crate::disk::faults::Faults;
use crate::disk::tests::image;
use crate::snapshot::Saved as _;

const SECTORS: u8 = 64;
const COMMAND: u16 = 0x1f7;
const CONTROL: u16 = 0x3f6;
const BUS_MASTER: u16 = BUS_MASTER_BASE;
const TABLE: u64 = 0x1000;

struct Pc {
    ide: Ide,
    pci: Pci,
    irq: EventFd,
    memory: Memory,
    file: TempFile,
}

impl Pc {
    /// One disk; sector n is full of n.
    fn new(read_only: bool) -> Self {
        Self::with(read_only, None)
    }

    fn with(read_only: bool, faults: Option<Faults>) -> Self {
        let file = image(SECTORS);
        let path = file.as_path().to_owned();
        let disk = Disk::open(&DiskSpec {
            faults,
            ..DiskSpec::of(path, read_only)
        });
        let disk = disk.unwrap();
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let irq = event();
        let memory = Memory::new(32).unwrap();
        let irqs = [irq.try_clone().unwrap(), event()];
        let ide = Ide::new(vec![disk], irqs, &memory);
        let pci = Pci::new(ide.functions().into());
        Self {
            ide,
            pci,
            irq,
            memory,
            file,
        }
    }

    fn write(&self, port: u16, value: u8) {
        assert!(self.ide.write(&self.pci, port, &[value]), "{port:#x}");
    }

    fn read(&self, port: u16) -> u8 {
        let mut value = [0xff];
        assert!(self.ide.read(&self.pci, port, &mut value), "{port:#x}");
        value[0]
    }

    fn command(&self, command: u8, sector: u64, count: u16) {
        let [b0, b1, b2, b3, b4, b5, ..] = sector.to_le_bytes();
        let [count, before] = count.to_le_bytes();
        for (port, value) in [(0x1f2, before), (0x1f3, b3), (0x1f4, b4), (0x1f5, b5)] {
            self.write(port, value);
        }
        for (port, value) in [(0x1f2, count), (0x1f3, b0), (0x1f4, b1), (0x1f5, b2)] {
            self.write(port, value);
        }
        self.write(0x1f6, LBA);
        self.write(COMMAND, command);
    }

    /// The status with which a command has ended, or asks for data; there must have been `interrupts`.
    fn status(&self, interrupts: u64) -> u8 {
        assert_eq!(self.irq.read().unwrap_or(0), interrupts);
        self.read(COMMAND)
    }

    fn take(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0xff; bytes];
        assert!(self.ide.read(&self.pci, 0x1f0, &mut data));
        data
    }

    fn give(&self, data: &[u8]) {
        assert!(self.ide.write(&self.pci, 0x1f0, data));
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.file.as_path()).unwrap()
    }

    /// The first byte of a sector.
    fn byte(&self, sector: u64) -> u8 {
        self.content()[usize::try_from(sector).unwrap() * 512]
    }

    /// A table of regions, and the master started.
    fn dma(&self, to_memory: bool, regions: &[(u32, u16)]) {
        for (index, (address, length)) in regions.iter().enumerate() {
            let last = if index + 1 == regions.len() { LAST } else { 0 };
            let entry = [*address, u32::from(*length) | last];
            self.memory
                .write_obj(TABLE + 8 * index as u64, &entry)
                .unwrap();
        }
        let table = u32::try_from(TABLE).unwrap().to_le_bytes();
        assert!(self.ide.write(&self.pci, BUS_MASTER + 4, &table));
        self.write(BUS_MASTER + 2, 0x66);
        self.write(BUS_MASTER, if to_memory { 9 } else { 1 });
    }
}

const LAST: u32 = 1 << 31;
const DONE: u8 = status::READY | status::SEEK_COMPLETE;
const DATA: u8 = DONE | status::DRQ;

#[test]
fn a_disk_says_what_it_is() {
    let pc = Pc::new(false);
    // Linux's reset and its look for a disk.
    pc.write(CONTROL, 0x08);
    pc.write(CONTROL, 0x0c);
    assert_eq!(pc.read(CONTROL), status::BUSY);
    pc.write(CONTROL, 0x08);
    let signature = [0x1f1, 0x1f2, 0x1f3, 0x1f4, 0x1f5].map(|port| pc.read(port));
    assert_eq!(signature, [1, 1, 1, 0, 0]);
    pc.write(0x1f6, 0xb0);
    assert_eq!([pc.read(COMMAND), pc.read(0x1f2)], [0, 0], "no second disk");
    pc.write(0x1f6, 0xa0);
    pc.write(COMMAND, IDENTIFY);
    assert_eq!(pc.status(1), DATA);
    let bytes = pc.take(512);
    let word = |at: usize| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
    assert_eq!((word(60), word(61)), (u16::from(SECTORS), 0));
    assert_eq!((word(100), word(101)), (u16::from(SECTORS), 0));
    assert_eq!(
        bytes[54..62],
        *b"aParaven",
        "each pair of letters is turned round"
    );
    assert_eq!(pc.read(COMMAND), DONE);
    assert_eq!(pc.take(2), [0xff; 2], "no data without a command");
    // The second channel has no disk, and is not there.
    assert!(!pc.ide.read(&pc.pci, 0x177, &mut [0]));
}

#[test]
fn sectors_come_and_go_through_the_data_register() {
    let pc = Pc::new(false);
    pc.command(READ_SECTORS, 3, 2);
    for sector in [3, 4] {
        assert_eq!(pc.status(1), DATA);
        // Two and four bytes an access, or a string of them.
        assert_eq!(pc.take(2), [sector; 2]);
        assert_eq!(pc.take(4), [sector; 4]);
        assert_eq!(pc.take(506), vec![sector; 506]);
    }
    assert_eq!(pc.status(0), DONE);

    pc.command(WRITE_SECTORS_EXT, 10, 2);
    assert_eq!(pc.status(0), DATA);
    pc.give(&[0xaa; 512]);
    assert_eq!(pc.status(1), DATA);
    pc.give(&[0xbb; 510]);
    assert_eq!(pc.status(0), DATA);
    pc.give(&[0xbb; 2]);
    assert_eq!(pc.status(1), DONE);
    pc.command(FLUSH, 0, 0);
    assert_eq!(pc.status(1), DONE);
    let content = pc.content();
    assert_eq!(content[10 * 512..11 * 512], [0xaa; 512]);
    assert_eq!(content[11 * 512..12 * 512], [0xbb; 512]);
    assert_eq!(content[9 * 512], 9);
    assert_eq!(content[12 * 512], 12);
}

#[test]
fn several_sectors_are_a_block_once_that_is_set() {
    let pc = Pc::new(false);
    pc.command(READ_MULTIPLE, 0, 1);
    assert_eq!(pc.status(1), DONE | status::ERR);
    pc.command(SET_MULTIPLE, 0, 4);
    assert_eq!(pc.status(1), DONE);
    for too_many in [3, 32, 255] {
        pc.command(SET_MULTIPLE, 0, too_many);
        assert_eq!(pc.status(1), DONE | status::ERR, "{too_many}");
    }
    pc.command(READ_MULTIPLE_EXT, 20, 6);
    assert_eq!(pc.status(1), DATA);
    assert_eq!(pc.take(4 * 512)[3 * 512], 23);
    assert_eq!(pc.status(1), DATA);
    assert_eq!(pc.take(2 * 512)[512], 25);
    assert_eq!(pc.status(0), DONE);
    pc.command(WRITE_MULTIPLE, 60, 4);
    pc.give(&[0xcc; 4 * 512]);
    assert_eq!(pc.status(1), DONE);
    assert_eq!(pc.content()[60 * 512..], [0xcc; 4 * 512]);
}

#[test]
fn the_bus_master_moves_them_without_the_guest() {
    let pc = Pc::new(false);
    pc.command(READ_DMA, 5, 3);
    assert_eq!(
        pc.irq.read().unwrap_or(0),
        0,
        "the master has not been started"
    );
    pc.dma(true, &[(0x8000, 512), (0x9100, 0x400)]);
    assert_eq!(pc.read(BUS_MASTER + 2) & 7, 4, "done, without failure");
    assert_eq!(pc.status(1), DONE);
    pc.write(BUS_MASTER, 0);
    let mut bytes = [0; 1024];
    pc.memory.read(0x9100, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[1023]), (6, 7));

    pc.memory.write(0x20_0000, &[0xdd; 2 * 512]).unwrap();
    pc.command(WRITE_DMA_EXT, 30, 2);
    // One region that is longer than the transfer.
    pc.dma(false, &[(0x20_0000, 0)]);
    assert_eq!(pc.status(1), DONE);
    let content = pc.content();
    assert_eq!(content[30 * 512..32 * 512], [0xdd; 2 * 512]);
    assert_eq!(content[32 * 512], 32);
}

#[test]
fn a_master_that_cannot_go_on_says_so_and_writes_nothing() {
    let pc = Pc::new(false);
    let before = pc.content();
    let outside = u32::try_from(pc.memory.bytes()).unwrap();
    for (regions, to_memory) in [
        (&[(outside, 512)][..], false),
        (&[(outside - 2, 512)][..], false),
        (&[(u32::MAX, 512)][..], false),
        (&[(0x8000, 256)][..], false),
        (&[(0x8000, 512)][..], true),
    ] {
        pc.command(WRITE_DMA, 1, 1);
        pc.dma(to_memory, regions);
        assert_eq!(pc.read(BUS_MASTER + 2) & 7, 6, "{regions:x?}");
        assert_eq!(pc.status(1), DONE | status::ERR);
        pc.write(BUS_MASTER, 0);
    }
    // A table that is not in memory.
    pc.command(WRITE_DMA, 1, 1);
    assert!(pc.ide.write(&pc.pci, BUS_MASTER + 4, &[0xff; 4]));
    pc.write(BUS_MASTER, 1);
    assert_eq!(pc.status(1), DONE | status::ERR);
    assert_eq!(pc.content(), before);
}

#[test]
fn a_disk_that_fails_says_so_and_its_master_does_not() {
    let faults = Faults::new(1);
    let pc = Pc::with(false, Some(faults.clone()));
    let bad = DONE | status::ERR | status::FAULT;
    let failed = (0..u64::from(SECTORS)).filter(|sector| {
        let failed = faults.failed();
        let has_failed = || faults.failed() > failed;
        match sector % 3 {
            0 => {
                pc.command(READ_SECTORS, *sector, 1);
                let good = !has_failed();
                assert_eq!(pc.status(1), if good { DATA } else { bad });
                let byte = pc.take(512)[511];
                assert_eq!(byte, if good { pc.byte(*sector) } else { 0xff });
            }
            1 => {
                pc.memory.write(0x20_0000, &[0xdd; 512]).unwrap();
                pc.command(WRITE_DMA, *sector, 1);
                pc.dma(false, &[(0x20_0000, 512)]);
                assert_eq!(pc.read(BUS_MASTER + 2) & 7, 4);
                assert_eq!(pc.status(1), if has_failed() { bad } else { DONE });
                pc.write(BUS_MASTER, 0);
                let written = pc.byte(*sector) == 0xdd;
                assert_ne!(written, has_failed());
            }
            _ => {
                pc.command(FLUSH, 0, 0);
                assert_eq!(pc.status(1), if has_failed() { bad } else { DONE });
            }
        }
        if has_failed() {
            assert_eq!(pc.read(0x1f1), error::UNCORRECTABLE);
        }
        has_failed()
    });
    assert!(failed.count() > 2);
}

#[test]
fn what_is_not_on_the_disk_cannot_be_reached() {
    let pc = Pc::new(false);
    let (before, end) = (pc.content(), u64::from(SECTORS));
    for (command, sector, count) in [
        (READ_SECTORS, end, 1),
        (READ_SECTORS, end - 1, 2),
        (READ_SECTORS, 0, 0),
        (WRITE_SECTORS_EXT, (1 << 48) - 1, 0),
        (WRITE_DMA_EXT, end, 1),
        (READ_VERIFY, end, 1),
    ] {
        pc.command(command, sector, count);
        assert_eq!(pc.status(1), DONE | status::ERR, "{command:#x}");
        assert_eq!(pc.read(0x1f1), error::NOT_FOUND);
    }
    // Addresses by cylinder and head, and commands that no disk of this kind knows.
    pc.write(0x1f6, 0);
    pc.write(COMMAND, READ_SECTORS);
    assert_eq!(pc.status(1), DONE | status::ERR);
    for unknown in [0x00, 0xa0, 0xf5] {
        pc.command(unknown, 0, 1);
        assert_eq!(pc.status(1), DONE | status::ERR, "{unknown:#x}");
    }
    assert_eq!(pc.content(), before);
}

#[test]
fn a_disk_that_may_not_be_written_to_is_not() {
    let pc = Pc::new(true);
    for command in [WRITE_SECTORS, WRITE_DMA] {
        pc.command(command, 0, 1);
        assert_eq!(pc.status(1), DONE | status::ERR);
    }
    pc.command(FLUSH_EXT, 0, 0);
    assert_eq!(pc.status(1), DONE);
}

#[test]
fn interrupts_wait_for_their_mask_and_go_with_the_status() {
    let pc = Pc::new(false);
    pc.write(CONTROL, NO_INTERRUPT);
    pc.command(FLUSH, 0, 0);
    assert_eq!(pc.irq.read().unwrap_or(0), 0);
    pc.write(CONTROL, 0);
    assert_eq!(pc.irq.read().unwrap_or(0), 1);
    pc.write(CONTROL, NO_INTERRUPT);
    // The other way to the status leaves the interrupt alone.
    assert_eq!(pc.read(CONTROL), DONE);
    assert_eq!(pc.read(COMMAND), DONE);
    pc.write(CONTROL, 0);
    assert_eq!(pc.irq.read().unwrap_or(0), 0);
}

/// An access that a guest can make: a port of the controller, and some bytes.
fn access() -> impl Strategy<Value = (u16, bool, Vec<u8>)> {
    let port = prop_oneof![0x1f0_u16..0x1f8, Just(CONTROL), 0xc000_u16..0xc010];
    let value = prop_oneof![
        any::<u8>(),
        Just(READ_SECTORS),
        Just(WRITE_SECTORS),
        Just(READ_DMA),
        Just(IDENTIFY),
        Just(9),
    ];
    let data = prop_oneof![
        value.prop_map(|value| vec![value]),
        proptest::collection::vec(any::<u8>(), 1..1100),
    ];
    (port, any::<bool>(), data)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn no_guest_breaks_the_controller(accesses in proptest::collection::vec(access(), 1..200)) {
        let pc = Pc::new(false);
        for (port, is_write, mut data) in accesses {
            if is_write {
                pc.ide.write(&pc.pci, port, &data);
            } else {
                pc.ide.read(&pc.pci, port, &mut data);
            }
        }
        // A reset brings any controller back.
        pc.write(CONTROL, RESET);
        pc.write(CONTROL, 0);
        let _ = pc.irq.read();
        pc.command(READ_SECTORS, 0, 1);
        prop_assert_eq!(pc.status(1), DATA);
    }
}

#[test]
fn a_saved_controller_goes_on_in_the_middle_of_a_block() {
    let (pc, copy) = (Pc::new(false), Pc::new(false));
    pc.command(SET_MULTIPLE, 0, 4);
    pc.command(READ_MULTIPLE, 8, 6);
    assert_eq!(pc.take(1000)[999], 9);
    let state = pc.ide.save().unwrap();
    copy.ide.restore(state.clone()).unwrap();
    copy.ide.go_on();
    assert_eq!(copy.status(1), DATA);
    assert_eq!(copy.take(4 * 512 - 1000)[1047], 11);
    assert_eq!(copy.status(1), DATA);
    assert_eq!(copy.take(2 * 512)[512], 13);
    assert_eq!(copy.status(0), DONE);
    for (field, bad) in [
        ("end", 0x2001),
        ("position", 0x2001),
        ("block", 17),
        ("sector", u64::from(SECTORS)),
        ("left", u64::MAX),
    ] {
        let mut state = state.clone();
        state[0]["transfer"][field] = bad.into();
        assert!(copy.ide.restore(state).is_err(), "{field}");
    }
}
