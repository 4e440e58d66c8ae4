//! The system calls that the init makes, without a C library: its start-up alone would execute dozens of CPUIDs,
//! each of which is an exit, before the first line of ours.

use core::arch::{asm, global_asm};
use core::ffi::CStr;

/// The number with which the kernel refused a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) usize);

/// The file or the device is not there.
pub(crate) const ENOENT: Errno = Errno(2);
/// What came is not what was to come.
pub(crate) const EIO: Errno = Errno(5);
/// A child that is not there, or that ended badly.
pub(crate) const ECHILD: Errno = Errno(10);
/// A signal came first.
pub(crate) const EINTR: Errno = Errno(4);
/// No room, or nothing at all.
pub(crate) const ENOSPC: Errno = Errno(28);
/// Not what is there: for a mount, no file system of this kind.
pub(crate) const EINVAL: Errno = Errno(22);
/// Already mounted, or in use.
pub(crate) const EBUSY: Errno = Errno(16);
/// A read of `/dev/kmsg` missed records that were overwritten; the next read goes on after them.
pub(crate) const EPIPE: Errno = Errno(32);
/// No more records, on a non-blocking descriptor.
pub(crate) const EAGAIN: Errno = Errno(11);

/// `open` flags: read only, write only, both; no waiting; no controlling terminal.
pub(crate) const O_RDONLY: usize = 0;
pub(crate) const O_WRONLY: usize = 1;
pub(crate) const O_RDWR: usize = 2;
pub(crate) const O_NOCTTY: usize = 0o400;
pub(crate) const O_NONBLOCK: usize = 0o4000;
/// Past the page cache.
pub(crate) const O_DIRECT: usize = 0o40_000;
pub(crate) const O_DIRECTORY: usize = 0o200_000;

/// Clocks of `clock_gettime`.
pub(crate) const CLOCK_REALTIME: usize = 0;
pub(crate) const CLOCK_MONOTONIC: usize = 1;

/// The last argument of `reboot`.
pub(crate) const REBOOT_RESTART: usize = 0x0123_4567;
pub(crate) const REBOOT_POWER_OFF: usize = 0x4321_fedc;
pub(crate) const REBOOT_HALT: usize = 0xcdef_0123;

const SYS_READ: usize = 0;
const SYS_WRITE: usize = 1;
const SYS_OPEN: usize = 2;
const SYS_CLOSE: usize = 3;
const SYS_LSEEK: usize = 8;
const SYS_IOCTL: usize = 16;
pub(crate) const SYS_PREAD64: usize = 17;
pub(crate) const SYS_PWRITE64: usize = 18;
const SYS_DUP: usize = 32;
const SYS_DUP2: usize = 33;
const SYS_FORK: usize = 57;
const SYS_EXECVE: usize = 59;
const SYS_WAIT4: usize = 61;
const SYS_FDATASYNC: usize = 75;
const SYS_CHDIR: usize = 80;
const SYS_GETPPID: usize = 110;
const SYS_SETSID: usize = 112;
const SYS_CHROOT: usize = 161;
const SYS_SYNC: usize = 162;
const SYS_MOUNT: usize = 165;
const SYS_REBOOT: usize = 169;
const SYS_IOPERM: usize = 173;
const SYS_GETDENTS64: usize = 217;
const SYS_CLOCK_GETTIME: usize = 228;
const SYS_EXIT_GROUP: usize = 231;
const SYS_FINIT_MODULE: usize = 313;

const TCSBRK: usize = 0x5409;
const TIOCSCTTY: usize = 0x540e;

// The kernel enters here with argc, argv and the environment on the stack and nothing else. The stack pointer goes to
// `start` as its argument; the stack is aligned already, and the call makes it what the ABI wants.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym crate::start,
);

/// Makes system call `number`.
///
/// # Safety
///
/// The arguments must be what the kernel's call `number` takes: its pointers valid for what it reads and writes.
pub(crate) unsafe fn call(number: usize, arguments: [usize; 5]) -> Result<usize, Errno> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the caller's promise; there is no sixth argument.
    unsafe { call6(number, [a, b, c, d, e, 0]) }
}

/// Makes a system call of six arguments.
///
/// # Safety
///
/// As [`call`].
pub(crate) unsafe fn call6(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    let result: usize;
    // SAFETY: the syscall instruction changes rax, rcx and r11 only; memory is changed as the caller answers for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    // The kernel returns -1 to -4095 for an error.
    let negated = result.wrapping_neg();
    if (1..=4095).contains(&negated) {
        Err(Errno(negated))
    } else {
        Ok(result)
    }
}

/// An open file. Never closed by dropping: what stays open until the machine is off needs no close.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fd(usize);

impl Fd {
    /// Standard output, which the kernel opened on the console if the initramfs has `/dev/console`.
    pub(crate) const STDOUT: Self = Self(1);

    /// The descriptor of that number.
    pub(crate) const fn new(number: usize) -> Self {
        Self(number)
    }

    /// Its number.
    pub(crate) const fn number(self) -> usize {
        self.0
    }

    /// Another descriptor of this open file.
    pub(crate) fn duplicate(self) -> Result<Self, Errno> {
        // SAFETY: dup takes a number.
        unsafe { call(SYS_DUP, [self.0, 0, 0, 0, 0]) }.map(Self)
    }

    /// Reads at most `buffer.len()` bytes.
    pub(crate) fn read(self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let arguments = [
            self.0,
            buffer.as_mut_ptr().expose_provenance(),
            buffer.len(),
            0,
            0,
        ];
        // SAFETY: the buffer is valid for writes of its length.
        unsafe { call(SYS_READ, arguments) }
    }

    /// Writes the whole of `bytes`.
    pub(crate) fn write_all(self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let arguments = [
                self.0,
                bytes.as_ptr().expose_provenance(),
                bytes.len(),
                0,
                0,
            ];
            // SAFETY: the bytes are valid for reads of their length.
            let written = unsafe { call(SYS_WRITE, arguments) }?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes one byte at an offset: for `/dev/port`, an OUT to that port.
    pub(crate) fn write_byte_at(self, offset: usize, byte: u8) -> Result<(), Errno> {
        let arguments = [self.0, (&raw const byte).expose_provenance(), 1, offset, 0];
        // SAFETY: `byte` is one readable byte.
        unsafe { call(SYS_PWRITE64, arguments) }.map(drop)
    }

    /// Where it ends, in bytes.
    pub(crate) fn size(self) -> Result<usize, Errno> {
        const SEEK_END: usize = 2;
        // SAFETY: lseek takes numbers.
        unsafe { call(SYS_LSEEK, [self.0, 0, SEEK_END, 0, 0]) }
    }

    /// Waits until what was written is on the disk.
    pub(crate) fn sync(self) -> Result<(), Errno> {
        // SAFETY: fdatasync takes a number.
        unsafe { call(SYS_FDATASYNC, [self.0, 0, 0, 0, 0]) }.map(drop)
    }

    /// Reads or writes memory at an offset.
    ///
    /// # Safety
    ///
    /// `number` is `SYS_PREAD64` or `SYS_PWRITE64`, and the memory is valid for it.
    pub(crate) unsafe fn transfer(
        self,
        number: usize,
        memory: usize,
        count: usize,
        offset: usize,
    ) -> Result<usize, Errno> {
        // SAFETY: the caller's promise.
        unsafe { call(number, [self.0, memory, count, offset, 0]) }
    }

    /// Waits until the terminal has sent everything (what `tcdrain` does).
    pub(crate) fn drain(self) -> Result<(), Errno> {
        // SAFETY: TCSBRK takes a plain number.
        unsafe { call(SYS_IOCTL, [self.0, TCSBRK, 1, 0, 0]) }.map(drop)
    }

    /// Makes this terminal the controlling one of the calling session.
    pub(crate) fn make_controlling(self) -> Result<(), Errno> {
        // SAFETY: TIOCSCTTY takes a plain number.
        unsafe { call(SYS_IOCTL, [self.0, TIOCSCTTY, 1, 0, 0]) }.map(drop)
    }

    /// Makes descriptor `number` another name of this one.
    pub(crate) fn duplicate_as(self, number: usize) -> Result<(), Errno> {
        // SAFETY: dup2 takes two numbers.
        unsafe { call(SYS_DUP2, [self.0, number, 0, 0, 0]) }.map(drop)
    }

    /// Reads directory entries (`struct linux_dirent64`).
    pub(crate) fn entries(self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let arguments = [
            self.0,
            buffer.as_mut_ptr().expose_provenance(),
            buffer.len(),
            0,
            0,
        ];
        // SAFETY: the buffer is valid for writes of its length.
        unsafe { call(SYS_GETDENTS64, arguments) }
    }

    /// Loads this file as a kernel module.
    pub(crate) fn load_module(self) -> Result<(), Errno> {
        let arguments = [self.0, c"".as_ptr().expose_provenance(), 0, 0, 0];
        // SAFETY: the parameters are an empty C string.
        unsafe { call(SYS_FINIT_MODULE, arguments) }.map(drop)
    }

    /// Closes the file.
    pub(crate) fn close(self) {
        // SAFETY: close takes a number; there is nothing to do about an error.
        let _ = unsafe { call(SYS_CLOSE, [self.0, 0, 0, 0, 0]) };
    }
}

/// Opens a file that exists.
pub(crate) fn open(path: &CStr, flags: usize) -> Result<Fd, Errno> {
    // SAFETY: the path is a C string.
    unsafe {
        call(
            SYS_OPEN,
            [path.as_ptr().expose_provenance(), flags, 0, 0, 0],
        )
    }
    .map(Fd)
}

/// Mounts a file system that has no device.
pub(crate) fn mount(kind: &CStr, target: &CStr) -> Result<(), Errno> {
    let kind = kind.as_ptr().expose_provenance();
    // SAFETY: source, target and type are C strings; there are no flags and no data.
    unsafe {
        call(
            SYS_MOUNT,
            [kind, target.as_ptr().expose_provenance(), kind, 0, 0],
        )
    }
    .map(drop)
}

/// Mounts a disk's file system for reading.
pub(crate) fn mount_disk(disk: &CStr, kind: &CStr, target: &CStr) -> Result<(), Errno> {
    const READ_ONLY: usize = 1;
    let [disk, target, kind] = [disk, target, kind].map(|text| text.as_ptr().expose_provenance());
    // SAFETY: source, target and type are C strings; there is no data.
    unsafe { call(SYS_MOUNT, [disk, target, kind, READ_ONLY, 0]) }.map(drop)
}

/// Makes a folder this process's root.
pub(crate) fn change_root(folder: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is a C string.
    unsafe {
        call(
            SYS_CHROOT,
            [folder.as_ptr().expose_provenance(), 0, 0, 0, 0],
        )
    }?;
    // SAFETY: the path is a C string.
    unsafe { call(SYS_CHDIR, [c"/".as_ptr().expose_provenance(), 0, 0, 0, 0]) }.map(drop)
}

/// The cheapest system call there is.
pub(crate) fn getppid() {
    // SAFETY: no arguments.
    let _ = unsafe { call(SYS_GETPPID, [0; 5]) };
}

/// A clock's time in nanoseconds.
pub(crate) fn clock_ns(clock: usize) -> Result<u64, Errno> {
    let mut time = [0_u64; 2];
    // SAFETY: `time` has the size and layout of `struct timespec`.
    unsafe {
        call(
            SYS_CLOCK_GETTIME,
            [clock, time.as_mut_ptr().expose_provenance(), 0, 0, 0],
        )
    }?;
    Ok(time[0]
        .saturating_mul(1_000_000_000)
        .saturating_add(time[1]))
}

/// Asks for the right to use one I/O port directly.
pub(crate) fn allow_port(port: u16) -> Result<(), Errno> {
    // SAFETY: ioperm takes three numbers.
    unsafe { call(SYS_IOPERM, [usize::from(port), 1, 1, 0, 0]) }.map(drop)
}

/// Writes one byte to an I/O port that [`allow_port`] allowed.
pub(crate) fn out_byte(port: u16, byte: u8) {
    // SAFETY: the only port that this program allows itself is the mark port, which has no effect on memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags))
    };
}

/// Forks: `Ok(0)` in the child, the child's process id in the parent.
pub(crate) fn fork() -> Result<usize, Errno> {
    // SAFETY: this program has one thread and no state that two processes could not both own.
    unsafe { call(SYS_FORK, [0; 5]) }
}

/// Waits for any child to end and returns its process id.
pub(crate) fn wait() -> Result<usize, Errno> {
    wait_status().map(|(child, _)| child)
}

/// Waits for any child to end and returns its process id, and how it ended: 0 is well.
pub(crate) fn wait_status() -> Result<(usize, u32), Errno> {
    let mut status = 0_u32;
    let place = (&raw mut status).expose_provenance();
    // SAFETY: -1 is any child; the kernel writes four bytes to `status`, which lives until the call is over.
    let child = unsafe { call(SYS_WAIT4, [usize::MAX, place, 0, 0, 0]) }?;
    Ok((child, status))
}

/// Starts a session.
pub(crate) fn setsid() -> Result<(), Errno> {
    // SAFETY: no arguments.
    unsafe { call(SYS_SETSID, [0; 5]) }.map(drop)
}

/// Replaces this process by the program at `path`; returns only when that failed.
pub(crate) fn execute<const A: usize, const E: usize>(
    path: &CStr,
    arguments: [&CStr; A],
    environment: [&CStr; E],
) -> Errno {
    // Two null-terminated arrays; eight entries are plenty for what this program starts.
    let mut argv = [0_usize; 8];
    let mut envp = [0_usize; 8];
    for (slot, argument) in argv[..7].iter_mut().zip(arguments) {
        *slot = argument.as_ptr().expose_provenance();
    }
    for (slot, variable) in envp[..7].iter_mut().zip(environment) {
        *slot = variable.as_ptr().expose_provenance();
    }
    let path = path.as_ptr().expose_provenance();
    let (argv, envp) = (
        argv.as_ptr().expose_provenance(),
        envp.as_ptr().expose_provenance(),
    );
    // SAFETY: the path is a C string, and both arrays are C strings ended by a null pointer.
    match unsafe { call(SYS_EXECVE, [path, argv, envp, 0, 0]) } {
        Err(errno) => errno,
        Ok(_) => Errno(0),
    }
}

/// Writes what the file systems hold back, then restarts, powers off or halts the machine.
pub(crate) fn reboot(how: usize) -> Errno {
    // SAFETY: sync takes no arguments; reboot takes its two magic numbers and a command, and ends the machine, which
    // is what the caller wants.
    unsafe {
        let _ = call(SYS_SYNC, [0; 5]);
        match call(SYS_REBOOT, [0xfee1_dead, 0x2812_1969, how, 0, 0]) {
            Err(errno) => errno,
            Ok(_) => Errno(0),
        }
    }
}

/// Ends this process; for PID 1 that is a kernel panic.
pub(crate) fn exit(code: usize) -> ! {
    loop {
        // SAFETY: exit_group takes a number and does not return.
        let _ = unsafe { call(SYS_EXIT_GROUP, [code, 0, 0, 0, 0]) };
    }
}

// What the compiler calls for copies and comparisons, and what a C library would bring.

/// Copies bytes that do not overlap.
///
/// # Safety
///
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller gives `count` readable bytes at `from` and writable ones at `to`; DF is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies bytes that may overlap.
///
/// # Safety
///
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: `to` is before `from` or past its end, so that a forward copy reads each byte before it is written.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller gives `count` bytes at both (not zero, or the branch above had taken it); a backward copy
    // reads each byte before it is written, and DF is cleared again, as the ABI wants it.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rsi") from.add(count - 1) => _,
            inout("rdi") to.add(count - 1) => _, options(nostack));
    }
    to
}

/// Fills bytes.
///
/// # Safety
///
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller gives `count` writable bytes at `to`; stosb stores the low byte of eax; DF is clear.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("eax") byte,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares bytes.
///
/// # Safety
///
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    let mut index = 0;
    while index < count {
        // SAFETY: `index` is below `count`, and the caller gives `count` readable bytes at both. Volatile, so that
        // the compiler does not make a call to memcmp of this loop.
        let (a, b) = unsafe {
            (
                left.add(index).read_volatile(),
                right.add(index).read_volatile(),
            )
        };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        index += 1;
    }
    0
}

/// Compares bytes for equality only.
///
/// # Safety
///
/// As C's `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, count) }
}

/// The length of a C string, which `CStr` wants.
///
/// # Safety
///
/// As C's `strlen`.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller gives a string with a zero at its end, and nothing after it is read. Volatile as above.
    while unsafe { string.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// The unwinder's hook, which the compiler's ready-made `core` names. Nothing unwinds here: a panic ends the process.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
