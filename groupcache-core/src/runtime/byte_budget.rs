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

    /// Takes bytes from the budget of one holder and from `all`, which many holders share. A holder has at most as much as
    /// it leaves there for others, so that a few slow ones leave room: n of them have the (n+1)-th part each. These are
    /// the dynamic thresholds of Choudhury and Hahne (IEEE/ACM Transactions on Networking 6, 1998).
    pub(crate) fn take_share(self: &Arc<Self>, all: &Arc<Self>, bytes: usize) -> Option<[ByteShare; 2]> {
        let (own, used) = (self.used.load(Relaxed), all.used.load(Relaxed));
        let is_fair = used == 0 || own.saturating_add(bytes) <= all.max.saturating_sub(used);
        if !is_fair {
            return None;
        }
        Some([self.take(bytes)?, all.take(bytes)?])
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

    /// Checks that holders which give nothing back leave room for one that does, however many they are.
    #[test]
    fn slow_holders_leave_room_for_another() {
        for slow in [4, 10, 20] {
            let all = ByteBudget::new(1000);
            let holders: Vec<_> = (0..slow).map(|_| ByteBudget::new(250)).collect();
            let mut shares = Vec::new();
            for _ in 0..1000 {
                shares.extend(holders.iter().filter_map(|holder| holder.take_share(&all, 1)));
            }
            let other = ByteBudget::new(250);
            let taken = std::iter::from_fn(|| other.take_share(&all, 1)).take(1000).collect::<Vec<_>>().len();
            let least = 1000 / (slow + 1) / 2;
            assert!(taken >= least, "{slow} slow holders leave {taken}");
            drop(shares);
            assert_eq!(all.used(), 0);
            assert!(other.take_share(&all, 5000).is_some(), "an unused budget gives any number of bytes");
        }
    }

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
