//! Exit counts from KVM's binary statistics descriptors.
//!
//! Each vCPU (and the VM) has a descriptor that is read with `pread`; unlike debugfs it needs no
//! privilege and belongs to this guest alone. Source: Documentation/virt/kvm/api.rst, 4.133.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `KVM_GET_STATS_FD`: `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Longest name and largest table we believe.
const NAME_MAX: u32 = 256;
const DESCRIPTORS_MAX: u32 = 1024;

#[derive(Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    flags: u32,
    name_size: u32,
    num_desc: u32,
    id_offset: u32,
    desc_offset: u32,
    data_offset: u32,
}

#[derive(Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    flags: u32,
    exponent: i16,
    size: u16,
    offset: u32,
    bucket_size: u32,
}

/// The statistics of one vCPU or VM. A host without the descriptor has none.
#[derive(Debug)]
pub struct Counters {
    file: File,
    /// Name and file offset of each scalar.
    scalars: Vec<(String, u64)>,
    exits: Option<u64>,
    /// Exits for the host's interrupts, and interrupts that the guest was given.
    interrupts: Option<(u64, u64)>,
}

impl Counters {
    /// Opens the statistics of a vCPU or VM descriptor; `None` where the host has none.
    pub fn open(of: &impl AsRawFd) -> Option<Self> {
        // SAFETY: KVM_GET_STATS_FD takes no argument and touches no memory of ours.
        let fd = unsafe { libc::ioctl(of.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the ioctl has just given us this descriptor, and nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut header = Header::default();
        file.read_exact_at(header.as_mut_bytes(), 0).ok()?;
        if header.name_size > NAME_MAX || header.num_desc > DESCRIPTORS_MAX {
            return None;
        }
        let stride = size_of::<Descriptor>() + header.name_size as usize;
        let mut table = vec![0; stride * header.num_desc as usize];
        let at = u64::from(header.desc_offset);
        file.read_exact_at(&mut table, at).ok()?;
        let mut scalars = Vec::new();
        for entry in table.chunks_exact(stride) {
            let (descriptor, name) = Descriptor::read_from_prefix(entry).ok()?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if descriptor.size == 1 {
                let name = String::from_utf8_lossy(name).into_owned();
                scalars.push((
                    name,
                    u64::from(header.data_offset) + u64::from(descriptor.offset),
                ));
            }
        }
        let find = |wanted| scalars.iter().find(|(name, _)| name == wanted);
        let at = |name| find(name).map(|(_, at)| *at);
        let (exits, interrupts) = (at("exits"), at("irq_exits").zip(at("irq_injections")));
        Some(Self {
            file,
            scalars,
            exits,
            interrupts,
        })
    }

    fn read(&self, at: u64) -> u64 {
        let mut value = [0; 8];
        self.file
            .read_exact_at(&mut value, at)
            .map_or(0, |()| u64::from_ne_bytes(value))
    }

    /// Exits so far, of whatever reason: those to the VMM and those that KVM serves itself.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits.map_or(0, |at| self.read(at))
    }

    /// Exits so far for interrupts that were the host's own business. Each interrupt that the guest was given may have
    /// come as one, so as many are taken for the guest's.
    #[must_use]
    pub fn host_exits(&self) -> u64 {
        self.interrupts.map_or(0, |(all, guest)| {
            self.read(all).saturating_sub(self.read(guest))
        })
    }

    /// Adds every scalar to `sums`, under its name.
    pub fn add_to(&self, sums: &mut BTreeMap<String, u64>) {
        for (name, at) in &self.scalars {
            *sums.entry(name.clone()).or_default() += self.read(*at);
        }
    }
}
