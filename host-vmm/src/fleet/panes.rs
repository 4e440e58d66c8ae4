//! A fleet on a terminal: a pane for each guest.

use std::io;
use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{
    self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers,
};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::Block;
use tui_term::vt100;
use tui_term::widget::PseudoTerminal;

use super::{Event, Fleet, Processes, View};

/// Lines and columns of a guest's console until the screen has been drawn once.
const SIZE: (u16, u16) = (24, 80);

struct Pane {
    name: String,
    screen: vt100::Parser,
    state: String,
}

/// The panes. The terminal is as it was when this is dropped.
pub(super) struct Panes {
    terminal: ratatui::DefaultTerminal,
    panes: Vec<Pane>,
    /// The pane that keys go to.
    chosen: usize,
    /// Whether Ctrl-A was the last key.
    command: bool,
}

impl Panes {
    pub(super) fn open(fleet: &Fleet) -> io::Result<Self> {
        Ok(Self {
            terminal: ratatui::try_init()?,
            panes: fleet
                .guests
                .iter()
                .map(|guest| Pane::new(&guest.name))
                .collect(),
            chosen: 0,
            command: false,
        })
    }

    /// Does what a key means; returns whether all is to end.
    fn key(&mut self, key: KeyEvent, processes: &mut Processes) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if std::mem::take(&mut self.command) {
            let count = self.panes.len().max(1);
            match key.code {
                KeyCode::Char('x') => return true,
                KeyCode::Char('k') => processes.kill(self.chosen),
                KeyCode::Char('n') | KeyCode::Tab | KeyCode::Right => {
                    self.chosen = (self.chosen + 1) % count;
                }
                KeyCode::Char('p') | KeyCode::Left => {
                    self.chosen = (self.chosen + count - 1) % count;
                }
                KeyCode::Char('a') => self.send(b"\x01", processes),
                _ => {}
            }
            return false;
        }
        if control && key.code == KeyCode::Char('a') {
            self.command = true;
            return false;
        }
        self.send(&bytes_of(key), processes);
        false
    }

    fn send(&mut self, bytes: &[u8], processes: &mut Processes) {
        if !processes.input(self.chosen, bytes)
            && let Some(pane) = self.panes.get_mut(self.chosen)
        {
            "[does not read its keys: they are lost]".clone_into(&mut pane.state);
        }
    }
}

impl View for Panes {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Output { guest, bytes } => {
                if let Some(pane) = self.panes.get_mut(*guest) {
                    pane.output(bytes);
                }
            }
            Event::Ended { guest, code, again } => {
                if let Some(pane) = self.panes.get_mut(*guest) {
                    pane.state = ending(*code, *again);
                }
            }
        }
        Ok(())
    }

    fn pass(&mut self, processes: &mut Processes) -> io::Result<bool> {
        while event::poll(Duration::ZERO)? {
            if let Input::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && self.key(key, processes)
            {
                return Ok(true);
            }
        }
        let Self {
            terminal,
            panes,
            chosen,
            ..
        } = self;
        terminal.draw(|frame| draw(frame, panes, *chosen))?;
        Ok(false)
    }
}

impl Drop for Panes {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

impl Pane {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            screen: vt100::Parser::new(SIZE.0, SIZE.1, 0),
            state: String::new(),
        }
    }

    fn output(&mut self, bytes: &[u8]) {
        self.state.clear();
        self.screen.process(bytes);
    }
}

/// How a guest ended, in words.
pub(super) fn ending(code: Option<i32>, again: bool) -> String {
    let how = match code {
        Some(0) => "switched off".to_owned(),
        Some(2) => "its kernel crashed".to_owned(),
        Some(3) => "ended by the watchdog".to_owned(),
        Some(130) => "ended".to_owned(),
        Some(code) => format!("could not run (exit status {code})"),
        None => "its VMM was killed".to_owned(),
    };
    format!("[{how}{}]", if again { "; it starts again" } else { "" })
}

/// What a terminal sends for a key.
fn bytes_of(key: KeyEvent) -> Vec<u8> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char(c) if control && c.is_ascii_alphabetic() => {
            vec![c.to_ascii_lowercase() as u8 & 0x1f]
        }
        KeyCode::Char(c) => c.to_string().into_bytes(),
        KeyCode::Enter => b"\r".to_vec(),
        KeyCode::Backspace => b"\x7f".to_vec(),
        KeyCode::Tab => b"\t".to_vec(),
        KeyCode::Esc => b"\x1b".to_vec(),
        KeyCode::Up => b"\x1b[A".to_vec(),
        KeyCode::Down => b"\x1b[B".to_vec(),
        KeyCode::Right => b"\x1b[C".to_vec(),
        KeyCode::Left => b"\x1b[D".to_vec(),
        KeyCode::Delete => b"\x1b[3~".to_vec(),
        KeyCode::Home => b"\x1b[H".to_vec(),
        KeyCode::End => b"\x1b[F".to_vec(),
        _ => Vec::new(),
    }
}

/// Where the panes are: as near to a square of panes as their number allows.
fn places(area: Rect, count: usize) -> Vec<Rect> {
    let columns = (1..=count).find(|n| n * n >= count).unwrap_or(1);
    let rows = count.div_ceil(columns.max(1));
    let lines = Layout::vertical(vec![Constraint::Fill(1); rows]).split(area);
    let mut places = Vec::new();
    for (row, line) in lines.iter().enumerate() {
        let here = columns.min(count - row * columns);
        places.extend_from_slice(&Layout::horizontal(vec![Constraint::Fill(1); here]).split(*line));
    }
    places
}

fn draw(frame: &mut Frame<'_>, panes: &mut [Pane], chosen: usize) {
    let [area, help] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    let places = places(area, panes.len());
    for (index, (pane, place)) in panes.iter_mut().zip(places).enumerate() {
        let style = if index == chosen {
            Style::new().fg(Color::Green).bold()
        } else {
            Style::new().dim()
        };
        let title = format!(" {} {}", pane.name, pane.state);
        let block = Block::bordered().title(title).border_style(style);
        let inner = block.inner(place);
        let size = (inner.height.max(1), inner.width.max(1));
        if pane.screen.screen().size() != size {
            pane.screen.screen_mut().set_size(size.0, size.1);
        }
        frame.render_widget(
            PseudoTerminal::new(pane.screen.screen()).block(block),
            place,
        );
    }
    let keys = "Ctrl-A n: next guest, p: the one before, k: end it, a: Ctrl-A itself, x: end all";
    frame.render_widget(Line::from(keys).dim(), help);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    #[test]
    fn each_guest_has_a_pane_with_its_console_and_its_end() {
        let mut panes: Vec<Pane> = ["web", "db", "crasher"].map(Pane::new).into();
        panes[0].output(b"hello\r\nfrom \x1b[31mweb\x1b[0m");
        panes[2].state = ending(Some(2), true);
        let mut terminal = Terminal::new(TestBackend::new(100, 20)).unwrap();
        terminal.draw(|frame| draw(frame, &mut panes, 1)).unwrap();
        let screen = terminal.backend().to_string();
        for text in [
            "from web",
            " web ",
            " db ",
            "crasher [its kernel crashed; it starts again]",
        ] {
            assert!(screen.contains(text), "{text}: {screen}");
        }
    }

    #[test]
    fn panes_do_not_overlap_and_fill_the_screen() {
        for count in 1..=9 {
            let places = places(Rect::new(0, 0, 120, 60), count);
            assert_eq!(places.len(), count);
            let filled: u32 = places.iter().map(|place| place.area()).sum();
            assert_eq!(filled, 120 * 60, "{count}");
        }
    }

    #[test]
    fn keys_are_what_a_terminal_sends() {
        let key = |code, modifiers| bytes_of(KeyEvent::new(code, modifiers));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), b"\x03");
        assert_eq!(key(KeyCode::Char('ä'), KeyModifiers::NONE), "ä".as_bytes());
        assert_eq!(key(KeyCode::Up, KeyModifiers::NONE), b"\x1b[A");
    }
}
