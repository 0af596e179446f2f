//! Budget of bytes that many holders share, and the share of one of them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Budget of bytes.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    used: AtomicUsize,
    max: usize,
}

impl ByteBudget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Takes bytes, or nothing if they exceed the budget. An unused budget gives any number of bytes, because a single
    /// large holder would otherwise never have its turn.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<ByteShare> {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| used == 0 || *sum <= self.max);
        self.used.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(ByteShare { budget: Arc::clone(self), bytes })
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// Bytes of a budget. Dropping the share gives them back.
#[derive(Debug)]
pub(crate) struct ByteShare {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl Drop for ByteShare {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_bytes_leave_the_budget_as_it_was() {
        let budget = ByteBudget::new(10);
        let shares = [budget.take(6), budget.take(4)];
        assert!(shares.iter().all(Option::is_some) && budget.take(1).is_none());
        assert_eq!(budget.used(), 10);
        drop(shares);
        let large = budget.take(99);
        assert!(large.is_some() && budget.take(1).is_none(), "an unused budget gives any number of bytes");
        drop(large);
        assert_eq!(budget.used(), 0);
    }
}
