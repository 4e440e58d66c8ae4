//! Files and memory as they are.

use std::io::Write;
use std::process::Command;

use paravane_reference_host::or_skipped;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

use super::uring::Transfer;
use super::*;

/// A file of so many sectors, each full of its own number.
pub(crate) fn image(sectors: u8) -> TempFile {
    let file = TempFile::new().unwrap();
    for sector in 0..sectors {
        file.as_file().write_all(&[sector; 512]).unwrap();
    }
    file
}

fn spec(file: &TempFile, read_only: bool) -> DiskSpec {
    DiskSpec::of(file.as_path().to_owned(), read_only)
}

/// Of a disk with a ring, where this host gives any.
fn spec_with_ring(file: &TempFile, read_only: bool) -> Option<DiskSpec> {
    let uring = or_skipped(Uring::made())?;
    Some(DiskSpec {
        uring: Some(uring),
        ..spec(file, read_only)
    })
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn segments<'m>(memory: &'m GuestMemoryMmap, ranges: &[(u64, usize)]) -> Segments<'m> {
    let mut segments = Segments::default();
    for (at, length) in ranges {
        let slice = memory.get_slice(GuestAddress(*at), *length).unwrap();
        segments.push(slice).unwrap();
    }
    segments
}

#[test]
fn a_file_and_what_may_be_done_with_it_is_an_option() {
    let spec = |text: &str| text.parse::<DiskSpec>();
    let disk = spec("a,b.img,readonly").unwrap();
    assert_eq!(
        (disk.path, disk.read_only),
        (PathBuf::from("a,b.img"), true)
    );
    assert!(!spec("readonly").unwrap().read_only);
    let disk = spec("a.qcow2,format=qcow2,readonly").unwrap();
    assert_eq!((disk.read_only, disk.format), (true, Format::Qcow2));
    assert_eq!(spec("a,format=vmdk").unwrap().format, Format::Raw);
    for text in ["", ",readonly", ",format=qcow2", ",fail=1"] {
        assert!(matches!(spec(text), Err(DiskError::NoPath)));
    }
    for text in ["a,b.img,fail=7,readonly", "a,b.img,readonly,fail=7"] {
        let disk = spec(text).unwrap();
        assert_eq!(
            (disk.path, disk.read_only),
            (PathBuf::from("a,b.img"), true)
        );
        assert!(disk.faults.is_some());
    }
    assert!(spec("a.img,aio=io_uring,readonly").unwrap().uring.is_some());
    for text in ["a,fail=7,aio=io_uring", "a,aio=io_uring,format=qcow2"] {
        assert!(matches!(spec(text), Err(DiskError::NoUring)));
    }
    let disk = spec("a.img,queues=4,readonly").unwrap();
    assert_eq!((disk.queues, disk.read_only), (4, true));
    assert_eq!(spec("a.img").unwrap().queues, 1);
    for text in ["a.img,queues=0", "a.img,queues=5", "a.img,queues=,readonly"] {
        assert!(matches!(spec(text), Err(DiskError::Queues(_))));
    }
    for text in ["a.img,fail=", "a.img,fail=x", "a.img,fail=-1,readonly"] {
        assert!(matches!(spec(text), Err(DiskError::Seed(_))));
    }
}

#[test]
fn a_request_that_is_asked_to_fail_does_nothing_and_the_seed_says_which() {
    let faults = Faults::new(7);
    let run = || {
        let (file, memory) = (image(64), memory());
        let mut spec = spec(&file, false);
        spec.faults = Some(faults.clone());
        let disk = Disk::open(&spec).unwrap();
        let done: Vec<bool> = (0..64)
            .map(|sector| {
                memory.write_slice(&[0xa5; 512], GuestAddress(0)).unwrap();
                let written = disk.write(sector * 512, segments(&memory, &[(0, 512)]));
                let mut now = [0; 512];
                file.as_file()
                    .read_exact_at(&mut now, sector * 512)
                    .unwrap();
                let expected = match written {
                    Ok(()) => 0xa5,
                    Err(DiskError::Asked) => u8::try_from(sector).unwrap(),
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(now, [expected; 512], "sector {sector}");
                written.is_ok()
            })
            .collect();
        let failed = done.iter().filter(|done| !**done).count();
        assert!((1..32).contains(&failed), "{failed}");
        assert_eq!(faults.failed(), failed as u64);
        done
    };
    assert_eq!(run(), run());
}

#[test]
fn what_is_written_is_read_again_wherever_it_lay_in_memory() {
    let (file, memory) = (image(16), memory());
    let disk = Disk::open(&spec(&file, false)).unwrap();
    assert_eq!(disk.sectors(), 16);
    let data: Vec<u8> = (0..2048_u32).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
    memory.write_slice(&data, GuestAddress(0x1000)).unwrap();
    let parts = [(0x1000, 1), (0x1001, 0), (0x1001, 1535), (0x1600, 512)];
    disk.write(1024, segments(&memory, &parts)).unwrap();
    disk.flush().unwrap();
    disk.read(
        512,
        segments(&memory, &[(0x9000, 700), (0x8000, 3072 - 700)]),
    )
    .unwrap();
    let mut after = vec![0; 3072];
    memory
        .read_slice(&mut after[..700], GuestAddress(0x9000))
        .unwrap();
    memory
        .read_slice(&mut after[700..], GuestAddress(0x8000))
        .unwrap();
    assert_eq!(after[..512], [1; 512]);
    assert_eq!(after[512..2560], data);
    assert_eq!(after[2560..], [6; 512]);
    let mut bytes = [0; 2048];
    disk.read_bytes(1024, &mut bytes).unwrap();
    assert_eq!(bytes[..], data);
}

#[test]
fn nothing_beyond_the_end_is_touched() {
    let (file, memory) = (image(4), memory());
    let disk = Disk::open(&spec(&file, false)).unwrap();
    for at in [1537, 2048, u64::MAX, u64::MAX - 511] {
        let part = || segments(&memory, &[(0, 512)]);
        let range = |r| matches!(r, Err(DiskError::Range { .. }));
        assert!(range(disk.read(at, part())), "{at}");
        assert!(range(disk.write(at, part())), "{at}");
        assert!(range(disk.discard(at, 512)), "{at}");
        assert!(range(disk.write_zeroes(at, 512, true)), "{at}");
        assert!(range(disk.write_bytes(at, &[0; 512])), "{at}");
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), 2048);
    let mut last = [0; 512];
    disk.read_bytes(1536, &mut last).unwrap();
    assert_eq!(last, [3; 512]);
}

#[test]
fn too_many_segments_are_refused() {
    let memory = memory();
    let mut segments = segments(&memory, &[(0, 1); SEGMENTS_MAX]);
    let slice = memory.get_slice(GuestAddress(0), 1).unwrap();
    assert!(matches!(segments.push(slice), Err(DiskError::Segments)));
}

#[test]
fn a_transfer_that_is_done_by_halves_goes_on_where_it_was() {
    let memory = memory();
    let source: Vec<u8> = (0..100).collect();
    memory.write_slice(&source, GuestAddress(0)).unwrap();
    let parts = segments(&memory, &[(0, 10), (10, 0), (10, 7), (17, 83)]);
    let taken = std::cell::RefCell::new(Vec::new());
    let seven = |iovecs: &[libc::iovec], offset: u64| {
        let mut taken = taken.borrow_mut();
        assert_eq!(offset, 50 + taken.len() as u64);
        let mut room = 7;
        for iovec in iovecs {
            let part = room.min(iovec.iov_len);
            // SAFETY: the segments are parts of `memory`, and no longer than they say.
            let bytes = unsafe {
                std::slice::from_raw_parts(iovec.iov_base.cast::<u8>().cast_const(), part)
            };
            taken.extend_from_slice(bytes);
            room -= part;
        }
        Ok(7 - room)
    };
    parts.transfer(50, seven).unwrap();
    assert_eq!(*taken.borrow(), source);
}

#[test]
fn what_is_discarded_or_zeroed_reads_as_zero() {
    let file = image(64);
    let disk = Disk::open(&spec(&file, false)).unwrap();
    disk.discard(4096, 8192).unwrap();
    disk.write_zeroes(16384, 512, false).unwrap();
    disk.write_zeroes(17408, 512, true).unwrap();
    let mut content = vec![0; 64 * 512];
    disk.read_bytes(0, &mut content).unwrap();
    for (sector, bytes) in content.chunks(512).enumerate() {
        let zero = (8..24).contains(&sector) || [32, 34].contains(&sector);
        let expected = if zero {
            0
        } else {
            u8::try_from(sector).unwrap()
        };
        assert_eq!(bytes, [expected; 512], "sector {sector}");
    }
}

#[test]
fn a_disk_has_one_writer_or_readers() {
    let file = image(1);
    let writer = Disk::open(&spec(&file, false)).unwrap();
    for read_only in [true, false] {
        let second = Disk::open(&spec(&file, read_only)).unwrap_err();
        assert!(matches!(second, DiskError::InUse { .. }), "{second}");
    }
    drop(writer);
    let reader = Disk::open(&spec(&file, true)).unwrap();
    let _another = Disk::open(&spec(&file, true)).unwrap();
    assert!(Disk::open(&spec(&file, false)).is_err());
    assert!(reader.is_read_only());
    let denied = |r| matches!(r, Err(DiskError::ReadOnly));
    assert!(denied(reader.write_bytes(0, &[1; 512])));
    assert!(denied(reader.discard(0, 512)));
    assert!(denied(reader.write_zeroes(0, 512, false)));
    let memory = memory();
    assert!(denied(reader.write(0, segments(&memory, &[(0, 512)]))));
}

#[test]
fn a_file_that_is_no_disk_is_told_from_one() {
    let file = image(1);
    for bytes in [0, 511, 513] {
        file.as_file().set_len(bytes).unwrap();
        let error = Disk::open(&spec(&file, false)).unwrap_err();
        assert!(matches!(error, DiskError::Size { .. }), "{error}");
    }
    let folder = DiskSpec::of(std::env::temp_dir(), true);
    assert!(matches!(Disk::open(&folder), Err(DiskError::Open { .. })));
}

/// What Debian's `qemu-img` does with a file.
fn qemu_img(arguments: &[&str], file: &TempFile) -> (bool, String) {
    let done = Command::new("qemu-img")
        .args(arguments)
        .arg(file.as_path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    (done.status.success(), text)
}

fn qcow2(file: &TempFile) -> DiskSpec {
    DiskSpec {
        format: Format::Qcow2,
        ..spec(file, false)
    }
}

#[test]
fn an_image_of_qemus_is_read_and_written_as_qemu_would() {
    let (raw, file, memory) = (image(200), TempFile::new().unwrap(), memory());
    let source = raw.as_path().to_str().unwrap();
    let to_qcow2 = ["convert", "-c", "-f", "raw", "-O", "qcow2", source];
    assert!(qemu_img(&to_qcow2, &file).0);
    let disk = Disk::open(&qcow2(&file)).unwrap();
    assert_eq!(disk.sectors(), 200);
    // Over a boundary of clusters, in pieces of guest memory.
    let parts = [(0x1000, 100), (0x3000, 924)];
    disk.read(127 * 512, segments(&memory, &parts)).unwrap();
    let mut read = [0; 1024];
    for (into, (at, _)) in [(0..100, parts[0]), (100..1024, parts[1])] {
        memory
            .read_slice(&mut read[into], GuestAddress(at))
            .unwrap();
    }
    assert_eq!(read, *[[127; 512], [128; 512]].as_flattened());
    memory
        .write_slice(&[0xee; 1024], GuestAddress(0x8000))
        .unwrap();
    disk.write(3 * 512, segments(&memory, &[(0x8000, 1024)]))
        .unwrap();
    disk.write_bytes(7 * 512, &[0xdd; 512]).unwrap();
    disk.write_zeroes(130 * 512, 512, true).unwrap();
    disk.discard(0, 512).unwrap();
    disk.flush().unwrap();
    let mut sector = [0; 512];
    disk.read_bytes(7 * 512, &mut sector).unwrap();
    assert_eq!(sector, [0xdd; 512]);
    assert!(disk.write_bytes(200 * 512, &[1]).is_err());
    // Another process's eyes, while this one has it still: it was flushed.
    let (good, said) = qemu_img(&["check", "-U"], &file);
    assert!(good, "{said}");
    drop(disk);
    let back = TempFile::new().unwrap();
    let source = file.as_path().to_str().unwrap();
    let to_raw = ["convert", "-f", "qcow2", "-O", "raw", source];
    assert!(qemu_img(&to_raw, &back).0);
    let bytes = std::fs::read(back.as_path()).unwrap();
    let number = |sector: usize| bytes[sector * 512 + 511];
    let expected: Vec<u8> = (0..200)
        .map(|sector| match sector {
            0 | 130 => 0,
            3 | 4 => 0xee,
            7 => 0xdd,
            other => other,
        })
        .collect();
    assert_eq!((0..200).map(number).collect::<Vec<u8>>(), expected);
}

#[test]
fn a_qcow2_image_that_leads_to_other_files_or_is_none_is_refused() {
    let (base, file) = (image(8), TempFile::new().unwrap());
    let base = base.as_path().to_str().unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base];
    assert!(qemu_img(&create, &file).0);
    for spec in [qcow2(&file), qcow2(&image(8))] {
        let refused = Disk::open(&spec).unwrap_err();
        assert!(matches!(refused, DiskError::Qcow2 { .. }), "{refused}");
    }
}

#[test]
fn a_ring_stays_where_a_disk_is_opened_again_and_what_ends_by_halves_is_done_anew() {
    let (file, memory) = (image(16), memory());
    let Some(spec) = spec_with_ring(&file, false) else {
        return;
    };
    let ring = Disk::open(&spec).unwrap().ring();
    let mut disk = Disk::open(&spec).unwrap();
    assert_eq!(disk.ring(), ring);
    memory.write_slice(&[0xa5; 512], GuestAddress(0)).unwrap();
    // The last sectors are not there any more, until the write makes them so.
    file.as_file().set_len(14 * 512).unwrap();
    let mut begin = |what, sector: u64, at| {
        let part = segments(&memory, &[(at, 1024)]);
        // SAFETY: the memory lives as long as the disk.
        unsafe { disk.begin(what, sector * 512, &part) }
    };
    let short = begin(Transfer::Read, 13, 0x1000).unwrap();
    let written = begin(Transfer::WriteThrough, 3, 0).unwrap();
    let flushed = begin(Transfer::Flush, 0, 0).unwrap();
    let whole = begin(Transfer::Read, 6, 0x2000).unwrap();
    assert!(matches!(
        begin(Transfer::Read, 15, 0),
        Err(DiskError::Range { .. })
    ));
    let mut ends = std::collections::BTreeMap::new();
    while disk.is_under_way() {
        disk.ended(true, |number, result| {
            ends.insert(number, result.ok());
        });
    }
    let expected = [
        (short, None),
        (written, Some(0)),
        (flushed, Some(0)),
        (whole, Some(1024)),
    ];
    assert_eq!(ends, expected.into());
    let mut read = [0; 1024];
    memory.read_slice(&mut read, GuestAddress(0x2000)).unwrap();
    assert_eq!(read, *[[6; 512], [7; 512]].as_flattened());
    file.as_file().read_exact_at(&mut read, 3 * 512).unwrap();
    assert_eq!(read, *[[0xa5; 512], [0; 512]].as_flattened());
}

#[test]
fn no_more_is_under_way_than_a_ring_has_room_for() {
    let (file, memory) = (image(1), memory());
    let Some(spec) = spec_with_ring(&file, true) else {
        return;
    };
    let mut disk = Disk::open(&spec).unwrap();
    let mut begun = 0;
    for round in 1..4 {
        while !disk.is_full() {
            let part = segments(&memory, &[(begun % 1024 * 512, 512)]);
            // SAFETY: the memory lives as long as the disk.
            unsafe { disk.begin(Transfer::Read, 0, &part) }.unwrap();
            begun += 1;
        }
        // SAFETY: no memory.
        let more = unsafe { disk.begin(Transfer::Flush, 0, &Segments::default()) };
        assert!(more.is_err());
        let mut ended = 0;
        while disk.is_under_way() {
            disk.ended(true, |_, result| ended += u64::from(result.is_ok()));
        }
        assert_eq!(ended * round, begun);
    }
}
