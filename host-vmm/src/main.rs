//! `paravane`: the command line.
fn main() {}
