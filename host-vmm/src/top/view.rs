//! The table, on a terminal or as text.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row as TableRow, Table};
use serde_json::Value;

use super::rates::Row;
use super::{GuestSnapshot, Snapshot};

/// The terminal, until it is dropped.
pub(super) struct Screen {
    terminal: ratatui::DefaultTerminal,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            terminal: ratatui::try_init()?,
        })
    }

    pub(super) fn draw(&mut self, now: &Snapshot, rows: &[Row]) -> io::Result<()> {
        self.terminal.draw(|frame| frame_of(frame, now, rows))?;
        Ok(())
    }

    /// Waits for the next look; returns whether the user wants to leave.
    pub(super) fn wait(&mut self, interval: Duration) -> io::Result<bool> {
        let until = Instant::now() + interval;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !event::poll(left)? {
                return Ok(false);
            }
            if let Event::Key(key) = event::read()? {
                let interrupted =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn frame_of(frame: &mut Frame<'_>, now: &Snapshot, rows: &[Row]) {
    let consoles = now.guests.iter().any(|guest| !guest.console.is_empty());
    let bottom = if consoles { 10 } else { 0 };
    let [table_area, console_area, help_area] = Layout::vertical([
        Constraint::Min(5),
        Constraint::Length(bottom),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let header = std::iter::once(String::new()).chain(now.guests.iter().map(title));
    let cells = rows.iter().map(|row| {
        let counts = row.cells.iter().map(|cell| cell_text(*cell));
        TableRow::new(std::iter::once(row.label.clone()).chain(counts))
    });
    let widths = std::iter::once(Constraint::Length(30))
        .chain(now.guests.iter().map(|_| Constraint::Fill(1)));
    let table = Table::new(cells, widths)
        .header(TableRow::new(header).style(Style::new().bold()))
        .block(Block::new());
    frame.render_widget(table, table_area);
    if consoles {
        let areas = Layout::horizontal(now.guests.iter().map(|_| Constraint::Fill(1)));
        for (guest, area) in now.guests.iter().zip(areas.split(console_area).iter()) {
            let lines: Vec<Line<'_>> = guest
                .console
                .iter()
                .map(|line| line.as_str().into())
                .collect();
            let block = Block::bordered().title(guest.name.as_str());
            frame.render_widget(Paragraph::new(lines).block(block), *area);
        }
    }
    frame.render_widget(
        Line::from("q leaves; count, and how many a second").dim(),
        help_area,
    );
}

/// A guest's heading: its name, state and time.
fn title(guest: &GuestSnapshot) -> String {
    let text = |name: &str| {
        guest
            .status
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or("?")
    };
    let number = |name: &str| guest.status.get(name).and_then(Value::as_u64).unwrap_or(0);
    let seconds = number("uptime_ms") / 1000;
    format!(
        "{} ({}, {} CPU, {}, {seconds} s)",
        guest.name,
        text("guest"),
        number("cpus"),
        text("state")
    )
}

fn cell_text(cell: Option<(u64, Option<f64>)>) -> String {
    match cell {
        None => "–".to_owned(),
        Some((count, None)) => count.to_string(),
        Some((count, Some(rate))) => format!("{count} ({rate:.0}/s)"),
    }
}

/// The table as text, for where there is no terminal.
pub(super) fn text(now: &Snapshot, rows: &[Row]) -> String {
    let mut out = format!("at {}.{:03} s\n", now.t_ms / 1000, now.t_ms % 1000);
    let _ = write!(out, "{:<30}", "");
    for guest in &now.guests {
        let _ = write!(out, " {:>34}", title(guest));
    }
    out.push('\n');
    for row in rows {
        let _ = write!(out, "{:<30}", row.label);
        for cell in &row.cells {
            let _ = write!(out, " {:>34}", cell_text(*cell));
        }
        out.push('\n');
    }
    for guest in &now.guests {
        for line in &guest.console {
            let _ = writeln!(out, "{}: {line}", guest.name);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn snapshot() -> Snapshot {
        let guest = |name: &str, exits: u64| GuestSnapshot {
            name: name.into(),
            status: json!({ "guest": name, "state": "running", "cpus": 1, "uptime_ms": 2500 }),
            stats: json!({ "exits": exits }),
            console: vec![format!("hello from {name}")],
        };
        Snapshot {
            t_ms: 1500,
            guests: vec![guest("full", 900), guest("para", 12)],
        }
    }

    #[test]
    fn both_guests_stand_side_by_side() {
        let now = snapshot();
        let rows = super::super::rates::rows(None, &now);
        let mut terminal = Terminal::new(TestBackend::new(110, 24)).unwrap();
        terminal.draw(|frame| frame_of(frame, &now, &rows)).unwrap();
        let screen = terminal.backend().to_string();
        let line = screen
            .lines()
            .find(|line| line.contains("exits, all"))
            .unwrap();
        assert!(line.contains("900") && line.contains("12"), "{screen}");
        assert!(screen.contains("hello from full") && screen.contains("hello from para"));
        assert!(
            screen.contains("full (full, 1 CPU, running, 2 s)"),
            "{screen}"
        );
    }

    #[test]
    fn the_text_has_what_the_screen_has() {
        let now = snapshot();
        let text = text(&now, &super::super::rates::rows(None, &now));
        assert!(text.starts_with("at 1.500 s\n"), "{text}");
        assert!(text.contains("para: hello from para"), "{text}");
    }
}
