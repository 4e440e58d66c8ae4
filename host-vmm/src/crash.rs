//! Telling people why a guest died: symbols, backtraces, last words.

pub mod processor;

use std::fmt::Write as _;
use std::path::Path;

use object::{Object, ObjectSymbol, SymbolKind};
use paravane_abi::crash::CrashRecord;

/// Where Linux puts modules, up to its fixed mappings.
const MODULES: std::ops::Range<u64> = 0xffff_ffff_a000_0000..0xffff_ffff_ff00_0000;
/// Most frames of a stack that is walked from outside.
const FRAMES_MAX: usize = 24;

/// A kernel's functions, by address.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Sorted by address.
    functions: Vec<(u64, String)>,
}

impl Symbols {
    /// Reads the symbol table of an ELF `vmlinux`; none for any other file.
    #[must_use]
    pub fn read(kernel: &Path) -> Self {
        let Ok(bytes) = std::fs::read(kernel) else {
            return Self::default();
        };
        let Ok(file) = object::File::parse(bytes.as_slice()) else {
            return Self::default();
        };
        let mut functions: Vec<(u64, String)> = file
            .symbols()
            .filter(|s| {
                s.address() != 0
                    && matches!(
                        s.kind(),
                        SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown
                    )
            })
            .filter_map(|s| Some((s.address(), s.name().ok()?.to_owned())))
            .filter(|(_, name)| !name.is_empty())
            .collect();
        functions.sort_unstable();
        functions.dedup_by_key(|(address, _)| *address);
        Self { functions }
    }

    /// The function that `address` lies in, and where it begins.
    fn find(&self, address: u64) -> Option<(u64, &str)> {
        let after = self
            .functions
            .partition_point(|(start, _)| *start <= address);
        let (start, name) = self.functions.get(after.checked_sub(1)?)?;
        // A megabyte from the last symbol is no longer in it.
        (address - start < 1 << 20).then_some((*start, name.as_str()))
    }

    /// The address with its function, `function+0xoffset`, that `inside` lies in.
    fn describe(&self, address: u64, inside: u64) -> String {
        match self.find(inside) {
            _ if MODULES.contains(&address) => {
                format!(
                    "{address:#018x} in a module, whose symbols the kernel's file does not have"
                )
            }
            Some((start, name)) => format!("{address:#018x} {name}+{:#x}", address - start),
            None => format!("{address:#018x}"),
        }
    }

    /// `function+0xoffset` of an instruction, or the bare address where the kernel has no function.
    #[must_use]
    pub fn name(&self, address: u64) -> String {
        self.describe(address, address)
    }

    /// The same of a return address. It is that of the instruction after a call, and where the called function does not
    /// return there is none: the next function begins there.
    #[must_use]
    pub fn caller(&self, address: u64) -> String {
        self.describe(address, address.saturating_sub(1))
    }

    /// The same of what a panic says was executed: an instruction, or the return address of who called `panic`.
    fn culprit(&self, address: u64) -> String {
        match self.find(address) {
            Some((start, _)) if start == address => self.caller(address),
            _ => self.name(address),
        }
    }
}

/// The return addresses of a stack with frame pointers, innermost first. `read` gives the two words at a virtual
/// address. The stack is a stranger's: the walk goes up only, and not for ever.
#[must_use]
pub fn walk(frame: u64, read: impl Fn(u64) -> Option<[u64; 2]>) -> Vec<u64> {
    let mut found = Vec::new();
    let mut at = frame;
    while found.len() < FRAMES_MAX && at.is_multiple_of(8) && at >> 63 == 1 {
        let Some([next, address]) = read(at).filter(|[_, address]| *address != 0) else {
            break;
        };
        found.push(address);
        if next <= at {
            break;
        }
        at = next;
    }
    found
}

/// Text from a guest for a terminal: nothing but printable characters and newlines.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c == '\n' || !c.is_control() { c } else { '.' })
        .collect()
}

/// A panic record as a report.
#[must_use]
pub fn report(record: &CrashRecord, symbols: &Symbols) -> String {
    let part = |bytes: &[u8], length: u32| printable(&bytes[..bytes.len().min(length as usize)]);
    let mut text = format!(
        "the guest's kernel panicked on CPU {}: {}\n  rip {}\n  rsp {:#018x}  cr2 {:#x}  cr3 {:#x}\n",
        record.cpu,
        part(&record.message, record.message_len).trim_end(),
        symbols.culprit(record.rip),
        record.rsp,
        record.cr2,
        record.cr3,
    );
    if record.backtrace_len > 0 {
        text.push_str("backtrace, innermost first:\n");
    }
    let entries = &record.backtrace[..record.backtrace.len().min(record.backtrace_len as usize)];
    for (depth, address) in entries.iter().enumerate() {
        let name = match depth {
            0 => symbols.culprit(*address),
            _ => symbols.caller(*address),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name}");
    }
    if entries.len() == record.backtrace.len() {
        text.push_str("  … a record has no room for more: there can be callers beyond\n");
    }
    if record.log_len > 0 {
        text.push_str("the last of its log:\n");
        for line in part(&record.log, record.log_len).lines() {
            let _ = writeln!(text, "  | {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn addresses_get_the_function_that_they_lie_in() {
        let symbols = Symbols {
            functions: vec![(0x1000, "first".into()), (0x2000, "second".into())],
        };
        assert!(symbols.name(0x1fff).ends_with("first+0xfff"));
        assert!(symbols.name(0x2000).ends_with("second+0x0"));
        assert_eq!(symbols.name(0xfff), "0x0000000000000fff");
    }

    #[test]
    fn a_function_that_ends_with_its_call_is_still_the_caller() {
        let symbols = Symbols {
            functions: vec![(0x1000, "first".into()), (0x2000, "second".into())],
        };
        assert!(symbols.caller(0x2000).ends_with("first+0x1000"));
        assert!(symbols.caller(0x2001).ends_with("second+0x1"));
        assert!(symbols.culprit(0x2000).ends_with("first+0x1000"));
        assert!(symbols.culprit(0x2001).ends_with("second+0x1"));
    }

    #[test]
    fn an_address_in_a_module_is_no_function_of_the_kernel() {
        let symbols = Symbols {
            functions: vec![(MODULES.start - 0x10, "last".into())],
        };
        assert!(symbols.name(MODULES.start).contains("in a module"));
        assert!(symbols.caller(MODULES.start + 1).contains("in a module"));
    }

    #[test]
    fn a_record_that_is_full_says_that_there_can_be_more() {
        let mut record = CrashRecord::new_zeroed();
        for (length, more) in [(31, false), (32, true), (u32::MAX, true)] {
            record.backtrace_len = length;
            let text = report(&record, &Symbols::default());
            assert_eq!(text.contains("no room for more"), more, "{length}");
        }
    }

    #[test]
    fn a_stack_is_walked_upwards_and_to_an_end() {
        const STACK: u64 = 0xffff_8000_0000_0000;
        let linked = |at: u64| Some([at + 16, at]);
        assert_eq!(walk(STACK, linked).len(), FRAMES_MAX);
        let ends = |at: u64| Some([if at == STACK { STACK + 32 } else { 0 }, 1]);
        assert_eq!(walk(STACK, ends), [1, 1]);
        for frame in [0, 0x1000, STACK + 1] {
            assert!(walk(frame, linked).is_empty(), "{frame:#x}");
        }
        assert_eq!(walk(STACK, |at| Some([at, 1])), [1], "a loop");
        assert!(walk(STACK, |_| None).is_empty());
    }

    #[test]
    fn a_guest_cannot_send_escape_sequences_to_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a.[2Jb\n");
    }
}
