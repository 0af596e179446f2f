//! What anybody on the segment may announce.
#![allow(missing_docs, clippy::allow_attributes, reason = "built for tests and fuzzers only")]

/// A TXT record, behind two bytes of port and four of an address.
pub fn record(bytes: &[u8]) {
    crate::record::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    #[test]
    fn records() {
        replay::replay("mdns", 100_000, super::record);
    }
}
