//! Fuzz target: messages that anybody may send to the subjects of a cluster.
#![allow(missing_docs, clippy::allow_attributes, reason = "built for tests and fuzzers only")]

use groupcache_core::discovery::Incarnation;
use tokio::time::Instant;

use crate::{announcement::Announcement, table::Table};

/// Reads a message, and checks its limits and that the table of peers takes it.
pub fn message(bytes: &[u8]) {
    let Ok(said) = Announcement::read(bytes) else { return };
    assert!((1..=8).contains(&said.addresses.len()));
    let again = said.write();
    assert!(again.len() <= crate::announcement::MAX_BYTES);
    let mut table = Table::default();
    table.hear(said.clone(), Instant::now(), |_| false);
    table.hear(said.clone(), Instant::now(), |_| false);
    assert!(table.goodbye(&said.id, Incarnation(u64::MAX), None));
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages() {
        replay::replay("nats", 100_000, super::message);
    }
}
