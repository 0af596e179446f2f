//! Replay: runs fuzz targets as tests, on the inputs of `verification/fuzz/corpus` and on damaged copies with noise.
//!
//! The damage is random and not guided by coverage. `make fuzz` runs the same targets with coverage.

use std::{fs, path::Path, time::Duration};

use fastrand::Rng;

/// Growth of the process memory that fails a test.
const MAX_GROWTH_BYTES: u64 = 512 << 20;

/// Time for one input that fails a test. No input needs a thousandth of this limit, which allows for a busy machine.
const SLOWEST: Duration = Duration::from_secs(10);

/// Maximum length of an input in bytes.
const LONGEST: usize = 64 << 10;

/// Runs `target` on each file of `verification/fuzz/corpus/<name>`, and on `cases` damaged copies of these files.
///
/// # Panics
/// If the target panics, takes 10 s for an input or lets the process grow by 512 MiB, and if there are no files.
pub fn replay(name: &str, cases: usize, target: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../verification/fuzz/corpus").join(name);
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|file| fs::read(file.expect("a directory entry").path()).expect("a readable file"))
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

#[expect(clippy::disallowed_methods, reason = "the limit of an input is real time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Returns the resident memory of the process, or 0 where the memory cannot be read.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// Returns a copy of a seed with one to five random changes.
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
            // Extreme values for code that reads a length or a number.
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
