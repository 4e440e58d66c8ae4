//! What the jobs are made of: pipes, gates, mappings, threads, futexes and signals, without a C library.

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::AtomicU32;

use crate::sys::{self, EAGAIN, EINTR, Errno, Fd, call, call6};

/// How many tasks a job has at most.
pub(crate) const TASKS: usize = 128;

const SYS_MMAP: usize = 9;
const SYS_MPROTECT: usize = 10;
const SYS_MUNMAP: usize = 11;
const SYS_RT_SIGACTION: usize = 13;
const SYS_PIPE: usize = 22;
const SYS_NANOSLEEP: usize = 35;
const SYS_GETPID: usize = 39;
const SYS_KILL: usize = 62;
const SYS_FUTEX: usize = 202;

const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;

const FUTEX_WAIT: usize = 0;
const FUTEX_WAKE: usize = 1;

const SIGUSR1: usize = 10;
const SIGCHLD: usize = 17;
const SA_RESTORER: u64 = 0x0400_0000;

const CLONE_VM: usize = 0x100;
const CLONE_FILES: usize = 0x400;

/// The stack of a thread: it calls a few functions of ours.
const STACK: usize = 64 * 1024;

// A thread begins on a stack of its own, on which its function and its argument lie; only the parent returns. Signals
// come back through `rt_sigreturn`, which is told nothing: all it needs lies on the stack.
global_asm!(
    ".globl paravane_clone",
    "paravane_clone:",
    "mov eax, 56",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "pop rax",
    "pop rdi",
    "call rax",
    "ud2",
    "2: ret",
    ".globl paravane_restore",
    "paravane_restore:",
    "mov eax, 15",
    "syscall",
    "ud2",
    ".globl paravane_signal",
    "paravane_signal:",
    "ret",
);

unsafe extern "C" {
    /// `clone(flags, stack)`; the new task takes a function and its argument from the stack.
    fn paravane_clone(flags: usize, stack: *mut u8) -> isize;
    fn paravane_restore();
    fn paravane_signal();
}

/// Both ends of a pipe.
#[derive(Clone, Copy)]
pub(crate) struct Pipe {
    pub(crate) reader: Fd,
    pub(crate) writer: Fd,
}

impl Pipe {
    pub(crate) fn close(self) {
        self.reader.close();
        self.writer.close();
    }
}

/// Makes a pipe.
pub(crate) fn pipe() -> Result<Pipe, Errno> {
    let mut ends = [0_u32; 2];
    // SAFETY: `pipe` writes two descriptors of four bytes each.
    unsafe {
        call(
            SYS_PIPE,
            [ends.as_mut_ptr().expose_provenance(), 0, 0, 0, 0],
        )
    }?;
    let [reader, writer] = ends.map(|end| Fd::new(end as usize));
    Ok(Pipe { reader, writer })
}

/// Where tasks wait until the job begins: each reads one byte of a pipe.
#[derive(Clone, Copy)]
pub(crate) struct Gate(Pipe);

impl Gate {
    pub(crate) fn new() -> Result<Self, Errno> {
        pipe().map(Self)
    }

    /// Waits until the gate is open.
    pub(crate) fn wait(self) {
        let _ = self.0.reader.read(&mut [0]);
    }

    /// Lets `tasks` tasks through.
    pub(crate) fn open(self, tasks: usize) -> Result<(), Errno> {
        let bytes = [0; TASKS];
        self.0
            .writer
            .write_all(bytes.get(..tasks).unwrap_or(&bytes))
    }

    pub(crate) fn close(self) {
        self.0.close();
    }
}

/// Anonymous memory, until it is unmapped.
///
/// # Invariants
///
/// `length` bytes at `start` are mapped, readable, and nobody else's.
#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    /// Memory of this address space.
    pub(crate) fn private(length: usize) -> Result<Self, Errno> {
        Self::new(length, MAP_PRIVATE)
    }

    /// Memory that this process shares with those it forks.
    pub(crate) fn shared(length: usize) -> Result<Self, Errno> {
        Self::new(length, MAP_SHARED)
    }

    fn new(length: usize, kind: usize) -> Result<Self, Errno> {
        let (access, kind) = (PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS);
        // SAFETY: the kernel chooses an address where nothing is.
        let start = unsafe { call6(SYS_MMAP, [0, length, access, kind, usize::MAX, 0]) }?;
        // INVARIANT: the kernel mapped `length` bytes there.
        Ok(Self {
            start: ptr::with_exposed_provenance_mut(start),
            length,
        })
    }

    /// Its bytes.
    pub(crate) fn length(self) -> usize {
        self.length
    }

    /// Writes a byte, so that its page is there and dirty. `offset` beyond the end is none.
    pub(crate) fn touch(self, offset: usize) {
        if offset < self.length {
            // SAFETY: `offset` lies in the mapping. Volatile, so that the touch is made.
            unsafe { self.start.add(offset).write_volatile(1) }
        }
    }

    /// The four bytes at `offset`, a multiple of four within the mapping, as a word that tasks share.
    pub(crate) fn word<'a>(self, offset: usize) -> &'a AtomicU32 {
        let offset = offset.min(self.length - 4) & !3;
        // SAFETY: the word is aligned and within the mapping, which its user unmaps last.
        unsafe { AtomicU32::from_ptr(self.start.add(offset).cast()) }
    }

    /// Allows or forbids writing to some pages.
    pub(crate) fn protect(self, offset: usize, length: usize, writable: bool) -> Result<(), Errno> {
        let access = if writable {
            PROT_READ | PROT_WRITE
        } else {
            PROT_READ
        };
        let start = self.start.addr() + offset.min(self.length);
        // SAFETY: the pages stay mapped and readable.
        unsafe { call(SYS_MPROTECT, [start, length, access, 0, 0]) }.map(drop)
    }

    /// Writes `count` bytes of the mapping to a file.
    pub(crate) fn write_to(self, file: Fd, count: usize) -> Result<(), Errno> {
        // SAFETY: the bytes are mapped, and nothing writes to them meanwhile.
        let bytes = unsafe { core::slice::from_raw_parts(self.start, count.min(self.length)) };
        file.write_all(bytes)
    }

    /// Fills the whole mapping from a place of a file.
    pub(crate) fn read_at(self, file: Fd, offset: usize) -> Result<(), Errno> {
        // SAFETY: the bytes are mapped and writable, and nobody else uses them meanwhile.
        let count = unsafe {
            file.transfer(
                sys::SYS_PREAD64,
                self.start.expose_provenance(),
                self.length,
                offset,
            )
        }?;
        if count == self.length {
            Ok(())
        } else {
            Err(sys::ENOSPC)
        }
    }

    /// Writes the whole mapping to a place of a file.
    pub(crate) fn write_at(self, file: Fd, offset: usize) -> Result<(), Errno> {
        // SAFETY: the bytes are mapped, and nobody writes to them meanwhile.
        let count = unsafe {
            file.transfer(
                sys::SYS_PWRITE64,
                self.start.expose_provenance(),
                self.length,
                offset,
            )
        }?;
        if count == self.length {
            Ok(())
        } else {
            Err(sys::ENOSPC)
        }
    }

    /// Fills the mapping from a file; returns how many bytes came.
    pub(crate) fn read_from(self, file: Fd) -> Result<usize, Errno> {
        // SAFETY: the bytes are mapped and writable, and nobody else uses them meanwhile.
        let bytes = unsafe { core::slice::from_raw_parts_mut(self.start, self.length) };
        file.read(bytes)
    }

    /// Gives the memory back. No word of it may be used any more.
    pub(crate) fn unmap(self) -> Result<(), Errno> {
        let arguments = [self.start.expose_provenance(), self.length, 0, 0, 0];
        // SAFETY: the mapping is this one's, and its users have ended.
        unsafe { call(SYS_MUNMAP, arguments) }.map(drop)
    }
}

/// Threads that run one function each.
pub(crate) struct Threads {
    stacks: [Option<Mapping>; TASKS],
}

impl Threads {
    /// Starts `count` threads, which share memory and open files with this one. They must be joined before anything that
    /// `body` borrows ends.
    pub(crate) fn start<F: Fn() + Sync>(count: usize, body: &F) -> Result<Self, Errno> {
        extern "C" fn begin<F: Fn()>(body: *const F) -> ! {
            // SAFETY: `start` passes a reference that lives until the thread is joined.
            unsafe { (*body)() };
            sys::exit(0)
        }
        let begin: extern "C" fn(*const F) -> ! = begin::<F>;
        let mut stacks = [None; TASKS];
        for slot in stacks.iter_mut().take(count) {
            let stack = Mapping::private(STACK)?;
            *slot = Some(stack);
            // SAFETY: the two words lie at the end of the stack, which is aligned to a page. 32 bytes below the end, so
            // that the stack is aligned as the ABI wants it when both are popped.
            let top = unsafe { stack.start.add(STACK - 32) };
            // SAFETY: as above; the stack is nobody else's yet.
            unsafe {
                top.cast::<usize>().write(begin as usize);
                top.cast::<*const F>().add(1).write(body);
            }
            // SAFETY: the new task uses its own stack, and memory that `body`, being `Sync`, may share.
            let result = unsafe { paravane_clone(CLONE_VM | CLONE_FILES | SIGCHLD, top) };
            if result < 0 {
                return Err(Errno(result.unsigned_abs()));
            }
        }
        Ok(Self { stacks })
    }

    /// Waits for all of them.
    pub(crate) fn join(&self) -> Result<(), Errno> {
        self.wait()?;
        self.unmap()
    }

    /// The same, and keeps their stacks.
    pub(crate) fn wait(&self) -> Result<(), Errno> {
        // A wait is for any of them, so no stack is given back before all have ended.
        self.stacks
            .iter()
            .flatten()
            .try_for_each(|_| sys::wait().map(drop))
    }

    /// Gives their stacks back, once all have ended.
    pub(crate) fn unmap(&self) -> Result<(), Errno> {
        self.stacks.iter().flatten().try_for_each(|s| s.unmap())
    }
}

/// Sleeps while the word has this value. Woken, or too late to sleep: the caller looks again.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32) -> Result<(), Errno> {
    let address = word.as_ptr().expose_provenance();
    // SAFETY: the word lives as long as the call; no timeout.
    match unsafe { call(SYS_FUTEX, [address, FUTEX_WAIT, value as usize, 0, 0]) } {
        Ok(_) | Err(EAGAIN | EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Wakes one that sleeps on the word.
pub(crate) fn futex_wake(word: &AtomicU32) -> Result<(), Errno> {
    let address = word.as_ptr().expose_provenance();
    // SAFETY: the word lives as long as the call.
    unsafe { call(SYS_FUTEX, [address, FUTEX_WAKE, 1, 0, 0]) }.map(drop)
}

/// Installs a handler that does nothing.
pub(crate) fn handle_signals() -> Result<(), Errno> {
    let (handler, restorer): (unsafe extern "C" fn(), unsafe extern "C" fn()) =
        (paravane_signal, paravane_restore);
    // The kernel's struct sigaction: handler, flags, restorer, mask.
    let action = [
        handler as usize as u64,
        SA_RESTORER,
        restorer as usize as u64,
        0,
    ];
    let action = action.as_ptr().expose_provenance();
    // SAFETY: the action has the kernel's layout, and its mask eight bytes; the handler touches nothing.
    unsafe { call(SYS_RT_SIGACTION, [SIGUSR1, action, 0, 8, 0]) }.map(drop)
}

/// Sends this process the signal, and returns when it has been handled.
pub(crate) fn signal_myself() -> Result<(), Errno> {
    // SAFETY: no arguments.
    let me = unsafe { call(SYS_GETPID, [0; 5]) }?;
    // SAFETY: two numbers; the handler is installed.
    unsafe { call(SYS_KILL, [me, SIGUSR1, 0, 0, 0]) }.map(drop)
}

/// Sleeps.
pub(crate) fn sleep_ns(nanoseconds: u64) -> Result<(), Errno> {
    let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    let time = time.as_ptr().expose_provenance();
    // SAFETY: a `struct timespec` to read; what is left of an interrupted sleep is not asked for.
    unsafe { call(SYS_NANOSLEEP, [time, 0, 0, 0, 0]) }.map(drop)
}
