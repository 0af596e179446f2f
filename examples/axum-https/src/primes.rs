//! Prime numbers: a computation that takes time and has the same result for every caller.

/// Returns the n-th prime number, 2 for `n` = 1. Trial division is slow on purpose.
pub(crate) fn nth(n: u32) -> u32 {
    let mut primes: Vec<u32> = Vec::new();
    let mut candidate = 1;
    while primes.len() < n as usize {
        candidate += 1;
        let divisors = primes.iter().take_while(|prime| **prime <= candidate / **prime);
        if !divisors.into_iter().any(|prime| candidate.is_multiple_of(*prime)) {
            primes.push(candidate);
        }
    }
    candidate
}

#[cfg(test)]
mod tests {
    #[test]
    fn nth_of_known_indices_returns_known_primes() {
        assert_eq!([1, 2, 3, 4, 5].map(super::nth), [2, 3, 5, 7, 11]);
        assert_eq!(super::nth(1_000), 7_919);
    }
}
