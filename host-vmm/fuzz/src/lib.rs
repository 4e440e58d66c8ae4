//! What is fuzzed: one entry a kind of input, each a function of bytes. Nothing here needs KVM.
//!
//! `tests/fuzz.rs` runs all of them on the seeds and on a bounded number of mutations. `cargo ci fuzz` searches on, with libFuzzer.

pub mod calls;
pub mod devices;
pub mod image;
pub mod queues;
pub mod snapshot;
pub mod text;

/// A target's entry.
pub type Entry = fn(&[u8]);

/// Names, as of the folders of seeds, and entries.
pub const TARGETS: [(&str, Entry); 6] = [
    ("calls", calls::run),
    ("devices", devices::run),
    ("image", image::run),
    ("queues", queues::run),
    ("snapshot", snapshot::run),
    ("text", text::run),
];

/// Steps made of bytes; of none where they do not suffice.
fn arbitrary<'a, T: arbitrary::Arbitrary<'a> + Default>(data: &'a [u8]) -> T {
    let mut data = arbitrary::Unstructured::new(data);
    T::arbitrary(&mut data).unwrap_or_default()
}
