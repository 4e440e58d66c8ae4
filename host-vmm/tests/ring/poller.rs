//! The guest and the poller at the same time.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use paravane::pv::Reply;
use paravane::stats::Outcome;
use paravane_abi::call::Status;
use paravane_abi::registry::*;
use paravane_abi::ring::RING_EXITLESS;

use crate::host::{Host, MEMORY_END};

/// When to give up waiting for something that has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something that has to come.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} has not come");
        thread::yield_now();
    }
}

#[test]
fn pv_ring_20_an_exitless_guest_loses_no_call() {
    const ENTRIES: u32 = 8;
    let host = Host::new("");
    host.register(ENTRIES, RING_EXITLESS);
    let mut doorbells = 0;
    for number in 0..20_000_u32 {
        host.put(number, ENTRIES, CALL_BASE_NOP, &[u64::from(number)]);
        host.publish(number + 1);
        fence(Ordering::SeqCst);
        if !host.looks() {
            doorbells += 1;
            assert!(host.result(CALL_RING_SUBMIT, &[0]).is_ok());
        }
        if number % 1000 == 0 {
            // Long enough for the poller to go to sleep now and then.
            thread::sleep(Duration::from_millis(3));
        }
        wait_until("an entry", || host.tail() == number + 1);
        assert_eq!(host.entry(number, ENTRIES).result(), Ok(u64::from(number)));
    }
    assert!(doorbells > 0, "the first one at least");
}

#[test]
fn pv_ring_21_the_host_says_that_it_stops() {
    let host = Host::new("");
    host.register(4, RING_EXITLESS);
    assert!(!host.looks(), "nobody has submitted");
    host.put(0, 4, CALL_BASE_NOP, &[1]);
    host.publish(1);
    assert_eq!(host.result(CALL_RING_SUBMIT, &[0]), Ok(1));
    wait_until("the end of looking", || !host.looks());
    host.put(1, 4, CALL_BASE_NOP, &[2]);
    host.publish(2);
    assert_eq!(
        host.result(CALL_RING_SUBMIT, &[0]),
        Ok(1),
        "nobody else has"
    );
    assert_eq!(host.entry(1, 4).result(), Ok(2));
}

#[test]
fn pv_ring_20_the_poller_is_there_when_asked_for() {
    let host = Host::new("");
    let has_poller = || host.pv.rings().unwrap().has_poller();
    host.register(4, 0);
    assert!(!has_poller());
    assert_eq!(host.result(CALL_RING_UNREGISTER, &[0]), Ok(0));
    host.register(4, RING_EXITLESS);
    assert!(has_poller());
}

#[test]
fn pv_ring_24_results_are_there_when_tail_is() {
    const ENTRIES: u32 = 64;
    let host = Host::new("");
    host.register(ENTRIES, RING_EXITLESS);
    for round in 0..200_u32 {
        let first = round * ENTRIES;
        for index in first..first + ENTRIES {
            host.put(index, ENTRIES, CALL_BASE_NOP, &[u64::from(index)]);
        }
        host.publish(first + ENTRIES);
        fence(Ordering::SeqCst);
        if !host.looks() {
            assert!(host.result(CALL_RING_SUBMIT, &[0]).is_ok());
        }
        // Reads what has been completed while the host completes the rest.
        let mut seen = first;
        wait_until("a batch", || {
            let tail = host.tail();
            while seen != tail {
                assert_eq!(host.entry(seen, ENTRIES).result(), Ok(u64::from(seen)));
                seen += 1;
            }
            seen == first + ENTRIES
        });
    }
}

#[test]
fn pv_ring_9_an_entry_that_changes_meanwhile_harms_nobody() {
    const ROUNDS: u32 = 20_000;
    let host = Host::new("");
    host.register(1, 0);
    let done = AtomicBool::new(false);
    let (good, bad) = ([MEMORY_END - 4, 4], [MEMORY_END - 4, CONSOLE_WRITE_MAX]);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            // Length and call id change while the host looks at them.
            while !done.load(Ordering::Relaxed) {
                host.put(0, 1, CALL_CONSOLE_WRITE, &bad);
                host.put(0, 1, CALL_BASE_NOP, &good[..1]);
                host.put(0, 1, CALL_CONSOLE_WRITE, &good);
            }
        });
        for round in 1..=ROUNDS {
            host.publish(round);
            assert_eq!(host.result(CALL_RING_SUBMIT, &[0]), Ok(1));
        }
        done.store(true, Ordering::Relaxed);
        other.join().unwrap();
    });
    let printed = host.console.contents();
    assert!(printed.len().is_multiple_of(4) && printed.iter().all(|byte| *byte == 0));
    assert!(printed.len() <= 4 * ROUNDS as usize);
}

#[test]
fn pv_ring_4_the_poller_leaves_an_unregistered_ring_alone() {
    let host = Host::new("");
    for _ in 0..50 {
        host.register(4, RING_EXITLESS);
        host.publish(0);
        assert_eq!(host.result(CALL_RING_SUBMIT, &[0]), Ok(0));
        assert!(host.looks());
        assert_eq!(host.result(CALL_RING_UNREGISTER, &[0]), Ok(0));
        host.put(0, 4, CALL_BASE_NOP, &[7]);
        host.publish(1);
        thread::yield_now();
        assert_eq!(host.tail(), 0);
        assert_eq!(host.entry(0, 4).value, 0);
        // A new ring without the poller, at the same place.
        host.register(4, 0);
        thread::yield_now();
        assert_eq!(host.tail(), 0);
        assert_eq!(host.result(CALL_RING_UNREGISTER, &[0]), Ok(0));
    }
}

#[test]
fn pv_ring_7_the_poller_stops_the_machine() {
    let host = Host::new("");
    host.register(4, RING_EXITLESS);
    assert_eq!(host.result(CALL_RING_SUBMIT, &[0]), Ok(0));
    host.put(0, 4, CALL_BASE_NOP, &[1]);
    host.put(1, 4, CALL_BASE_POWER, &[POWER_REBOOT]);
    host.put(2, 4, CALL_BASE_NOP, &[1]);
    host.publish(3);
    fence(Ordering::SeqCst);
    if !host.looks() {
        // The poller has gone to sleep: then it is this processor that stops.
        let reply = host.call(CALL_RING_SUBMIT, &[0]);
        assert_eq!(reply, Reply::Stop(Outcome::Reboot));
        host.end.stop(Outcome::Reboot, None);
    }
    wait_until("the machine's end", || host.end.is_stopping());
    assert_eq!(host.end.take(), Some((Outcome::Reboot, None)));
    assert_eq!(host.tail(), 1);
}

#[test]
fn pv_ring_14_no_poller_without_the_transport() {
    let host = Host::new("-exitless");
    let args = [0, crate::host::RING, 4, RING_EXITLESS];
    let result = host.result(CALL_RING_REGISTER, &args);
    assert_eq!(result, Err(Status::InvalidParam));
    assert!(!host.pv.rings().unwrap().has_poller());
}
