//! The terminal: raw while a guest has it, as it was on every way out.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Mutex;

use crate::sync::lock;

/// What the terminal was like before a guest got it.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Whether standard input is a terminal.
#[must_use]
pub fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stdin())
}

/// Set inside the reference host when a person sits at the terminal outside.
pub const ATTENDED: &str = "PARAVANE_ATTENDED";

/// Whether a person can press keys: on a terminal here, or on one outside the reference host.
#[must_use]
pub fn is_attended() -> bool {
    is_terminal() || std::env::var_os(ATTENDED).is_some()
}

/// Puts the terminal back, if it was raw. May be called from anywhere, any number of times.
pub fn restore() {
    if let Some(termios) = lock(&SAVED).take() {
        // SAFETY: `termios` was filled in by tcgetattr on the same descriptor; tcsetattr only
        // reads it.
        unsafe {
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSADRAIN, &raw const termios);
        }
    }
}

/// A raw terminal; [`restore`]d on drop, and on a panic.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Makes standard input raw: every key goes to the guest, Ctrl-C too.
    ///
    /// # Errors
    ///
    /// Standard input is no terminal, or has gone.
    pub fn enter() -> io::Result<Self> {
        let mut termios = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills in the whole structure that it is given, or fails.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, termios.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: tcgetattr has succeeded, so the structure is filled in.
        let before = unsafe { termios.assume_init() };
        *lock(&SAVED) = Some(before);
        let mut raw = before;
        // SAFETY: cfmakeraw only changes the structure it is given.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // Output stays cooked: the guest's newlines and our own messages look right.
        raw.c_oflag = before.c_oflag;
        // SAFETY: tcsetattr only reads the structure.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let before_us = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before_us(info);
        }));
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}
