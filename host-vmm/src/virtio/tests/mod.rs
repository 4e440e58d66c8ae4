//! Drivers, good and hostile, on real memory and real files.

mod balloon;
mod block;
mod console;
mod domain;
mod driver;
mod hostile;
mod net;
mod registers;
mod rings;
mod rng;
