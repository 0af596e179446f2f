//! Hash of a key within all groups, for tables by key that need not hold the keys.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hash of a group and a key. Two keys may have one hash.
pub(crate) type KeyHash = u64;

pub(crate) fn key_hash(group: &str, key: &str) -> KeyHash {
    xxh3_64_with_seed(key.as_bytes(), xxh3_64_with_seed(group.as_bytes(), 0))
}
