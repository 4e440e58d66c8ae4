//! A model check of the wake-up protocol that the console's ring and the exitless rings share: loom
//! runs the host's own [`stop_looking`] against a guest in every interleaving, and with every stale
//! value, that the memory model allows.
//!
//! What must hold: when the guest has published everything, either the host is still looking, or
//! nothing is left in the ring. Without the barrier on either side it does not, and loom finds that.

use std::convert::Infallible;

use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;
use paravane::pv::looks::{Looked, stop_looking};

/// Which sides make their barrier.
#[derive(Clone, Copy)]
struct Barriers {
    guest: bool,
    host: bool,
}

/// The shared page.
struct Page {
    head: AtomicU32,
    host_looks: AtomicU32,
}

/// The host's own state, under the ring's lock.
struct Own {
    tail: u32,
    looking: bool,
}

struct World {
    page: Page,
    own: Mutex<Own>,
    barriers: Barriers,
}

/// The ring in the hands of whoever holds the lock.
struct Held<'a> {
    world: &'a World,
    own: &'a mut Own,
}

impl Looked for Held<'_> {
    type Error = Infallible;

    fn tell(&mut self, looks: bool) -> Result<(), Infallible> {
        let flag = &self.world.page.host_looks;
        flag.store(u32::from(looks), Ordering::Relaxed);
        Ok(())
    }

    fn take(&mut self) -> Result<u32, Infallible> {
        let head = self.world.page.head.load(Ordering::Acquire);
        let taken = head - self.own.tail;
        self.own.tail = head;
        Ok(taken)
    }

    fn barrier(&self) {
        if self.world.barriers.host {
            fence(Ordering::SeqCst);
        }
    }
}

impl World {
    /// The guest: publishes, and rings where it must.
    fn publish(&self, head: u32) {
        self.page.head.store(head, Ordering::Release);
        if self.barriers.guest {
            fence(Ordering::SeqCst);
        }
        if self.page.host_looks.load(Ordering::Relaxed) == 0 {
            self.doorbell();
        }
    }

    /// `console.notify` and `ring.submit`.
    fn doorbell(&self) {
        let mut own = self.own.lock().unwrap();
        let mut held = Held {
            world: self,
            own: &mut own,
        };
        let Ok(_) = held.take();
        if !held.own.looking {
            held.own.looking = true;
            let Ok(()) = held.tell(true);
        }
    }

    /// The host looks once, and stops if there is nothing. Returns whether it is still looking.
    fn look(&self) -> bool {
        let mut own = self.own.lock().unwrap();
        let mut held = Held {
            world: self,
            own: &mut own,
        };
        if held.own.looking {
            let Ok(taken) = held.take();
            if taken == 0 {
                let Ok(stopped) = stop_looking(&mut held);
                held.own.looking = !stopped;
            }
        }
        own.looking
    }
}

/// A host that looks, and a guest that publishes `items` times. Panics where something is lost.
fn check(barriers: Barriers, items: u32) {
    loom::model(move || {
        let world = Arc::new(World {
            page: Page {
                head: AtomicU32::new(0),
                host_looks: AtomicU32::new(1),
            },
            own: Mutex::new(Own {
                tail: 0,
                looking: true,
            }),
            barriers,
        });
        let guest = Arc::clone(&world);
        let guest = thread::spawn(move || {
            for head in 1..=items {
                guest.publish(head);
            }
        });
        // At most one round finds an item, at most one is needed to stop after each.
        for _ in 0..=2 * items {
            if !world.look() {
                break;
            }
        }
        guest.join().unwrap();
        let own = world.own.lock().unwrap();
        assert!(
            own.looking || own.tail == items,
            "the host sleeps, and {} of {items} items have been taken",
            own.tail
        );
    });
}

const BOTH: Barriers = Barriers {
    guest: true,
    host: true,
};

#[test]
fn pv_ring_12_no_doorbell_is_lost() {
    check(BOTH, 1);
    check(BOTH, 2);
}

#[test]
#[should_panic(expected = "the host sleeps")]
fn pv_ring_12_without_the_guests_barrier_one_is_lost() {
    let barriers = Barriers {
        guest: false,
        ..BOTH
    };
    check(barriers, 1);
}

#[test]
#[should_panic(expected = "the host sleeps")]
fn pv_ring_21_without_the_hosts_barrier_one_is_lost() {
    let barriers = Barriers {
        host: false,
        ..BOTH
    };
    check(barriers, 1);
}
