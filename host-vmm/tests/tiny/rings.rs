//! The console rings' host side without a guest: what depends on time in a machine does not here.

use std::mem::offset_of;

use paravane::console::Console;
use paravane::memory::Memory;
use paravane::pv::console::{IN_SIZE, OUT_SIZE, RingConsole};
use paravane::pv::event::EventTarget;
use paravane::pv::{CONSOLE_PAGE, Facility, Reply};
use paravane_abi::call::CallId;
use paravane_abi::console::ConsolePage;
use paravane_abi::registry::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmm_sys_util::eventfd::EventFd;

const HOST_LOOKS: usize = offset_of!(ConsolePage, host_looks);
const OUT_HEAD: usize = offset_of!(ConsolePage, out_head);
const OUT_TAIL: usize = offset_of!(ConsolePage, out_tail);
const IN_HEAD: usize = offset_of!(ConsolePage, in_head);
const IN_TAIL: usize = offset_of!(ConsolePage, in_tail);
const OUT_BUFFER: u64 = CONSOLE_PAGE + 4096;
const IN_BUFFER: u64 = OUT_BUFFER + OUT_SIZE as u64;

struct Rings {
    memory: Memory,
    console: Console,
    rings: Arc<RingConsole>,
}

impl Rings {
    fn new() -> Self {
        let memory = Memory::new(32).unwrap();
        let console = Console::memory().unwrap();
        let wake = EventFd::new(0).unwrap();
        let rings = Arc::new(RingConsole::new(memory.clone(), console.clone(), 2, wake));
        Self {
            memory,
            console,
            rings,
        }
    }

    fn call(&self, id: u32, args: [u64; 6]) {
        let reply = self.rings.call(CallId(id).function(), &args);
        assert_eq!(reply, Reply::Resume(Ok(0)));
    }

    fn get(&self, field: usize) -> u32 {
        self.memory.read_obj(CONSOLE_PAGE + field as u64).unwrap()
    }

    fn set(&self, field: usize, value: u32) {
        self.memory
            .write_obj(CONSOLE_PAGE + field as u64, &value)
            .unwrap();
    }

    /// Prints as a guest does, without a call.
    fn publish(&self, text: &[u8]) {
        let head = self.get(OUT_HEAD);
        self.memory
            .write(OUT_BUFFER + u64::from(head), text)
            .unwrap();
        self.set(OUT_HEAD, head + u32::try_from(text.len()).unwrap());
    }
}

#[test]
fn pv_console_13_the_host_looks_until_it_says_that_it_does_not() {
    let it = Rings::new();
    assert!(!it.rings.look().unwrap(), "nobody has asked it to look");
    it.publish(b"one ");
    it.call(CALL_CONSOLE_NOTIFY, [0; 6]);
    assert_ne!(it.get(HOST_LOOKS), 0);
    it.publish(b"two ");
    assert!(
        it.rings.look().unwrap(),
        "it has found something, and will look again"
    );
    assert_eq!(it.console.contents(), b"one two ");
    // Nothing comes: at some time it stops, and says so.
    let looks = (0..1000).take_while(|_| it.rings.look().unwrap()).count();
    assert!(looks < 1000);
    assert_eq!(it.get(HOST_LOOKS), 0);
    it.publish(b"three");
    assert!(!it.rings.look().unwrap());
    assert_eq!(it.console.contents(), b"one two ", "nobody has called");
    it.call(CALL_CONSOLE_NOTIFY, [0; 6]);
    assert_eq!(it.console.contents(), b"one two three");
    assert_ne!(it.get(HOST_LOOKS), 0);
}

#[test]
fn pv_console_7_input_raises_the_event_that_was_asked_for() {
    let it = Rings::new();
    let input = |text: &[u8]| it.rings.input(text).unwrap();
    assert_eq!(input(b"a"), (None, 1));
    it.call(CALL_CONSOLE_EVENT, [0x41, 1, 0, 0, 0, 0]);
    let target = EventTarget {
        vector: 0x41,
        apic_id: 1,
    };
    assert_eq!(input(b"b"), (Some(target), 1));
    assert_eq!(input(b""), (None, 0), "nothing has been published");
    it.call(CALL_CONSOLE_EVENT, [0; 6]);
    assert_eq!(input(b"c"), (None, 1));
}

#[test]
fn pv_console_14_input_never_overtakes_the_guest() {
    let it = Rings::new();
    let size = IN_SIZE as usize;
    let text: Vec<u8> = (b'a'..=b'z').cycle().take(size + 10).collect();
    let (_, taken) = it.rings.input(&text).unwrap();
    assert_eq!(taken, size, "ten bytes have no room");
    assert_eq!(it.get(IN_HEAD), IN_SIZE);
    let mut ring = vec![0; size];
    it.memory.read(IN_BUFFER, &mut ring).unwrap();
    assert!(ring == text[..size]);
}

#[test]
fn pv_console_15_what_the_guest_says_it_has_read_is_written_over() {
    let it = Rings::new();
    let size = IN_SIZE as usize;
    let text: Vec<u8> = (b'a'..=b'z').cycle().take(size + 10).collect();
    assert_eq!(it.rings.input(&text).unwrap().1, size);
    // Four bytes are free now, whether it has read them or not; they follow over the ring's end.
    it.set(IN_TAIL, 4);
    assert_eq!(it.rings.input(&text[size..]).unwrap().1, 4);
    assert_eq!(it.get(IN_HEAD), IN_SIZE + 4);
    let mut ring = vec![0; size];
    it.memory.read(IN_BUFFER, &mut ring).unwrap();
    assert_eq!(ring[..4], text[size..size + 4]);
    assert_eq!(ring[4..], text[4..size]);
}

#[test]
fn pv_console_8_bytes_are_there_when_in_head_is() {
    const BYTES: u32 = 1_000_000;
    let it = Rings::new();
    let byte = |index: u32| u8::try_from(index % 251).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 0;
            while sent < BYTES {
                let chunk: Vec<u8> = (sent..BYTES.min(sent + 100)).map(byte).collect();
                sent += u32::try_from(it.rings.input(&chunk).unwrap().1).unwrap();
            }
        });
        let address = |field: usize| CONSOLE_PAGE + field as u64;
        let mut taken = 0;
        while taken < BYTES {
            let head = it.memory.load_u32(address(IN_HEAD), Ordering::Acquire);
            let head = head.unwrap();
            while taken != head {
                let at = IN_BUFFER + u64::from(taken & (IN_SIZE - 1));
                let found: u8 = it.memory.read_obj(at).unwrap();
                assert_eq!(found, byte(taken), "byte {taken}");
                taken += 1;
            }
            let done = it
                .memory
                .store_u32(address(IN_TAIL), taken, Ordering::Release);
            done.unwrap();
        }
    });
}

#[test]
fn pv_console_6_what_nobody_is_told_of_waits() {
    let it = Rings::new();
    it.publish(b"one ");
    assert!(!it.rings.look().unwrap());
    assert_eq!(it.console.contents(), b"");
    it.publish(b"two");
    it.call(CALL_CONSOLE_NOTIFY, [0; 6]);
    assert_eq!(it.console.contents(), b"one two");
}

#[test]
fn pv_console_4_an_impossible_input_index_is_a_full_ring() {
    let it = Rings::new();
    it.set(IN_TAIL, 1);
    assert_eq!(it.rings.input(b"abc").unwrap().1, 0);
    assert_eq!(it.get(IN_HEAD), 0);
    it.set(IN_TAIL, 0);
    assert_eq!(it.rings.input(b"abc").unwrap().1, 3);
    assert_eq!(it.get(IN_HEAD), 3);
}

#[test]
fn pv_console_3_the_tail_is_written_again() {
    let it = Rings::new();
    it.publish(b"abc");
    it.call(CALL_CONSOLE_NOTIFY, [0; 6]);
    it.set(OUT_TAIL, 77);
    it.call(CALL_CONSOLE_NOTIFY, [0; 6]);
    assert_eq!(it.get(OUT_TAIL), 3);
    assert_eq!(it.console.contents(), b"abc");
}
