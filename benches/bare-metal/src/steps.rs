//! What the self-reporting guest tries, step by step: the table that `conform.rs` walks.
//!
//! A step does one thing, which gives a status and a value, and says what they must be. Numbers are the
//! ABI's own; what a step finds can be kept in a slot, for later steps to compare with.

use crate::conform::*;
use crate::registry::*;

/// What a step does.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Op {
    /// Reads a register (`arg 0`: 0 to 3, EAX to EDX) of CPUID leaf base + `what`.
    Leaf = 0,
    /// Loads 8 bytes at `what` behind the address in slot `arg 0`.
    Load = 1,
    /// Stores the 4 bytes of `arg 1` at `what` behind the address in slot `arg 0`.
    Store = 2,
    /// Makes call `what`; registers that must stay have to be as before.
    Call = 3,
    /// Writes one byte to the doorbell, with EAX as for call `what`; RAX and RDX are status and value.
    Byte = 4,
    /// Writes two bytes.
    Word = 5,
    /// Loads like [`Op::Load`] until the value is as expected or the `u32` at `arg 1` behind the same address is
    /// zero, and then gives the value that is expected; between two loads the host gets a call.
    Await = 6,
}

/// What the value must be.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Rule {
    /// As expected.
    Equal = 0,
    /// Anything else.
    Differs = 1,
    /// Not below.
    AtLeast = 2,
}

/// Most bytes of a step's text.
pub(crate) const TEXT_MAX: usize = 104;

/// A step. The assembly reads it by these offsets.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Step {
    /// See [`Op`].
    pub(crate) op: u64,
    /// Leaf, offset or call id.
    pub(crate) what: u64,
    /// Arguments.
    pub(crate) args: [u64; 6],
    /// Facility bits without which the step is skipped.
    pub(crate) needs: u64,
    /// The status that it must give.
    pub(crate) status: u64,
    /// Bits of the value that matter.
    pub(crate) mask: u64,
    /// See [`Rule`].
    pub(crate) rule: u64,
    /// What to compare with.
    pub(crate) expected: u64,
    /// Not zero: `expected` is a slot's number.
    pub(crate) from_slot: u64,
    /// The slot that keeps the value.
    pub(crate) keep: u64,
    /// Bytes of text; zero: a step that is no test.
    pub(crate) text_len: u64,
    /// Clause and what is tried.
    pub(crate) text: [u8; TEXT_MAX],
}

const fn step(op: Op, what: u64, args: &[u64], text: &str) -> Step {
    let mut step = Step {
        op: op as u64,
        what,
        args: [0; 6],
        needs: 0,
        status: 0,
        mask: u64::MAX,
        rule: Rule::Equal as u64,
        expected: 0,
        from_slot: 0,
        keep: SLOT_NOWHERE,
        text_len: text.len() as u64,
        text: [0; TEXT_MAX],
    };
    let mut n = 0;
    while n < args.len() {
        step.args[n] = args[n];
        n += 1;
    }
    n = 0;
    while n < text.len() {
        step.text[n] = text.as_bytes()[n];
        n += 1;
    }
    step
}

/// A call; `args` that are not given are zero.
const fn call(id: u32, args: &[u64], text: &str) -> Step {
    let facility = id >> 16;
    let step = step(Op::Call, id as u64, args, text);
    // Every call needs its facility, but for ids that nobody has.
    if facility < 64 {
        step.needs(1 << facility)
    } else {
        step
    }
}

/// A call id that no host carries out.
const fn unknown(id: u32, args: &[u64], text: &str) -> Step {
    step(Op::Call, id as u64, args, text).fails(STATUS_NOT_SUPPORTED)
}

const fn leaf(leaf: u32, register: u64, text: &str) -> Step {
    step(Op::Leaf, leaf as u64, &[register], text).mask(u32::MAX as u64)
}

const fn info(offset: u64, text: &str) -> Step {
    step(Op::Load, offset, &[SLOT_BOOT_INFO], text)
}

impl Step {
    const fn needs(mut self, bits: u64) -> Self {
        self.needs = bits;
        self
    }
    const fn mask(mut self, mask: u64) -> Self {
        self.mask = mask;
        self
    }
    const fn fails(mut self, status: i64) -> Self {
        self.status = status.cast_unsigned();
        self
    }
    const fn is(mut self, value: u64) -> Self {
        self.expected = value;
        self
    }
    const fn is_slot(mut self, slot: u64) -> Self {
        self.from_slot = 1;
        self.is(slot)
    }
    const fn is_not(mut self, value: u64) -> Self {
        self.rule = Rule::Differs as u64;
        self.is(value)
    }
    const fn at_least(mut self, value: u64) -> Self {
        self.rule = Rule::AtLeast as u64;
        self.is(value)
    }
    const fn at_least_slot(mut self, slot: u64) -> Self {
        self.from_slot = 1;
        self.at_least(slot)
    }
    const fn keep(mut self, slot: u64) -> Self {
        self.keep = slot;
        self
    }
}

const LOW: u64 = u32::MAX as u64;
const CONSOLE: u64 = 1 << FACILITY_CONSOLE;
const CLOCK: u64 = 1 << FACILITY_CLOCK;
const PAGE_REST: u64 = PAGE_SIZE as u64 - 1;
const TRANSPORTS: u32 = TRANSPORT_DOORBELL | TRANSPORT_RING | TRANSPORT_EXITLESS | TRANSPORT_VMCALL;
/// Offsets in `BootInfo` and `ConsolePage`.
const CLOCK_INFO: u64 = 48;
const CONSOLE_INFO: u64 = 96;
const OUT_TAIL: u64 = 64;
const HOST_LOOKS: u64 = 68;

/// All steps, in this order.
pub(crate) const LIST: &[Step] = &[
    leaf(
        CPUID_LEAF_SIGNATURE,
        0,
        "PV-DISC-1 the block is found; PV-DISC-2 its last leaf is told",
    )
    .at_least_slot(SLOT_LEAST_LAST_LEAF),
    leaf(CPUID_LEAF_FEATURES, 1, "PV-DISC-3 facility base is offered")
        .mask(1 << FACILITY_BASE)
        .is_not(0),
    leaf(
        CPUID_LEAF_FEATURES,
        3,
        "PV-DISC-3 the doorbell is among the transports",
    )
    .mask(TRANSPORT_DOORBELL as u64)
    .is_not(0),
    leaf(
        CPUID_LEAF_FEATURES,
        3,
        "PV-DISC-3 undefined transport bits are zero",
    )
    .mask(LOW & !(TRANSPORTS as u64)),
    leaf(CPUID_LEAF_FEATURES, 3, "")
        .keep(SLOT_TRANSPORTS)
        .at_least(0),
    leaf(CPUID_LEAF_FEATURES, 0, "")
        .keep(SLOT_VERSION)
        .at_least(0),
    leaf(CPUID_LEAF_BOOT, 0, "PV-DISC-4 the boot-info page is a page").mask(PAGE_REST),
    leaf(CPUID_LEAF_BOOT, 2, "PV-DISC-4 the doorbell is a port").mask(LOW & !0xffff),
    leaf(CPUID_LEAF_BOOT, 3, "PV-DISC-4 EDX is zero"),
    call(
        CALL_BASE_NOP,
        &[0x1234_5678_9abc_def0],
        "PV-CALL-1 an OUT to the doorbell is a call",
    )
    .is(0x1234_5678_9abc_def0),
    step(
        Op::Byte,
        CALL_BASE_NOP as u64,
        &[7],
        "PV-CALL-1 a write of one byte is not a call",
    )
    .fails(CALL_BASE_NOP as i64)
    .is_slot(SLOT_PORT),
    step(
        Op::Word,
        CALL_BASE_NOP as u64,
        &[7],
        "PV-CALL-1 a write of two bytes is not a call",
    )
    .fails(CALL_BASE_NOP as i64)
    .is_slot(SLOT_PORT),
    call(
        CALL_BASE_NOP,
        &[u64::MAX],
        "PV-CALL-2 64 bits there and back, other registers stay",
    )
    .is(u64::MAX),
    call(
        CALL_BASE_NOP,
        &[1, 1],
        "PV-CALL-3 argument 1 of base.nop is zero",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_BASE_NOP,
        &[1, 0, 0, 0, 0, 1 << 63],
        "PV-CALL-3 argument 5 of base.nop is zero",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_BASE_VERSION,
        &[1],
        "PV-CALL-3 base.version has no argument",
    )
    .fails(STATUS_INVALID_PARAM),
    unknown(0, &[], "PV-CALL-4 call 0 is not supported"),
    unknown(
        0,
        &[1, 2, 3, 4, 5, 6],
        "PV-CALL-4 call 0 is not supported, whatever the arguments",
    ),
    unknown(
        FACILITY_BASE << 16 | 0xffff,
        &[],
        "PV-CALL-4 the last function of base is not supported",
    ),
    unknown(
        (FACILITY_BASE + 64) << 16,
        &[],
        "PV-CALL-4 a facility that is base modulo 64 is not supported",
    ),
    unknown(u32::MAX, &[], "PV-CALL-4 call 0xffffffff is not supported"),
    info(0, "PV-BOOT-2 the magic is there").is(0x454e_4156_4152_4150),
    info(12, "PV-BOOT-3 the size covers what every host has")
        .mask(LOW)
        .at_least(CLOCK_INFO),
    info(8, "PV-BOOT-1 the version is that of CPUID")
        .mask(LOW)
        .is_slot(SLOT_VERSION),
    info(16, "PV-BOOT-1 the facility word is that of CPUID").is_slot(SLOT_FACILITIES),
    info(24, "PV-BOOT-1 the transports are those of CPUID")
        .mask(LOW)
        .is_slot(SLOT_TRANSPORTS),
    info(28, "PV-BOOT-1 the doorbell is that of CPUID")
        .mask(LOW)
        .is_slot(SLOT_PORT),
    info(40, "PV-BOOT-1 there is a processor")
        .mask(LOW)
        .at_least(1),
    info(44, "PV-BOOT-1 what is reserved is zero").mask(LOW),
    info(PAGE_REST - 7, "PV-BOOT-1 the rest of the page is zero"),
    call(
        CALL_BASE_VERSION,
        &[],
        "PV-BASE-1 the version is that of CPUID",
    )
    .is_slot(SLOT_VERSION),
    call(
        CALL_BASE_FACILITIES,
        &[],
        "PV-BASE-2 the facility word is that of CPUID",
    )
    .is_slot(SLOT_FACILITIES),
    call(
        CALL_BASE_PROBE,
        &[CALL_BASE_NOP as u64],
        "PV-BASE-3 base.nop is found",
    )
    .is(1),
    call(CALL_BASE_PROBE, &[0], "PV-BASE-3 call 0 is not found"),
    call(
        CALL_BASE_PROBE,
        &[LOW],
        "PV-BASE-3 call 0xffffffff is not found",
    ),
    call(
        CALL_BASE_PROBE,
        &[1 << 32 | CALL_BASE_NOP as u64],
        "PV-BASE-6 an id has 32 bits",
    )
    .fails(STATUS_INVALID_PARAM),
    call(CALL_BASE_NOP, &[0], "PV-BASE-4 base.nop gives zero back"),
    call(
        CALL_BASE_NOP,
        &[1 << 63],
        "PV-BASE-4 base.nop gives bit 63 back",
    )
    .is(1 << 63),
    call(
        CALL_BASE_POWER,
        &[POWER_CRASH + 1, 0],
        "PV-BASE-7 an unknown action is invalid",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_BASE_POWER,
        &[0, POWER_REASON_EMERGENCY + 1],
        "PV-BASE-7 an unknown reason is invalid",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_CONSOLE_WRITE,
        &[COMMENT, COMMENT_LEN],
        "PV-CONSOLE-1 all bytes are taken",
    )
    .is(COMMENT_LEN),
    call(
        CALL_CONSOLE_WRITE,
        &[u64::MAX, 0],
        "PV-CONSOLE-1 no bytes are no error",
    ),
    call(
        CALL_CONSOLE_WRITE,
        &[COMMENT, CONSOLE_WRITE_MAX + 1],
        "PV-CONSOLE-1 too long is invalid",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_CONSOLE_WRITE,
        &[u64::MAX - 4, 16],
        "PV-CONSOLE-1 a range that wraps is a bad address",
    )
    .fails(STATUS_BAD_ADDRESS),
    call(
        CALL_CONSOLE_WRITE,
        &[1 << 62, 1],
        "PV-CONSOLE-1 a range outside memory is a bad address",
    )
    .fails(STATUS_BAD_ADDRESS),
    info(CONSOLE_INFO, "PV-CONSOLE-2 the console page is a page")
        .mask(PAGE_REST)
        .needs(CONSOLE),
    info(
        CONSOLE_INFO + 8,
        "PV-CONSOLE-2 the output buffer has a page at least",
    )
    .mask(LOW)
    .at_least(PAGE_SIZE as u64)
    .needs(CONSOLE),
    info(
        CONSOLE_INFO + 12,
        "PV-CONSOLE-2 the input buffer has a page at least",
    )
    .mask(LOW)
    .at_least(PAGE_SIZE as u64)
    .needs(CONSOLE),
    info(CONSOLE_INFO, "")
        .needs(CONSOLE)
        .keep(SLOT_CONSOLE)
        .at_least(0),
    call(
        CALL_CONSOLE_NOTIFY,
        &[],
        "PV-CONSOLE-5 an empty ring is no error",
    ),
    // Eight bytes of a comment, then the head.
    step(
        Op::Store,
        PAGE_SIZE as u64,
        &[SLOT_CONSOLE, u32::from_le_bytes(*b"# ri") as u64],
        "",
    )
    .needs(CONSOLE),
    step(
        Op::Store,
        PAGE_SIZE as u64 + 4,
        &[SLOT_CONSOLE, u32::from_le_bytes(*b"ng.\n") as u64],
        "",
    )
    .needs(CONSOLE),
    step(Op::Store, 0, &[SLOT_CONSOLE, 8], "").needs(CONSOLE),
    call(
        CALL_CONSOLE_NOTIFY,
        &[],
        "PV-CONSOLE-5 console.notify returns zero",
    ),
    step(
        Op::Load,
        OUT_TAIL,
        &[SLOT_CONSOLE],
        "PV-CONSOLE-5 all bytes of the ring were taken",
    )
    .mask(LOW)
    .is(8)
    .needs(CONSOLE),
    // Eight bytes more, and no call: whoever has promised to look takes them.
    step(
        Op::Store,
        PAGE_SIZE as u64 + 8,
        &[SLOT_CONSOLE, u32::from_le_bytes(*b"# lo") as u64],
        "",
    )
    .needs(CONSOLE),
    step(
        Op::Store,
        PAGE_SIZE as u64 + 12,
        &[SLOT_CONSOLE, u32::from_le_bytes(*b"ok.\n") as u64],
        "",
    )
    .needs(CONSOLE),
    step(Op::Store, 0, &[SLOT_CONSOLE, 16], "").needs(CONSOLE),
    step(
        Op::Await,
        OUT_TAIL,
        &[SLOT_CONSOLE, HOST_LOOKS],
        "PV-CONSOLE-12 bytes are taken while the host looks",
    )
    .mask(LOW)
    .is(16)
    .needs(CONSOLE),
    call(
        CALL_CONSOLE_NOTIFY,
        &[],
        "PV-CONSOLE-5 console.notify returns zero once more",
    ),
    step(
        Op::Load,
        OUT_TAIL,
        &[SLOT_CONSOLE],
        "PV-CONSOLE-5 all bytes of the ring were taken once more",
    )
    .mask(LOW)
    .is(16)
    .needs(CONSOLE),
    call(
        CALL_CONSOLE_EVENT,
        &[0, 0],
        "PV-CONSOLE-7 vector zero is no error",
    ),
    call(
        CALL_CONSOLE_EVENT,
        &[EVENT_VECTOR_FIRST - 1, 0],
        "PV-CONSOLE-11 a vector too low is invalid",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_CONSOLE_EVENT,
        &[EVENT_VECTOR_LAST + 1, 0],
        "PV-CONSOLE-11 a vector too high is invalid",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_CONSOLE_EVENT,
        &[EVENT_VECTOR_FIRST, u64::MAX],
        "PV-CONSOLE-11 no such processor is invalid",
    )
    .fails(STATUS_INVALID_PARAM),
    info(CLOCK_INFO, "PV-CLOCK-1 the counter has a frequency")
        .at_least(1_000_000)
        .needs(CLOCK),
    info(CLOCK_INFO + 8, "PV-CLOCK-5 the timer has a frequency")
        .at_least(1_000_000)
        .needs(CLOCK),
    info(CLOCK_INFO + 32, "PV-CLOCK-4 undefined flags are zero")
        .mask(LOW & !1)
        .needs(CLOCK),
    // 2020-01-01: the host's clock is set.
    info(CLOCK_INFO + 16, "PV-CLOCK-2 there is a time of day")
        .at_least(1_577_836_800_000_000_000)
        .needs(CLOCK)
        .keep(SLOT_WALL),
    call(
        CALL_CLOCK_WALL,
        &[],
        "PV-CLOCK-3 it is now, and not before the start",
    )
    .at_least_slot(SLOT_WALL)
    .keep(SLOT_WALL),
    call(CALL_CLOCK_WALL, &[], "PV-CLOCK-3 time goes on").at_least_slot(SLOT_WALL),
    call(
        CALL_CLOCK_WALL,
        &[1],
        "PV-CALL-3 clock.wall has no argument",
    )
    .fails(STATUS_INVALID_PARAM),
    call(
        CALL_CRASH_REPORT,
        &[COMMENT, 8],
        "PV-CRASH-2 a wrong length is invalid",
    )
    .fails(STATUS_INVALID_PARAM),
];

/// How many of them are tests.
pub(crate) const TESTS: u64 = {
    let (mut tests, mut n) = (0, 0);
    while n < LIST.len() {
        tests += (LIST[n].text_len != 0) as u64;
        n += 1;
    }
    tests
};
