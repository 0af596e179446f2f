//! Floors: for each key, the time of the last write that has reached every node.
//!
//! The floors are in a file, which outlives processes. Each writer has a row of its own, so that each number has a
//! single writer.

use std::{fs::File, io, os::unix::fs::FileExt};

use chaos::NODES;

/// Number of keys that are written. The column after them belongs to the group that is cleared.
pub(crate) const KEYS: usize = 64;
pub(crate) const CLEARED: usize = KEYS;
const COLUMNS: usize = KEYS + 1;
const NUMBER: usize = size_of::<u64>();

pub(crate) struct Floors(File);

impl Floors {
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len((NODES * COLUMNS * NUMBER) as u64)?;
        Ok(Self(file))
    }

    /// Records that no get that begins afterwards may return a value older than `to`.
    pub(crate) fn raise(&self, writer: usize, column: usize, to: u64) {
        self.0.write_all_at(&to.to_le_bytes(), place(writer, column)).unwrap();
    }

    /// Returns the highest floor of a column among all writers.
    pub(crate) fn of(&self, column: usize) -> u64 {
        let recorded = |writer| {
            let mut bytes = [0; NUMBER];
            self.0.read_exact_at(&mut bytes, place(writer, column)).unwrap();
            u64::from_le_bytes(bytes)
        };
        (0..NODES).map(recorded).max().unwrap_or(0)
    }
}

fn place(writer: usize, column: usize) -> u64 {
    ((writer * COLUMNS + column) * NUMBER) as u64
}
