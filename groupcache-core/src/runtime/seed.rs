//! Seeds of hashes from the randomness of the system, so that nobody can choose keys with one hash.

use std::sync::OnceLock;

/// Returns 64 random bits. In a simulation they are fixed.
#[cfg_attr(not(simulation), expect(clippy::disallowed_methods, reason = "the seed of a node comes from the system"))]
pub(crate) fn random() -> u64 {
    #[cfg(simulation)]
    return 1;
    // The standard library has no other access to the randomness of the system. Its keys are 128 random bits.
    #[cfg(not(simulation))]
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

/// Returns the seed of hashes that all nodes of the process share and no other process sees.
pub(crate) fn of_process() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(random)
}

#[cfg(test)]
#[cfg(not(simulation))]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_and_that_of_the_process_stays() {
        assert_ne!(random(), random());
        assert_eq!(of_process(), of_process());
    }
}
