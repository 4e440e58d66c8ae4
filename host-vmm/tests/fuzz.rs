//! The fuzz targets on their seeds, and on a bounded number of mutations that are the same in each run: no target may panic.
//!
//! `FUZZ_INPUTS=1000000 FUZZ_SEED=1 cargo test -p paravane --test fuzz` goes on for longer, and elsewhere.

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "the module is a crate of its own, too")]
mod targets;

use std::fs;
use std::path::Path;

use fastrand::Rng;

/// Inputs of a target where nothing else is asked for.
const INPUTS: u64 = 400;
const SEED: u64 = 8;
const LENGTH_MAX: usize = 4096;

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(name);
    let files = fs::read_dir(folder).into_iter().flatten();
    files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect()
}

/// A seed with some bytes changed, cut or repeated; or nothing but noise.
fn input(random: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = match random.choice(seeds).filter(|_| random.u8(..4) > 0) {
        Some(seed) => seed.clone(),
        None => (0..random.usize(..LENGTH_MAX))
            .map(|_| random.u8(..))
            .collect(),
    };
    for _ in 0..random.usize(..8) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..6) {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_within(at..),
            2 => bytes[at] = *random.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap(),
            3 => bytes[at] ^= 1 << random.u8(..8),
            _ => bytes[at] = random.u8(..),
        }
    }
    bytes.truncate(LENGTH_MAX);
    bytes
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn no_target_panics() {
    let seeds = targets::TARGETS.map(|(name, _)| seeds(name));
    for ((_, run), seeds) in targets::TARGETS.iter().zip(&seeds) {
        seeds.iter().for_each(|seed| run(seed));
    }
    let mut random = Rng::with_seed(number("FUZZ_SEED", SEED));
    for number in 0..number("FUZZ_INPUTS", INPUTS) {
        for ((name, run), seeds) in targets::TARGETS.iter().zip(&seeds) {
            let bytes = input(&mut random, seeds);
            let result = std::panic::catch_unwind(|| run(&bytes));
            assert!(result.is_ok(), "{name}, input {number}: {bytes:x?}");
        }
    }
}
