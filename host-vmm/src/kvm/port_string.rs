//! An exit for a port with several bytes: one wide access, or a string instruction's many narrow ones.
//!
//! KVM tells which, and the crate that decodes exits does not.

use kvm_ioctls::VcpuFd;

/// What the last exit of `fd` was for, which was for a port: calls `each` with the bytes of every access that is a byte, or with all bytes of
/// wider ones, since a register as wide as that takes strings.
pub(crate) fn each(fd: &mut VcpuFd, mut each: impl FnMut(&mut [u8])) {
    let run = fd.get_kvm_run();
    // SAFETY: the exit was for a port, so this is the union's field.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (size, count) = (usize::from(io.size), io.count as usize);
    let Ok(offset) = usize::try_from(io.data_offset) else {
        return;
    };
    let start = std::ptr::from_mut(run).cast::<u8>();
    // SAFETY: KVM has so many bytes there, inside of what is mapped of the vCPU, and leaves them alone until it runs again; `run` is not
    // used any more.
    let data = unsafe { std::slice::from_raw_parts_mut(start.add(offset), size * count) };
    let width = if size == 1 { 1 } else { data.len().max(1) };
    data.chunks_mut(width).for_each(&mut each);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    use paravane_reference_host::or_skipped;
    use vmm_sys_util::tempfile::TempFile;

    use crate::config::{Config, Profile};
    use crate::console::Console;
    use crate::doctor::image;
    use crate::stats::Outcome;
    use crate::vm::{RunOptions, Vm};

    const DATA: u64 = 0x80_0000;

    /// `rep outsb` of four bytes to the UART; `rep insb` of four from its scratch register, which has 0x5a; reset.
    const CODE: [u8; 42] = [
        0x66, 0xba, 0xf8, 0x03, 0xbe, 0x00, 0x00, 0x80, 0x00, 0xb9, 0x04, 0x00, 0x00, 0x00, 0xf3,
        0x6e, 0x66, 0xba, 0xff, 0x03, 0xb0, 0x5a, 0xee, 0xbf, 0x04, 0x00, 0x80, 0x00, 0xb9, 0x04,
        0x00, 0x00, 0x00, 0xf3, 0x6c, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd,
    ];

    #[test]
    fn a_string_to_a_register_of_a_byte_is_as_many_bytes() {
        if or_skipped(crate::kvm::open()).is_none() {
            return;
        }
        let file = TempFile::new().unwrap();
        file.as_file().write_all(image::ELF).unwrap();
        let config = Config {
            watchdog: Some(Duration::from_secs(60)),
            ..Config::of(Profile::Full, file.as_path().to_owned())
        };
        let console = Console::memory().unwrap();
        let mut vm = Vm::new(config, console.clone(), Instant::now()).unwrap();
        let memory = vm.memory().clone();
        vm.boot().unwrap();
        let entry = u64::from_le_bytes(image::ELF[24..32].try_into().unwrap());
        memory.write(entry, &CODE).unwrap();
        memory.write(DATA, b"text----").unwrap();
        let stats = vm.run(RunOptions::default()).unwrap();
        assert_eq!(stats.outcome, Outcome::Reboot, "{:?}", stats.message);
        assert_eq!(console.contents(), b"text");
        let mut read = [0; 8];
        memory.read(DATA, &mut read).unwrap();
        assert_eq!(&read, b"textZZZZ");
    }
}
