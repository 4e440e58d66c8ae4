//! The jobs: small workloads between two marks, each with a number of rounds.
//!
//! `job=NAME:ROUNDS` or `job=NAME:ROUNDS:TASKS` runs one; a program's command follows as the last part. What a round is stands beside each in [`Work`]; the data files
//! in `benches/jobs` say what is made of it. Helpers (processes and threads) are started before the first mark and wait
//! at a [gate](Gate) where they would otherwise begin by themselves.

use core::ffi::CStr;
use core::fmt::Write as _;

use crate::disk::Request;
use crate::net::Talk;
use crate::sys::{self, Errno, Fd};
use crate::task::{self, Gate, Mapping};
use crate::text::{Text, number};
use crate::{LINE, Mark, MarkPort, PAGE, complain, disk, hash, memory, naps, net, program, sched};

/// How many jobs one launch runs at most.
pub(crate) const JOBS: usize = 24;

/// What a chunk of the pipe's bandwidth job is; also what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Pages that the page-fault job maps at a time.
const FAULT_PAGES: usize = 1024;

/// A workload's kind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A round is one byte to the console, and at the end the wait until all are out.
    Console,
    /// The cheapest system call there is.
    Null,
    /// Reads the monotonic clock by a system call.
    Clock,
    /// Opens and closes a file.
    Open,
    /// A byte to another process and one back, through two pipes: two context switches.
    Switch,
    /// A KiB through a pipe to another process.
    Pipe,
    /// A process is made, ends, and is waited for.
    Fork,
    /// The same, and it becomes another program first.
    Exec,
    /// The first touch of a page.
    Fault,
    /// A MiB is used, given up and, some seconds later, used once more; was it zero?
    Memory,
    /// The kernel hashes a MiB.
    Hash,
    /// Sixteen pages are mapped and unmapped untouched.
    Map,
    /// A signal to this process, handled.
    Signal,
    /// A sleep of 100 µs, which a timer ends.
    Sleep,
    /// Sleeps of various lengths, each compared with the clock.
    Nap,
    /// A millisecond in which nothing happens, in one piece with the others.
    Idle,
    /// A message of 100 bytes between many processes, through pipes.
    Message,
    /// A token to another process and back, by futex.
    Futex,
    /// A page's protection is taken away and given back while threads on other CPUs use it.
    Shootdown,
    /// A request to the disk.
    Disk(Request),
    /// A word with the host, over a network.
    Net(Talk),
    /// A descriptor is duplicated and closed, by many threads that share a table, and its lock.
    Lock,
    /// A shell command in the root file system on the disk, which says itself what a round is.
    Program,
}

const WORKS: [(&[u8], Work); 27] = [
    (b"console", Work::Console),
    (b"null", Work::Null),
    (b"clock", Work::Clock),
    (b"open", Work::Open),
    (b"switch", Work::Switch),
    (b"pipe", Work::Pipe),
    (b"fork", Work::Fork),
    (b"exec", Work::Exec),
    (b"fault", Work::Fault),
    (b"memory", Work::Memory),
    (b"hash", Work::Hash),
    (b"map", Work::Map),
    (b"signal", Work::Signal),
    (b"sleep", Work::Sleep),
    (b"nap", Work::Nap),
    (b"idle", Work::Idle),
    (b"message", Work::Message),
    (b"futex", Work::Futex),
    (b"shootdown", Work::Shootdown),
    (b"lock", Work::Lock),
    (b"program", Work::Program),
    (b"read", Work::Disk(Request::Read)),
    (b"write", Work::Disk(Request::Write)),
    (b"sync", Work::Disk(Request::Sync)),
    (b"scan", Work::Disk(Request::Scan)),
    (b"ping", Work::Net(Talk::Ping)),
    (b"send", Work::Net(Talk::Send)),
];

/// A workload to run.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    work: Work,
    rounds: usize,
    tasks: usize,
    command: &'static CStr,
}

impl Job {
    /// Reads `NAME:ROUNDS[:TASKS[:COMMAND]]`.
    pub(crate) fn parse(text: &'static CStr) -> Option<Self> {
        let mut parts = text.to_bytes().splitn(4, |byte| *byte == b':');
        let name = parts.next()?;
        let rounds = usize::try_from(number(parts.next()?)?).ok()?;
        let tasks = match parts.next() {
            Some(tasks) => usize::try_from(number(tasks)?).ok()?,
            None => 1,
        };
        let command = parts.next().map_or(0, <[u8]>::len);
        let (_, work) = WORKS.iter().find(|(known, _)| *known == name)?;
        let sensible = rounds > 0
            && (1..=task::TASKS).contains(&tasks)
            && (*work == Work::Program) == (command > 0);
        let end = text.to_bytes_with_nul();
        let command = end.get(end.len().checked_sub(command + 1)?..)?;
        Some(Self {
            work: *work,
            rounds,
            tasks,
            command: CStr::from_bytes_with_nul(command).ok()?,
        })
        .filter(|_| sensible)
    }

    fn name(self) -> &'static [u8] {
        WORKS
            .iter()
            .find(|(_, work)| *work == self.work)
            .map_or(b"", |(name, _)| name)
    }

    /// Runs the job and prints `PARAVANE-JOB NAME ROUNDS NANOSECONDS`, by the guest's own clock.
    pub(crate) fn run(self, port: &MarkPort, console: Fd) {
        let mut watch = Watch {
            port,
            began: None,
            ended: None,
        };
        if let Err(errno) = self.work(&mut watch, console) {
            let mut what = Text::<64>::new();
            what.push(b"the job ");
            what.push(self.name());
            what.push(b" failed");
            complain(
                core::str::from_utf8(what.as_bytes()).unwrap_or("a job failed"),
                errno,
            );
        }
        let (Some(began), Some(ended)) = (watch.began, watch.ended) else {
            return;
        };
        let mut line = Text::<128>::new();
        line.push(b"PARAVANE-JOB ");
        line.push(self.name());
        let nanoseconds = ended.saturating_sub(began);
        let _ = writeln!(line, " {} {nanoseconds}", self.rounds);
        let _ = console.write_all(line.as_bytes());
        // A line that a UART still sends would be in the next job's exits.
        let _ = console.drain();
    }

    fn work(self, watch: &mut Watch<'_>, console: Fd) -> Result<(), Errno> {
        let Self { rounds, tasks, .. } = self;
        match self.work {
            Work::Console => write_console(watch, console, rounds),
            Work::Null => watch.each(rounds, || {
                sys::getppid();
                Ok(())
            }),
            Work::Clock => watch.each(rounds, || sys::clock_ns(sys::CLOCK_MONOTONIC).map(drop)),
            Work::Open => watch.each(rounds, || {
                sys::open(c"/dev/null", sys::O_RDONLY).map(Fd::close)
            }),
            Work::Switch => switch(watch, rounds),
            Work::Pipe => stream(watch, rounds),
            Work::Fork => watch.each(rounds, || {
                if sys::fork()? == 0 {
                    sys::exit(0);
                }
                sys::wait().map(drop)
            }),
            Work::Exec => watch.each(rounds, || {
                if sys::fork()? == 0 {
                    let errno = sys::execute(c"/init", [c"init", crate::END_AT_ONCE], []);
                    complain("/init cannot be started again", errno);
                    sys::exit(1);
                }
                sys::wait().map(drop)
            }),
            Work::Fault => fault(watch, rounds),
            Work::Memory => memory::use_twice(watch, rounds, console),
            Work::Hash => hash::sha256(watch, rounds),
            Work::Map => watch.each(rounds, || Mapping::private(16 * PAGE)?.unmap()),
            Work::Signal => {
                task::handle_signals()?;
                watch.each(rounds, task::signal_myself)
            }
            Work::Sleep => watch.each(rounds, || task::sleep_ns(100_000)),
            Work::Nap => naps::take(watch, rounds, console),
            Work::Idle => {
                let ms = u64::try_from(rounds).unwrap_or(u64::MAX);
                watch.time(|| task::sleep_ns(ms.saturating_mul(1_000_000)))
            }
            Work::Message => sched::message(watch, rounds, tasks),
            Work::Futex => sched::futex(watch, rounds),
            Work::Shootdown => sched::shootdown(watch, rounds, tasks),
            Work::Disk(request) => disk::request(watch, request, rounds, tasks),
            Work::Net(talk) => net::talk(watch, talk, rounds),
            Work::Lock => sched::lock(watch, rounds, tasks),
            Work::Program => program::run(watch, self.command, rounds),
        }
    }
}

/// The marks around a job, and the guest's own clock at both.
pub(crate) struct Watch<'a> {
    port: &'a MarkPort,
    began: Option<u64>,
    ended: Option<u64>,
}

impl Watch<'_> {
    /// Runs `measured` between the two marks.
    pub(crate) fn time(
        &mut self,
        measured: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.began = sys::clock_ns(sys::CLOCK_MONOTONIC).ok();
        self.port.mark(Mark::JobBegins);
        let result = measured();
        self.port.mark(Mark::JobEnds);
        self.ended = sys::clock_ns(sys::CLOCK_MONOTONIC).ok();
        result
    }

    /// Runs `round` between the two marks, `rounds` times.
    pub(crate) fn each(
        &mut self,
        rounds: usize,
        mut round: impl FnMut() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.time(|| (0..rounds).try_for_each(|_| round()))
    }
}

/// Writes `bytes` bytes to the console, a page at a time, and waits until the device has them.
fn write_console(watch: &mut Watch<'_>, console: Fd, bytes: usize) -> Result<(), Errno> {
    let mut page = [0; PAGE];
    for (byte, pattern) in page.iter_mut().zip(LINE.iter().cycle()) {
        *byte = *pattern;
    }
    watch.time(|| {
        let mut left = bytes;
        while left > 0 {
            let count = left.min(PAGE);
            console.write_all(page.get(..count).unwrap_or(&page))?;
            left -= count;
        }
        console.drain()
    })
}

fn switch(watch: &mut Watch<'_>, rounds: usize) -> Result<(), Errno> {
    let (there, back) = (task::pipe()?, task::pipe()?);
    if sys::fork()? == 0 {
        // The other end's close ends the loop; the writer must not be open here, too.
        there.writer.close();
        let mut byte = [0];
        while there.reader.read(&mut byte) == Ok(1) {
            let _ = back.writer.write_all(&byte);
        }
        sys::exit(0);
    }
    let mut byte = [0];
    let result = watch.each(rounds, || {
        there.writer.write_all(&byte)?;
        back.reader.read(&mut byte).map(drop)
    });
    there.close();
    back.close();
    sys::wait()?;
    result
}

fn stream(watch: &mut Watch<'_>, kibibytes: usize) -> Result<(), Errno> {
    let pipe = task::pipe()?;
    let gate = Gate::new()?;
    let buffer = Mapping::private(CHUNK)?;
    if sys::fork()? == 0 {
        gate.wait();
        let mut left = kibibytes * 1024;
        while left > 0 {
            let count = left.min(CHUNK);
            if buffer.write_to(pipe.writer, count).is_err() {
                sys::exit(1);
            }
            left -= count;
        }
        sys::exit(0);
    }
    // The end of the stream is the close of its last writer.
    pipe.writer.close();
    let result = watch.time(|| {
        gate.open(1)?;
        while buffer.read_from(pipe.reader)? > 0 {}
        Ok(())
    });
    pipe.reader.close();
    gate.close();
    sys::wait()?;
    buffer.unmap()?;
    result
}

fn fault(watch: &mut Watch<'_>, pages: usize) -> Result<(), Errno> {
    watch.time(|| {
        let mut left = pages;
        while left > 0 {
            let count = left.min(FAULT_PAGES);
            let mapping = Mapping::private(count * PAGE)?;
            for page in 0..count {
                mapping.touch(page * PAGE);
            }
            mapping.unmap()?;
            left -= count;
        }
        Ok(())
    })
}
