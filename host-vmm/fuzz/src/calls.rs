//! The call dispatcher and the console rings: what a hostile guest can do with calls and with stores to the shared pages.

use std::sync::Arc;

use arbitrary::Arbitrary;
use paravane::config::FacilitySet;
use paravane::console::Console;
use paravane::memory::{Memory, PV_AREA};
use paravane::pv::base::Base;
use paravane::pv::clock::{Clock, Counter};
use paravane::pv::console::RingConsole;
use paravane::pv::crash::{Crash, LastWords};
use paravane::pv::mem::Mem;
use paravane::pv::smp::{Processors, Smp};
use paravane::pv::{CONSOLE_PAGE, Facility, Paravirt, Reply};
use paravane_abi::call::{CALLS, CallId, Status};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Up to the end of the shared pages, so that every address close to an end is close to them.
const MEMORY_MIB: u64 = 1;
const VCPUS: u8 = 2;
/// Bytes of the shared pages.
const SHARED: usize = 0x2_0000;

/// One step of the guest, or of the host beside it.
#[derive(Arbitrary, Debug)]
enum Step {
    /// Any call.
    Call(u32, [u64; 6]),
    /// A call that exists, with two arguments.
    KnownCall(u8, u64, u64),
    /// A store to the console page.
    Store(u8, u32),
    /// A store anywhere in the shared pages.
    Anywhere(u32, u8),
    /// The event loop looks at the ring.
    Look,
    /// Somebody types.
    Input(Vec<u8>),
}

thread_local! {
    /// One for all runs, because mapping it takes longer than a run; its end is cleaned for each.
    static MEMORY: Memory = Memory::new(MEMORY_MIB).expect("a megabyte can be had");
}

/// Everything that serves one guest's calls.
struct Host {
    memory: Memory,
    rings: Arc<RingConsole>,
    pv: Paravirt,
}

fn host() -> Host {
    let memory = MEMORY.with(Memory::clone);
    let clean = [0; SHARED];
    memory.write(PV_AREA, &clean).expect("the pages are there");
    let console = Console::memory().expect("a descriptor can be had");
    // Nobody reads it: it must not block when it is full.
    let wake = EventFd::new(EFD_NONBLOCK).expect("a descriptor can be had");
    let rings = Arc::new(RingConsole::new(memory.clone(), console, VCPUS, wake));
    // Rings write where the guest says; `tests/ring` tries them beside a model.
    let set = FacilitySet::parse("-ring").expect("a facility");
    let counter = Counter::new(1_000_000_000, true, || 0);
    let clock = Clock::new(memory.clone(), counter, VCPUS);
    let facilities: Vec<Box<dyn Facility>> = vec![
        Box::new(Base::new(set)),
        Box::new(Arc::clone(&rings)),
        Box::new(Arc::new(clock)),
        Box::new(Crash::new(memory.clone(), LastWords::default())),
        Box::new(Smp::new(Arc::new(Processors::new(VCPUS)), memory.clone())),
        Box::new(Arc::new(Mem::new(memory.clone(), VCPUS))),
    ];
    let pv = Paravirt::new(set, facilities);
    Host { memory, rings, pv }
}

fn check(id: CallId, reply: Reply) {
    if let Reply::Resume(result) = reply {
        let (status, value) = Status::encode(result);
        assert_eq!(Status::decode(status, value), result);
        if !CALLS.contains(&id) {
            assert_eq!(result, Err(Status::NotSupported), "{id:?}");
        }
    }
}

/// Entry.
pub fn run(data: &[u8]) {
    let steps: Vec<Step> = super::arbitrary(data);
    let host = host();
    for step in steps {
        match step {
            Step::Call(id, args) => check(CallId(id), host.pv.call(CallId(id), &args)),
            Step::KnownCall(index, first, second) => {
                let id = CALLS[usize::from(index) % CALLS.len()];
                check(id, host.pv.call(id, &[first, second, 0, 0, 0, 0]));
            }
            Step::Store(word, value) => {
                let at = CONSOLE_PAGE + 4 * u64::from(word % 64);
                host.memory
                    .write_obj(at, &value)
                    .expect("the page is there");
            }
            Step::Anywhere(at, value) => {
                let at = PV_AREA + u64::from(at) % ((MEMORY_MIB << 20) - PV_AREA);
                host.memory
                    .write(at, &[value])
                    .expect("the pages are there");
            }
            Step::Look => {
                host.rings.look().expect("the page is there");
            }
            Step::Input(bytes) => {
                host.rings.input(&bytes).expect("the page is there");
            }
        }
    }
    // Nothing of this concerns the memory below the shared pages.
    let mut page = [0; 4096];
    for at in (0..PV_AREA).step_by(page.len()) {
        host.memory.read(at, &mut page).expect("it is there");
        assert!(page == [0; 4096], "the page at {at:#x} has been written to");
    }
}
