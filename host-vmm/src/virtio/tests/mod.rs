//! Drivers, good and hostile, on real memory and real files.

mod block;
mod console;
mod domain;
mod driver;
mod hostile;
mod net;
mod registers;
mod rng;
