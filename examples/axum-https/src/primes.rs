//! Something that takes time and is the same for everybody.

/// The n-th prime number, from 2 for the first; by trial, which is slow on purpose.
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
    fn the_first_and_the_thousandth() {
        assert_eq!([1, 2, 3, 4, 5].map(super::nth), [2, 3, 5, 7, 11]);
        assert_eq!(super::nth(1_000), 7_919);
    }
}
