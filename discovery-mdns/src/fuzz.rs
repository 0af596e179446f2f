//! Fuzz target: a record as any machine on the segment may announce it.
#![allow(missing_docs, clippy::allow_attributes, reason = "built for tests and fuzzers only")]

/// Reads `bytes` as a record: two bytes of port, four bytes of an IPv4 address, and the TXT record.
pub fn record(bytes: &[u8]) {
    crate::record::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    /// Checks that the corpus, damaged copies of its files and noise make no record panic.
    #[test]
    fn arbitrary_records_do_not_panic() {
        replay::replay("mdns", 100_000, super::record);
    }
}
