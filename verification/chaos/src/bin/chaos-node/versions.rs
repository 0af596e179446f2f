//! Versions: the source of the groups in which each write is followed until it settles.
//!
//! Each key has a row in a file, which outlives processes: its version, the version that no later get may lack, and the
//! times of its last writes. A single node writes a key, so that each number has a single writer.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use chaos::{GROUPS, Lack, clock};

/// Keys of each group.
pub(crate) const KEYS: usize = 50;

/// Number of writes of a key with kept times. A node writes each of its ten keys every two seconds, so that the
/// times reach back for longer than a fault lasts.
const KEPT: u64 = 64;
const NUMBER: u64 = size_of::<u64>() as u64;
/// Bytes of a row: version, floor, and two times for each kept write.
const ROW: u64 = (2 + 2 * KEPT) * NUMBER;

/// Longest call in nanoseconds of a process that runs all the time, because a call returns within 1 s. The write of a
/// longer call counts as made when the call returns.
const LONGEST_CALL: u64 = 2_000_000_000;

pub(crate) struct Versions {
    file: File,
    /// Held while this process changes a row.
    changes: Mutex<()>,
}

impl Versions {
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len((GROUPS.len() * KEYS) as u64 * ROW)?;
        Ok(Self { file, changes: Mutex::default() })
    }

    /// Returns the version of a key.
    pub(crate) fn current(&self, row: usize) -> u64 {
        self.read(row, 0)
    }

    /// Returns the version that no get which begins now may lack.
    pub(crate) fn floor(&self, row: usize) -> u64 {
        self.read(row, 1)
    }

    /// Changes the source: makes the next version of a key, and returns its number.
    pub(crate) fn change(&self, row: usize) -> u64 {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.current(row) + 1;
        // The times stand before the version, for readers that read between the two.
        self.write(row, called(version), clock::nanoseconds());
        self.write(row, called(version) + 1, 0);
        self.write(row, 0, version);
        version
    }

    /// Records that the call of the write of a version has returned.
    pub(crate) fn returned(&self, row: usize, version: u64) {
        let now = clock::nanoseconds();
        if now.saturating_sub(self.read(row, called(version))) > LONGEST_CALL {
            self.write(row, called(version), now);
        }
        self.write(row, called(version) + 1, now);
    }

    /// Records that no get that begins afterwards may return an older version.
    pub(crate) fn raise(&self, row: usize, version: u64) {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.floor(row) < version {
            self.write(row, 1, version);
        }
    }

    /// Returns what a get that began at `began` lacks if it returned `version`.
    ///
    /// A write counts once its call has returned, because its writer may have ended before it told any node.
    pub(crate) fn lacking(&self, row: usize, version: u64, began: u64) -> Lack {
        let mut bytes = [0; ROW as usize];
        self.file.read_exact_at(&mut bytes, row as u64 * ROW).unwrap();
        let numbers = bytes.chunks_exact(NUMBER as usize).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        let row: Vec<u64> = numbers.collect();
        let oldest_kept = (row[0] + 1).saturating_sub(KEPT);
        let times = |version: u64| (row[called(version) as usize], row[called(version) as usize + 1]);
        let lacked = ((version + 1).max(oldest_kept)..=row[0]).map(times).find(|(_, returned)| *returned != 0);
        let Some((called, returned)) = lacked else { return Lack::default() };
        let age_ms = |at: u64| began.saturating_sub(at) / 1_000_000;
        Lack { called_ms: age_ms(called), returned_ms: age_ms(returned) }
    }

    fn read(&self, row: usize, column: u64) -> u64 {
        let mut bytes = [0; NUMBER as usize];
        self.file.read_exact_at(&mut bytes, row as u64 * ROW + column * NUMBER).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn write(&self, row: usize, column: u64, number: u64) {
        self.file.write_all_at(&number.to_le_bytes(), row as u64 * ROW + column * NUMBER).unwrap();
    }
}

/// Returns the column with the time of the call of a write. The next column has the time of the return.
fn called(version: u64) -> u64 {
    2 + 2 * (version % KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that a value lacks the first returned write after its version, and none of a call that has not returned.
    #[test]
    fn value_lacks_the_first_returned_write() {
        let path = std::env::temp_dir().join(format!("chaos-versions-{}", std::process::id()));
        let versions = Versions::open(path.to_str().unwrap()).unwrap();
        let first = versions.change(7);
        let later = clock::nanoseconds() + 5_000_000_000;
        assert_eq!((first, versions.current(7), versions.current(6)), (1, 1, 0));
        assert_eq!(versions.lacking(7, 0, later), Lack::default(), "the call has not returned");
        versions.returned(7, first);
        let second = versions.change(7);
        versions.returned(7, second);
        let lack = versions.lacking(7, 0, later);
        assert!((4000..=5000).contains(&lack.returned_ms) && lack.returned_ms <= lack.called_ms, "{lack:?}");
        assert!(versions.lacking(7, first, later).called_ms <= lack.called_ms);
        assert_eq!(versions.lacking(7, second, later), Lack::default(), "the value is the last one");
        for _ in 0..2 * KEPT {
            let version = versions.change(7);
            versions.returned(7, version);
        }
        assert!(versions.lacking(7, 0, later).returned_ms >= 4000, "older times are overwritten");
        versions.raise(7, 9);
        versions.raise(7, 8);
        assert_eq!(versions.floor(7), 9);
        std::fs::remove_file(path).unwrap();
    }
}
