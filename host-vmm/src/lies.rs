//! A lying host, to test guests against: each lie breaks one of the ABI's promises, and is named (`--lies`).
//!
//! An awkward host (`awkward`) keeps to the specification. This one does not, and a guest has nothing to appeal to; what can be
//! asked of it is that it goes on without what was lied about, or says why it cannot, and that nobody waits for ever.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use paravane_abi::boot_info::BootInfo;
use paravane_abi::call::{CallResult, Status};
use paravane_abi::clock::ClockPage;
use paravane_abi::console::ConsolePage;
use paravane_abi::delegate::{DelegateInfo, kvm_features_of};
use paravane_abi::dev::{DEV_CONFIG_BYTES, DEV_MAX, DevEntry, DevInfo};
use paravane_abi::mem::{MemPage, MemRange};
use paravane_abi::registry as reg;
use paravane_abi::smp::SmpPage;
use zerocopy::IntoBytes;

use crate::memory::{Memory, MemoryError, PV_AREA};
use crate::pv::event::EventTarget;
use crate::pv::{
    Args, BOOT_INFO, CLOCK_PAGE, CONSOLE_PAGE, DEV_TABLE, Facility, MEM_PAGE, Reply, SMP_PAGE,
};
use crate::random::Random;
use crate::snapshot::{PartError, Saved, State};
use crate::sync::lock;

/// Where Linux has the interrupt of its hypervisor's events.
const LINUX_VECTOR: u8 = 0xf3;
/// Where a kernel is.
const KERNEL: u64 = 16 << 20;

/// One lie.
#[derive(Debug)]
pub struct Lie {
    /// What it is called.
    pub name: &'static str,
    what: What,
}

/// How it is told.
#[derive(Debug)]
enum What {
    /// In the boot-info page, and what that names, before the guest begins.
    Page(fn(&mut BootInfo, &Memory) -> Result<(), MemoryError>),
    /// In the answer to each call but those of facility base: nothing is done.
    Answer(CallResult),
    /// In the shared pages, again and again.
    Store(fn(&Memory, &mut Random) -> Result<(), MemoryError>),
    /// By an interrupt, again and again.
    Event,
    /// By silence: the host says that it looks at the console, and does not.
    Silence,
}

/// A lie of the boot-info page alone.
macro_rules! page {
    ($name:literal, $info:ident => $body:expr) => {
        Lie {
            name: $name,
            what: What::Page(|$info, _| {
                $body;
                Ok(())
            }),
        }
    };
}

/// A lie of shared memory.
macro_rules! store {
    ($name:literal, $memory:ident, $random:ident => $body:expr) => {
        Lie {
            name: $name,
            what: What::Store(|$memory, $random| $body),
        }
    };
}

/// All of them.
pub static LIES: [Lie; 23] = [
    // Half of the page has not been said, and its facilities have.
    page!("short", info => info.size = u32::try_from(offset_of!(BootInfo, smp)).unwrap_or(0) + 4),
    page!("facilities", info => (info.facilities, info.transports) = (u64::MAX, u32::MAX)),
    page!("processors", info => info.vcpu_count = u32::MAX),
    page!("ring-sizes", info => info.console.out_size = 3 << 12),
    page!("ring-places", info => info.console.address = KERNEL),
    page!("tsc-stands", info => info.clock.tsc_hz = 0),
    page!("tsc-slow", info => info.clock.tsc_hz /= 8),
    page!("timer-slow", info => info.clock.apic_timer_hz = 3),
    page!("time-of-day", info => (info.clock.wall_ns, info.clock.wall_tsc) = (u64::MAX, u64::MAX)),
    page!("cpuid-count", info => info.cpuid.count = u32::MAX),
    // All memory there can be, once more, and none.
    page!("fresh", info => for (n, range) in (0..).zip(&mut info.mem.fresh) {
        *range = MemRange { address: n << 12, size: u64::MAX >> (n * 8) };
    }),
    page!("memory-page", info => info.mem.page = KERNEL),
    page!("seed", info => (info.rng.address, info.rng.length) = (PV_AREA, 0x8000_0000)),
    // With --pv=-irq,-ipi,-tlb,-sched KVM has none of it.
    page!("kvm", info => {
        for id in [reg::FACILITY_IRQ, reg::FACILITY_IPI, reg::FACILITY_TLB, reg::FACILITY_SCHED] {
            info.facilities |= 1 << id;
        }
        let kvm_features = kvm_features_of(info.facilities);
        info.delegate = DelegateInfo { kvm_base: 0x4000_7000, kvm_features, reserved: 0 };
    }),
    Lie {
        name: "devices",
        what: What::Page(devices),
    },
    Lie {
        name: "busy",
        what: What::Answer(Err(Status::Busy)),
    },
    Lie {
        name: "refused",
        what: What::Answer(Err(Status::Denied)),
    },
    Lie {
        name: "done",
        what: What::Answer(Ok(u64::MAX)),
    },
    store!("indices", memory, random => {
        let (tail, head) = (offset_of!(ConsolePage, out_tail), offset_of!(ConsolePage, in_head));
        memory.store_u32(CONSOLE_PAGE + tail as u64, random.next_u32(), Relaxed)?;
        memory.store_u32(CONSOLE_PAGE + head as u64, random.next_u32(), Relaxed)
    }),
    store!("wishes", memory, random => {
        let (smp, mem) = (offset_of!(SmpPage, wanted), offset_of!(MemPage, wanted));
        let wishes = [0, 1, 2, 3, random.next_u32(), u32::MAX];
        memory.store_u32(SMP_PAGE + smp as u64, random.pick(&wishes), Relaxed)?;
        memory.store_u32(MEM_PAGE + mem as u64, random.pick(&wishes), Relaxed)
    }),
    store!("clock-page", memory, random => {
        let page = ClockPage {
            sequence: random.next_u32(),
            flags: random.next_u32(),
            disruption: random.next(),
            generation: random.next(),
            tsc_hz: random.next(),
            wall_ns: random.next(),
            wall_tsc: random.next(),
            reserved: [0; 2],
        };
        memory.write_obj(CLOCK_PAGE, &page)
    }),
    Lie {
        name: "events",
        what: What::Event,
    },
    Lie {
        name: "silence",
        what: What::Silence,
    },
];

/// As many devices as there can be: a disk, a network, and what has no driver or cannot be.
fn devices(info: &mut BootInfo, memory: &Memory) -> Result<(), MemoryError> {
    for index in 0..DEV_MAX {
        let kind = u32::try_from(index).unwrap_or(0);
        let entry = DevEntry {
            kind: [2, 1][index % 2] + kind / 2,
            queues: if index < 8 { 4 } else { u32::MAX },
            queue_max: [256, 1, 32768, 3][index / 4],
            state: 0,
            features: u64::MAX,
            generation: 0,
            reserved: [u32::MAX; 9],
            config: [0xff; DEV_CONFIG_BYTES],
        };
        memory.write_obj(DEV_TABLE + (index * size_of::<DevEntry>()) as u64, &entry)?;
    }
    info.dev = DevInfo {
        address: DEV_TABLE,
        count: u32::try_from(DEV_MAX).unwrap_or(0),
        doorbell_port: info.dev.doorbell_port,
    };
    Ok(())
}

/// There is no such lie.
#[derive(Debug, thiserror::Error)]
#[error("there is no lie `{name}`; --lies knows {}", names())]
pub struct UnknownLie {
    name: String,
}

fn names() -> String {
    LIES.each_ref().map(|lie| lie.name).join(", ")
}

/// The lie that is called `name`.
///
/// # Errors
///
/// [`UnknownLie`].
pub fn named(name: &str) -> Result<&'static Lie, UnknownLie> {
    let lie = LIES.iter().find(|lie| lie.name == name);
    lie.ok_or_else(|| UnknownLie {
        name: name.to_owned(),
    })
}

/// The liar of one guest.
#[derive(Debug)]
pub(crate) struct Liar {
    lies: Vec<&'static Lie>,
    random: Mutex<Random>,
}

impl Liar {
    /// `None` where there is nothing to be lied about.
    pub(crate) fn new(lies: &[&'static Lie]) -> Option<Arc<Self>> {
        (!lies.is_empty()).then(|| {
            Arc::new(Self {
                lies: lies.to_owned(),
                random: Mutex::new(Random::new(lies.len() as u64)),
            })
        })
    }

    fn all(&self) -> impl Iterator<Item = &What> {
        self.lies.iter().map(|lie| &lie.what)
    }

    /// Changes what the guest is told before it begins.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Range`]: never, for memory that has the shared pages.
    pub(crate) fn begin(&self, memory: &Memory) -> Result<(), MemoryError> {
        let mut info: BootInfo = memory.read_obj(BOOT_INFO)?;
        for what in self.all() {
            if let What::Page(tell) = what {
                tell(&mut info, memory)?;
            }
        }
        memory.write(BOOT_INFO, info.as_bytes())
    }

    /// The event loop's look at the guest: what is told again. Returns whether the host looks at the console, too, and the event
    /// to raise for nothing.
    pub(crate) fn look(&self, memory: &Memory, vcpus: u8) -> (bool, Option<EventTarget>) {
        let mut random = lock(&self.random);
        let (mut looks, mut event) = (true, None);
        for what in self.all() {
            // The pages are the VMM's own: they are in guest memory.
            let _ = match what {
                What::Store(tell) => tell(memory, &mut random),
                What::Silence => {
                    looks = false;
                    let promise = CONSOLE_PAGE + offset_of!(ConsolePage, host_looks) as u64;
                    memory.store_u32(promise, 1, Relaxed)
                }
                What::Event => {
                    let apic_id = random.below(u64::from(vcpus));
                    event = u8::try_from(apic_id).ok().map(|apic_id| EventTarget {
                        vector: LINUX_VECTOR,
                        apic_id,
                    });
                    Ok(())
                }
                What::Page(_) | What::Answer(_) => Ok(()),
            };
        }
        (looks, event)
    }

    /// Wraps the facilities whose calls are answered with a lie.
    pub(crate) fn wrap(&self, facilities: Vec<Box<dyn Facility>>) -> Vec<Box<dyn Facility>> {
        let answer = self.all().find_map(|what| match what {
            What::Answer(answer) => Some(*answer),
            _ => None,
        });
        let Some(answer) = answer else {
            return facilities;
        };
        let wrap = |inner: Box<dyn Facility>| match inner.id() {
            reg::FACILITY_BASE => inner,
            _ => Box::new(Wrapped { inner, answer }),
        };
        facilities.into_iter().map(wrap).collect()
    }
}

/// A facility that carries nothing out.
#[derive(Debug)]
struct Wrapped {
    inner: Box<dyn Facility>,
    answer: CallResult,
}

impl Saved for Wrapped {
    fn save(&self) -> Result<State, PartError> {
        Err(PartError::because("is a lying host's (--lies)"))
    }
}

impl Facility for Wrapped {
    fn id(&self) -> u32 {
        self.inner.id()
    }

    fn describe(&self, memory: &Memory, info: &mut BootInfo) -> Result<(), MemoryError> {
        self.inner.describe(memory, info)
    }

    fn call(&self, _function: u32, _args: &Args) -> Reply {
        Reply::Resume(self.answer)
    }
}
