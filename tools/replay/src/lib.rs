//! The fuzz targets as tests: the inputs of `verification/fuzz/corpus`, what becomes of them when they are damaged, and noise.
//!
//! It looks for new paths no more than a dice does; `make fuzz` does, with the same targets.

use std::{fs, path::Path, time::Duration};

use fastrand::Rng;

/// Growth of the process that fails a test.
const MAX_GROWTH_BYTES: u64 = 512 << 20;

/// The time of one input that fails a test; on a machine that is busy, since nothing takes a thousandth of it.
const SLOWEST: Duration = Duration::from_secs(10);

/// The longest input.
const LONGEST: usize = 64 << 10;

/// Runs `target` on each file of `verification/fuzz/corpus/<name>`, and on `cases` inputs that are made of them.
///
/// # Panics
/// When the target does, when it takes too long or too much memory, and when there are no files.
pub fn replay(name: &str, cases: usize, target: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../verification/fuzz/corpus").join(name);
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|file| fs::read(file.expect("a file").path()).expect("it can be read"))
        .collect();
    assert!(!seeds.is_empty(), "no files in {}", folder.display());
    seeds.sort();
    let before = resident_bytes();
    let mut rng = Rng::with_seed(7);
    for case in 0..seeds.len() + cases {
        let input = seeds.get(case).cloned().unwrap_or_else(|| damaged(&seeds, &mut rng));
        let begun = now();
        target(&input);
        let took = begun.elapsed();
        assert!(took < SLOWEST, "{name} took {took:?} for case {case}: {}", input.escape_ascii());
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < MAX_GROWTH_BYTES, "{name} grew by {grown} bytes up to case {case}: {}", input.escape_ascii());
    }
}

#[expect(clippy::disallowed_methods, reason = "real time is what an input may not take much of")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// What the process has in memory; 0 where that cannot be read.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// An input that was a good one.
fn damaged(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = rng.choice(seeds).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..6) {
        let (at, end) = (rng.usize(..=input.len()), rng.usize(..=input.len()));
        let part = at.min(end)..at.max(end);
        match rng.u8(..8) {
            0 => drop(input.drain(part)),
            1 => {
                let again = input.get(part).unwrap_or_default().to_vec();
                input.splice(at..at, again);
            }
            2 => {
                let other = rng.choice(seeds).cloned().unwrap_or_default();
                let from = rng.usize(..=other.len());
                input.splice(part, other.get(from..).unwrap_or_default().iter().copied());
            }
            3 => {
                let noise: Vec<u8> = (0..rng.usize(..32)).map(|_| rng.u8(..)).collect();
                input.splice(at..at, noise);
            }
            // What is odd where a length or a number is read.
            4 => drop(
                input.splice(at..at, if rng.bool() { *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" } else { [0; 10] }),
            ),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = if rng.bool() { rng.u8(..) } else { *byte ^ (1 << rng.u8(..8)) };
                }
            }
        }
    }
    input.truncate(LONGEST);
    input
}
