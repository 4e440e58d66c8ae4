//! Text in a buffer of fixed size: this program has no allocator.

use core::fmt;

/// Text of at most `N` bytes. What does not fit is cut off and [`Text::overflowed`] says so.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
    overflowed: bool,
}

impl<const N: usize> Text<N> {
    /// No text.
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
            overflowed: false,
        }
    }

    /// The text so far.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Whether something did not fit.
    pub(crate) fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Replaces the text.
    pub(crate) fn set(&mut self, bytes: &[u8]) {
        self.length = 0;
        self.push(bytes);
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.bytes.get_mut(self.length) {
                Some(slot) => {
                    *slot = *byte;
                    self.length += 1;
                }
                None => self.overflowed = true,
            }
        }
    }

    /// Adds bytes as a JSON string; what is not printable ASCII becomes a question mark.
    pub(crate) fn push_json(&mut self, bytes: &[u8]) {
        self.push(b"\"");
        for byte in bytes {
            match byte {
                b'"' | b'\\' => self.push(&[b'\\', *byte]),
                b' '..=b'~' => self.push(&[*byte]),
                _ => self.push(b"?"),
            }
        }
        self.push(b"\"");
    }

    /// Adds bytes as a JSON string, or `null` for none.
    pub(crate) fn push_json_or_null(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.push(b"null")
        } else {
            self.push_json(bytes)
        }
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Whether `text` has `part` in it.
pub(crate) fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Reads a decimal number; `None` for anything else.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Cuts the white space at the end.
pub(crate) fn trim_end(text: &[u8]) -> &[u8] {
    text.trim_ascii_end()
}
