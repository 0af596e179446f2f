//! Fuzz entry point: objects as an API server, or an impostor, may send them.
#![allow(missing_docs, clippy::allow_attributes, reason = "built for tests and fuzzers only")]

use crate::{
    object::{Kind, Port, name_and_version},
    table::Table,
};

/// Reads the bytes as a pod and as a slice, and checks the peers that result.
pub fn object(bytes: &[u8]) {
    let json = String::from_utf8_lossy(bytes);
    let name = name_and_version(&json).map(|(name, _)| name);
    for kind in [Kind::Pods, Kind::Slices] {
        for port in [Port::Named("group-port".into()), Port::Number(7946)] {
            let Ok(object) = kind.read(&json, &port) else { continue };
            assert_eq!(name.as_ref(), Some(&object.name));
            let mut table = Table::new(1);
            table.put(0, object);
            let merged = table.merge();
            assert!(merged.peers.iter().all(|peer| !peer.addresses().is_empty() && peer.addresses().len() <= 8));
        }
    }
}

#[cfg(test)]
mod tests {
    /// Replays the corpus and 50,000 damaged inputs.
    #[test]
    fn corpus_and_damaged_objects_do_not_panic() {
        replay::replay("kubernetes", 50_000, super::object);
    }
}
