//! The legacy PC's PCI bus with an IDE controller and an NE2000: registers, programmed I/O, bus master, frames.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use paravane::device::ide::Ide;
use paravane::device::ne2000::Ne2000;
use paravane::device::pci::Pci;
use paravane::disk::{Disk, DiskSpec};
use paravane::memory::Memory;
use paravane::net::Net;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

const MEMORY_MIB: u64 = 1;
const SECTORS: u64 = 16;
/// First ports of what answers.
const BASES: [u16; 7] = [0x1f0, 0x170, 0x3f0, 0x370, 0xc000, 0xc100, 0xcf8];
/// Most bytes of one access: a string instruction's.
const STRING_MAX: usize = 1024;

/// One step of the guest, or of the network.
#[derive(Arbitrary, Debug)]
enum Step {
    /// A write to a port near one that answers.
    Write(u8, u8, u32),
    /// A write of another width, or of many words.
    WriteMany(u8, u8, u16, u8),
    /// A read from there.
    Read(u8, u8, u16),
    /// Any port.
    Any(u16, u32),
    /// A store to guest memory: a bus master's table.
    Store(u16, u64),
    /// A frame arrives.
    Frame(u16),
    /// The guest has ended an interrupt.
    Resample,
}

fn near(base: u8, offset: u8) -> u16 {
    BASES[usize::from(base) % BASES.len()] + u16::from(offset % 32)
}

/// Entry.
pub fn run(data: &[u8]) {
    let steps: Vec<Step> = super::arbitrary(data);
    let file = TempFile::new().expect("a file can be had");
    let length = file.as_file().set_len(SECTORS * 512);
    length.expect("the file takes a length");
    let path = file.as_path().to_owned();
    let disk = Disk::open(&DiskSpec::of(path, false));
    let event = || EventFd::new(EFD_NONBLOCK).expect("a descriptor can be had");
    let memory = Memory::new(MEMORY_MIB).expect("a megabyte can be had");
    let ide = Ide::new(
        vec![disk.expect("the file is a disk")],
        [event(), event()],
        &memory,
    );
    let (ours, mut wire) = UnixStream::pair().expect("sockets can be had");
    wire.set_nonblocking(true).expect("a socket need not block");
    let net = Net::over(ours).expect("a socket is a network");
    let card = Ne2000::new(net, event(), event());
    let functions = ide.functions().into_iter().chain([card.function()]);
    let pci = Pci::new(functions.collect());
    let write = |port, data: &[u8]| {
        pci.write(port, data) || ide.write(&pci, port, data) || card.write(&pci, port, data)
    };
    for step in steps {
        match step {
            Step::Write(base, offset, value) => {
                let width = [1, 1, 2, 4][usize::from(base >> 6)];
                write(near(base, offset), &value.to_le_bytes()[..width]);
            }
            Step::WriteMany(base, offset, count, value) => {
                let count = usize::from(count) % STRING_MAX;
                write(near(base, offset), &vec![value; count]);
            }
            Step::Read(base, offset, count) => {
                let mut data = vec![0; 1 + usize::from(count) % STRING_MAX];
                let port = near(base, offset);
                let _ = pci.read(port, &mut data)
                    || ide.read(&pci, port, &mut data)
                    || card.read(&pci, port, &mut data);
            }
            Step::Any(port, value) => {
                write(port, &value.to_le_bytes());
            }
            Step::Store(at, value) => {
                // It need not fit.
                let _ = memory.write_obj(u64::from(at) << 5, &value);
            }
            Step::Frame(length) => {
                let length = u32::from(length) % 2048;
                let frame = vec![0x55; usize::try_from(length).unwrap_or(0)];
                // A wire that is full loses it.
                let _ = wire.write(&[&length.to_be_bytes(), &frame[..]].concat());
                card.deliver();
            }
            Step::Resample => {
                card.resample();
            }
        }
        // What the card has sent.
        let _ = wire.read(&mut [0; 4096]);
    }
}
