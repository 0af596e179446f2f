//! What the nodes know of each other's writes: since when each key must not be older than.
//!
//! A file, which outlives processes. A writer has a row of its own; each number is written by one of them alone.

use std::{fs::File, io, os::unix::fs::FileExt};

use chaos::NODES;

/// Keys that are written, and one column for the group that is cleared.
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

    /// From now on no get may yield what is older than that.
    pub(crate) fn raise(&self, writer: usize, column: usize, to: u64) {
        self.0.write_all_at(&to.to_le_bytes(), place(writer, column)).unwrap();
    }

    /// The highest that anybody has said.
    pub(crate) fn of(&self, column: usize) -> u64 {
        let said = |writer| {
            let mut bytes = [0; NUMBER];
            self.0.read_exact_at(&mut bytes, place(writer, column)).unwrap();
            u64::from_le_bytes(bytes)
        };
        (0..NODES).map(said).max().unwrap_or(0)
    }
}

fn place(writer: usize, column: usize) -> u64 {
    ((writer * COLUMNS + column) * NUMBER) as u64
}
