//! The jobs of several tasks: what a scheduler, and a VMM that runs more vCPUs than it has CPUs, make of them.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::PAGE;
use crate::jobs::Watch;
use crate::sys::{self, Errno, Fd};
use crate::task::{self, Gate, Mapping, Pipe, TASKS};

/// The size of a message, hackbench's.
const MESSAGE: usize = 100;

/// Half of the tasks send to each of the other half, as hackbench does: `rounds` messages in all.
pub(crate) fn message(watch: &mut Watch<'_>, rounds: usize, tasks: usize) -> Result<(), Errno> {
    let pairs = (tasks / 2).max(1);
    let each = (rounds / (pairs * pairs)).max(1);
    let gate = Gate::new()?;
    let mut pipes: [Option<Pipe>; TASKS] = [None; TASKS];
    for slot in pipes.iter_mut().take(pairs) {
        let pipe = task::pipe()?;
        *slot = Some(pipe);
        if sys::fork()? == 0 {
            pipe.writer.close();
            receive(pipe.reader, pairs * each * MESSAGE);
            sys::exit(0);
        }
    }
    for _ in 0..pairs {
        if sys::fork()? == 0 {
            gate.wait();
            let message = [b'm'; MESSAGE];
            for _ in 0..each {
                for pipe in pipes.iter().flatten() {
                    if pipe.writer.write_all(&message).is_err() {
                        sys::exit(1);
                    }
                }
            }
            sys::exit(0);
        }
    }
    for pipe in pipes.iter().flatten() {
        pipe.close();
    }
    let result = watch.time(|| {
        gate.open(pairs)?;
        (0..pairs * 2).try_for_each(|_| sys::wait().map(drop))
    });
    gate.close();
    result
}

/// Reads messages until all have come, or their last writer is gone.
fn receive(from: Fd, mut left: usize) {
    let mut message = [0; MESSAGE];
    while left > 0 {
        match from.read(&mut message) {
            Ok(length) if length > 0 => left = left.saturating_sub(length),
            _ => return,
        }
    }
}

/// Two processes hand a token to and fro: each sleeps until the word is its own number.
pub(crate) fn futex(watch: &mut Watch<'_>, rounds: usize) -> Result<(), Errno> {
    let page = Mapping::shared(PAGE)?;
    let token = page.word(0);
    let turns = |mine: u32| -> Result<(), Errno> {
        for _ in 0..rounds {
            while token.load(Ordering::Acquire) != mine {
                task::futex_wait(token, 1 - mine)?;
            }
            token.store(1 - mine, Ordering::Release);
            task::futex_wake(token)?;
        }
        Ok(())
    };
    if sys::fork()? == 0 {
        let failed = turns(1).is_err();
        sys::exit(usize::from(failed));
    }
    let result = watch.time(|| turns(0));
    sys::wait()?;
    page.unmap()?;
    result
}

/// Threads on the other CPUs read a page whose protection this one takes away and gives back.
///
/// Only reading is left to them while it is taken away, so that they never fault; the change is one that all CPUs that
/// run this address space must be told of.
pub(crate) fn shootdown(watch: &mut Watch<'_>, rounds: usize, tasks: usize) -> Result<(), Errno> {
    let page = Mapping::private(2 * PAGE)?;
    let (stop, target) = (page.word(0), page.word(PAGE));
    page.touch(PAGE);
    let read = || {
        while stop.load(Ordering::Relaxed) == 0 {
            target.load(Ordering::Relaxed);
            core::hint::spin_loop();
        }
    };
    let threads = task::Threads::start(tasks, &read)?;
    let result = watch.time(|| {
        (0..rounds).try_for_each(|_| {
            page.protect(PAGE, PAGE, false)?;
            page.protect(PAGE, PAGE, true)?;
            // The kernel flushes when a right is taken away, not when it is given: the write brings it back.
            page.touch(PAGE);
            Ok(())
        })
    });
    stop.store(1, Ordering::Relaxed);
    threads.join()?;
    page.unmap()?;
    result
}

/// Threads that share a table of files duplicate a descriptor and close it: each takes the table's lock twice.
pub(crate) fn lock(watch: &mut Watch<'_>, rounds: usize, tasks: usize) -> Result<(), Errno> {
    let page = Mapping::private(PAGE)?;
    let failures: &AtomicU32 = page.word(0);
    let gate = Gate::new()?;
    let contend = || {
        gate.wait();
        for _ in 0..rounds / tasks {
            match Fd::STDOUT.duplicate() {
                Ok(copy) => copy.close(),
                Err(_) => {
                    failures.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let threads = task::Threads::start(tasks, &contend)?;
    let result = watch.time(|| {
        gate.open(tasks)?;
        threads.join()
    });
    gate.close();
    let failed = failures.load(Ordering::Relaxed);
    page.unmap()?;
    match failed {
        0 => result,
        _ => Err(Errno(0)),
    }
}
