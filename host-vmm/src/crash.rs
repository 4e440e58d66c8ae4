//! Telling people why a guest died: symbols, backtraces, last words.

use std::fmt::Write as _;
use std::path::Path;

use object::{Object, ObjectSymbol, SymbolKind};
use paravane_abi::crash::CrashRecord;

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

    /// `function+0xoffset`, or the bare address where the kernel has no function.
    #[must_use]
    pub fn name(&self, address: u64) -> String {
        let after = self
            .functions
            .partition_point(|(start, _)| *start <= address);
        match after.checked_sub(1).map(|i| &self.functions[i]) {
            // A megabyte from the last symbol is no longer in it.
            Some((start, name)) if address - start < 1 << 20 => {
                format!("{address:#018x} {name}+{:#x}", address - start)
            }
            _ => format!("{address:#018x}"),
        }
    }
}

/// Text from a guest for a terminal: nothing but printable characters and newlines.
fn printable(bytes: &[u8]) -> String {
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
        symbols.name(record.rip),
        record.rsp,
        record.cr2,
        record.cr3,
    );
    if record.backtrace_len > 0 {
        text.push_str("backtrace, innermost first:\n");
    }
    for address in record.backtrace.iter().take(record.backtrace_len as usize) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}", symbols.name(*address));
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
    fn a_guest_cannot_send_escape_sequences_to_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a.[2Jb\n");
    }
}
