//! A fleet without a terminal: lines, each with its guest's name before it.

use std::io::{self, Write as _};

use super::{Event, Fleet, Processes, View};

/// The lines.
pub(super) struct Plain {
    names: Vec<String>,
    width: usize,
    /// What of each guest's last line has come.
    begun: Vec<Vec<u8>>,
}

/// A line that is longer is cut in pieces: a guest cannot make us keep all that it prints.
const LONGEST_LINE: usize = 4096;

impl Plain {
    pub(super) fn new(fleet: &Fleet) -> Self {
        let names: Vec<String> = fleet
            .guests
            .iter()
            .map(|guest| guest.name.clone())
            .collect();
        Self {
            width: names
                .iter()
                .map(|name| name.chars().count())
                .max()
                .unwrap_or(0),
            begun: vec![Vec::new(); names.len()],
            names,
        }
    }

    fn print(&self, guest: usize, line: &[u8]) -> io::Result<()> {
        let name = self.names.get(guest).map_or("?", |name| name);
        let text: String = String::from_utf8_lossy(line)
            .chars()
            .filter(|c| !c.is_control() || *c == '\t')
            .collect();
        writeln!(
            io::stdout().lock(),
            "{name:<width$} | {text}",
            width = self.width
        )
    }

    /// The whole lines that have come; with `all`, also what is left.
    fn take(&mut self, guest: usize, bytes: &[u8], all: bool) -> io::Result<()> {
        let Some(begun) = self.begun.get_mut(guest) else {
            return Ok(());
        };
        let mut text = std::mem::take(begun);
        text.extend_from_slice(bytes);
        let mut rest = text.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.print(guest, rest.get(..end).unwrap_or_default())?;
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        if rest.len() >= LONGEST_LINE || (all && !rest.is_empty()) {
            self.print(guest, rest)?;
            rest = &[];
        }
        if let Some(begun) = self.begun.get_mut(guest) {
            *begun = rest.to_vec();
        }
        Ok(())
    }
}

impl View for Plain {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Output { guest, bytes } => self.take(*guest, bytes, false),
            Event::Ended { guest, code, again } => {
                self.take(*guest, &[], true)?;
                self.print(*guest, super::panes::ending(*code, *again).as_bytes())
            }
        }
    }

    fn pass(&mut self, _processes: &mut Processes) -> io::Result<bool> {
        io::stdout().flush()?;
        Ok(false)
    }
}
