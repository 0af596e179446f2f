//! What an API server, or what pretends to be one, may send of an object.
#![allow(missing_docs, clippy::allow_attributes, reason = "built for tests and fuzzers only")]

use crate::{
    object::{Kind, Port, name_and_version},
    table::Table,
};

/// A pod or a slice.
pub fn object(bytes: &[u8]) {
    let json = String::from_utf8_lossy(bytes);
    let name = name_and_version(&json).map(|(name, _)| name);
    for kind in [Kind::Pods, Kind::Slices] {
        for port in [Port::Named("group-port".into()), Port::Number(7946)] {
            let Ok(object) = kind.read(&json, &port) else { continue };
            assert_eq!(name.as_ref(), Some(&object.name));
            let mut table = Table::new(1);
            table.put(0, object);
            let merged = table.merge(|_| None);
            assert!(merged.peers.iter().all(|peer| !peer.addresses().is_empty() && peer.addresses().len() <= 8));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn objects() {
        replay::replay("kubernetes", 50_000, super::object);
    }
}
