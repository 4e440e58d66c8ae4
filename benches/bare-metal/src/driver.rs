//! The driver domain: a guest that owns the disks and the network, and serves another guest's requests to them.
//!
//! # How it works
//!
//! The other guest has virtio queues, as with any host; its memory is mapped here, too. Its doorbell is an
//! interrupt here, and a write to [`channel::EVENT_PORT`] is one there: KVM passes both on, and the VMM has no part in
//! it. Each request is checked, copied into this domain's own queue for its own device, with addresses as they are
//! here, and what comes back is copied into the guest's used ring. A request has the same number in both queues.
//! A network's empty buffers are requests, too: they are answered when a frame has come.
//!
//! While there is work, neither side is asked to ring; before it halts, it asks both, and looks once more.
//!
//! # Whom it trusts
//!
//! The VMM. Not the guest: what it has written is read once, and a descriptor leads into its own memory or nowhere.
#![no_std]
#![no_main]

pub mod channel;
#[path = "../../../hypercall-abi/src/abi/registry.rs"]
pub mod registry;

use core::arch::{asm, global_asm};

use channel as at;

// What runs at the entry, and at an interrupt: both are as short as they can be.
global_asm!(
    ".pushsection .kernel.entry, \"ax\"",
    ".globl entry",
    "entry: xor ebp, ebp",
    "call {main}",
    // An emulator that forgets STI's shadow where it enters a guest (QEMU before 9.1) has this interrupt come before the HLT, which
    // then nothing would end: it is left out.
    "halt: sti",
    "halted: hlt",
    "cli",
    "ret",
    ".balign 16",
    "on_event: push rax",
    "lea rax, [rip + halted]",
    "cmp rax, [rsp + 8]",
    "jne 3f",
    "inc qword ptr [rsp + 8]",
    "3: btr dword ptr [{no_eoi}], 0",
    "jc 2f",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "2: pop rax",
    "iretq",
    ".popsection",
    main = sym main,
    no_eoi = const at::NO_EOI,
);

unsafe extern "C" {
    fn on_event();
    /// Waits for an interrupt that comes later, or has come since interrupts were off.
    fn halt();
}

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
/// In a ring's flags: do not tell me.
const QUIET: u16 = 1;
/// Where a ring has its index; its flags come first.
const INDEX: u64 = 2;
/// Where its entries begin.
const ENTRIES: u64 = 4;
const MSR_PV_EOI: u32 = 0x4b56_4d04;
const NO_EOI: u32 = 0x3e_f000;
const _: () = assert!(NO_EOI as u64 == at::NO_EOI);
const APIC_SPURIOUS: u64 = 0xfee0_00f0;
const APIC_ON: u32 = 0x1ff;
const KERNEL_CS: u16 = 0x10;
/// Present, an interrupt gate.
const GATE: u16 = 0x8e00;

fn pointer<T>(address: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

fn read<T: Copy>(address: u64) -> T {
    // SAFETY: addresses are constants of `channel`, or have been checked against the guest's memory: mapped, aligned.
    unsafe { pointer::<T>(address).read_volatile() }
}

fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as in `read`; no reference to these bytes exists.
    unsafe { pointer::<T>(address).write_volatile(value) }
}

/// A store before it is seen before a load behind it. (An interpreting KVM knows no MFENCE.)
fn barrier() {
    // SAFETY: it changes nothing.
    unsafe { asm!("lock or dword ptr [rsp], 0") }
}

fn out(port: u16, value: u32) {
    // SAFETY: the port is a doorbell, or one that the VMM answers at.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) }
}

/// A call of two arguments; whether it has succeeded.
fn call(id: u32, first: u64, second: u64) -> bool {
    let port: u16 = read(at::CALL_PORT);
    let status: u64;
    // SAFETY: a call of the ABI: what it takes and gives is in these registers.
    unsafe {
        asm!("out dx, eax", inlateout("rax") u64::from(id) => status, inlateout("rdx") u64::from(port) => _,
            in("rdi") first, in("rsi") second, in("r8") 0_u64, in("r9") 0_u64, in("r10") 0_u64, in("r11") 0_u64);
    }
    status == 0
}

/// A queue of the guest's, and the domain's own one, which its requests go through.
#[derive(Clone, Copy)]
struct Queue {
    /// The channel's number.
    channel: u32,
    /// Where the VMM has described it.
    base: u64,
    size: u16,
    /// The guest's rings, as they are here.
    descriptors: u64,
    available: u64,
    used: u64,
    /// Indices of the guest's requests: of the next one to take, and of the next one to answer.
    next: u16,
    answered: u16,
    /// Of the next answer in the domain's own used ring.
    seen: u16,
}

/// The guest has broken the rules.
struct Broken;

impl Queue {
    /// The queue of that number, of the channel of that one.
    const fn new(channel: u32, number: usize) -> Self {
        let base = at::FIRST + channel as u64 * at::STRIDE;
        Self {
            channel,
            base: base + at::QUEUE + number as u64 * at::QUEUE_STRIDE,
            size: 1,
            descriptors: 0,
            available: 0,
            used: 0,
            next: 0,
            answered: 0,
            seen: 0,
        }
    }

    /// The place of an index in a ring; sizes are powers of two.
    fn slot(&self, index: u16) -> u64 {
        (index & self.size.wrapping_sub(1)).into()
    }

    fn begin(&mut self) {
        // The VMM has looked at them.
        let place = |part| at::WINDOW + read::<u64>(self.base + part);
        self.descriptors = place(at::DESCRIPTORS);
        self.available = place(at::AVAILABLE);
        self.used = place(at::USED);
        self.size = read::<u16>(self.base + at::SIZE).max(1);
        for offset in (at::OWN_DESCRIPTORS..at::QUEUE_STRIDE).step_by(8) {
            write(self.base + offset, 0_u64);
        }
        // All before has been answered, and what comes behind has not, or the device was stopped before it.
        self.next = read(self.used + INDEX);
        self.answered = self.next;
        self.seen = 0;
    }

    /// Says whether guest and device are to ring.
    fn ask(&self, flags: u16) {
        write(self.used, flags);
        write(self.base + at::OWN_AVAILABLE, flags);
    }

    /// Whether there are requests or answers.
    fn has_news(&self) -> bool {
        let asked = read::<u16>(self.available + INDEX) != self.next;
        asked || read::<u16>(self.base + at::OWN_USED + INDEX) != self.seen
    }

    /// Gives the guest's new requests to the device; whether there were any.
    fn take(&mut self) -> Result<bool, Broken> {
        let available: u16 = read(self.available + INDEX);
        let outstanding = self.next.wrapping_sub(self.answered);
        let news = available.wrapping_sub(self.next);
        if news == 0 {
            return Ok(false);
        }
        if news > self.size.saturating_sub(outstanding) {
            return Err(Broken);
        }
        let own = self.base + at::OWN_AVAILABLE;
        let mut index: u16 = read(own + INDEX);
        for _ in 0..news {
            let head: u16 = read(self.available + ENTRIES + 2 * self.slot(self.next));
            if !self.copy(head) {
                return Err(Broken);
            }
            write(own + ENTRIES + 2 * self.slot(index), head);
            index = index.wrapping_add(1);
            self.next = self.next.wrapping_add(1);
        }
        write(own + INDEX, index);
        barrier();
        if read::<u16>(self.base + at::OWN_USED) & QUIET == 0 {
            out(read(at::DOORBELL), read(self.base + at::RING));
        }
        Ok(true)
    }

    /// Copies a chain, with addresses as they are here; false: it cannot be.
    fn copy(&self, head: u16) -> bool {
        let end: u64 = read(at::GUEST_END);
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return false;
            }
            let offset = 16 * u64::from(index);
            let (from, to) = (
                self.descriptors + offset,
                self.base + at::OWN_DESCRIPTORS + offset,
            );
            let (address, length): (u64, u32) = (read(from), read(from + 8));
            let (flags, next): (u16, u16) = (read(from + 12), read(from + 14));
            let fits = address < end && u64::from(length) <= end - address;
            if !fits || flags & INDIRECT != 0 {
                return false;
            }
            write(to, at::WINDOW + address);
            write(to + 8, length);
            write(to + 12, flags);
            write(to + 14, next);
            if flags & NEXT == 0 {
                return true;
            }
            index = next;
        }
        false
    }

    /// Gives the device's answers to the guest; whether there were any.
    fn answer(&mut self) -> bool {
        let own = self.base + at::OWN_USED;
        let last: u16 = read(own + INDEX);
        if last == self.seen {
            return false;
        }
        while self.seen != last {
            let from = own + ENTRIES + 8 * self.slot(self.seen);
            let to = self.used + ENTRIES + 8 * self.slot(self.answered);
            write(to, read::<u32>(from));
            write(to + 4, read::<u32>(from + 4));
            self.seen = self.seen.wrapping_add(1);
            self.answered = self.answered.wrapping_add(1);
        }
        write(self.used + INDEX, self.answered);
        barrier();
        if read::<u16>(self.available) & QUIET == 0 {
            out(at::EVENT_PORT, self.channel);
        }
        true
    }
}

/// One device.
#[derive(Clone, Copy)]
struct Channel {
    number: u32,
    /// Where the VMM has described it.
    base: u64,
    all: [Queue; at::QUEUES_MAX],
}

impl Channel {
    const fn new(number: u32) -> Self {
        let mut all = [Queue::new(number, 0); at::QUEUES_MAX];
        let mut index = 1;
        while index < all.len() {
            all[index] = Queue::new(number, index);
            index += 1;
        }
        Self {
            number,
            base: at::FIRST + number as u64 * at::STRIDE,
            all,
        }
    }

    fn is_wanted(&self) -> bool {
        read::<u32>(self.base + at::WANTED) != 0
    }

    fn state(&self) -> u32 {
        read(self.base + at::STATE)
    }

    fn set_state(&self, state: u32) {
        write(self.base + at::STATE, state);
    }

    fn queues(&mut self) -> impl Iterator<Item = &mut Queue> {
        let count: u32 = read(self.base + at::QUEUES);
        self.all.iter_mut().take(count as usize)
    }

    /// Does what there is to do; whether there was something.
    fn step(&mut self) -> bool {
        match (self.state(), self.is_wanted()) {
            (at::IDLE, true) => self.begin(),
            (at::SERVING, true) => return self.serve(),
            (at::SERVING, false) => self.end(at::IDLE),
            (at::BROKEN, false) => self.set_state(at::IDLE),
            _ => return false,
        }
        true
    }

    fn begin(&mut self) {
        self.queues().for_each(Queue::begin);
        let (number, start) = (self.number.into(), self.base + at::START);
        if call(registry::CALL_DEV_START, number, start) {
            self.set_state(at::SERVING);
            self.ask(QUIET);
        } else {
            self.refuse();
        }
    }

    fn serve(&mut self) -> bool {
        let (mut busy, mut broken) = (false, false);
        for queue in self.queues() {
            busy |= queue.answer();
            match queue.take() {
                Ok(taken) => busy |= taken,
                Err(Broken) => broken = true,
            }
        }
        if broken {
            self.refuse();
        }
        busy || broken
    }

    /// What the device has not done when it is stopped, it does when it begins again: it keeps the order.
    fn end(&mut self, state: u32) {
        call(registry::CALL_DEV_STOP, self.number.into(), 0);
        for queue in self.queues() {
            queue.answer();
            queue.ask(0);
        }
        self.set_state(state);
    }

    /// The guest has broken the rules: nothing of it is in work any more, and the VMM is told.
    fn refuse(&mut self) {
        self.end(at::BROKEN);
        out(at::EVENT_PORT, self.number | at::EVENT_BROKEN);
    }

    fn ask(&mut self, flags: u16) {
        self.queues().for_each(|queue| queue.ask(flags));
    }

    /// Has guest and device ring; whether there is something already.
    fn listen(&mut self) -> bool {
        if self.state() != at::SERVING {
            return false;
        }
        self.ask(0);
        barrier();
        !self.is_wanted() || self.queues().any(|queue| queue.has_news())
    }
}

/// Interrupts: one vector, at which nothing is to be done but to wake up.
fn set_up() {
    let handler: unsafe extern "C" fn() = on_event;
    let [a, b, c, d, e, f, g, h] = (handler as usize as u64).to_le_bytes();
    let gate = at::IDT + 16 * u64::from(at::VECTOR);
    write(gate, u16::from_le_bytes([a, b]));
    write(gate + 2, KERNEL_CS);
    write(gate + 4, GATE);
    write(gate + 6, u16::from_le_bytes([c, d]));
    write(gate + 8, u32::from_le_bytes([e, f, g, h]));
    write(at::IDTR + 6, 0xfff_u16);
    write(at::IDTR + 8, at::IDT);
    // SAFETY: the table has the only gate that is used.
    unsafe { asm!("lidt [{}]", in(reg) at::IDTR + 6) };
    write(APIC_SPURIOUS, APIC_ON);
    if read::<u32>(at::HAS_NO_EOI) != 0 {
        let (low, high) = (NO_EOI | 1, 0);
        // SAFETY: the VMM says that this KVM has the register; the word is nobody else's.
        unsafe { asm!("wrmsr", in("ecx") MSR_PV_EOI, in("eax") low, in("edx") high) };
    }
}

const fn channels() -> [Channel; at::CHANNELS_MAX] {
    let mut all = [Channel::new(0); at::CHANNELS_MAX];
    let mut number = 0;
    while (number as usize) < all.len() {
        all[number as usize] = Channel::new(number);
        number += 1;
    }
    all
}

/// Here and not on the stack, since an interpreting KVM does not know what fills a stack quickly.
static mut ALL: [Channel; at::CHANNELS_MAX] = channels();

extern "C" fn main() -> ! {
    set_up();
    let all = &raw mut ALL;
    // SAFETY: this is the only use, in the only thread, which enters here once.
    let all = unsafe { &mut *all };
    let count: u32 = read(at::CHANNELS);
    let count = usize::try_from(count).unwrap_or(0);
    loop {
        let mut busy = false;
        for channel in all.iter_mut().take(count) {
            busy |= channel.step();
        }
        if busy {
            continue;
        }
        for channel in all.iter_mut().take(count) {
            busy |= channel.listen();
        }
        if !busy {
            // SAFETY: interrupts are taken there only, and change nothing.
            unsafe { halt() };
        }
        for channel in all.iter_mut().take(count) {
            if channel.state() == at::SERVING {
                channel.ask(QUIET);
            }
        }
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
