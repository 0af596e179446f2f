//! One value with its weight and its times.

use std::mem::size_of;

use crate::runtime::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What an entry costs beside its key, its payload's heap and its own struct: the counter of its `Arc`, a slot of
/// 56 bytes with room for a short key, its share of the hash table, the counter of a value, what the allocator adds to
/// two allocations, and remembered evicted keys. A long key and a long value each have an allocation, or a counter, more.
///
/// Measured as resident memory of a group, 64-bit Linux with glibc, keys of 20 bytes and values of 100, `Bytes` or `String`:
/// 5 % less than is accounted while it fills, 1 % more once it evicts (`make bench-memory`).
const SLOT_BYTES: u64 = 104;

/// The times of an entry: milliseconds of the node's own monotonic clock, `u64::MAX` is never.
///
/// In this order, those that are equal fall together: a hit from `refresh_at` on asks for a younger value, from
/// `fresh_until` on it is stale, from `serve_until` on it is no hit, and from `keep_until` on it is of no use at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) loaded_at_ms: u64,
    pub(crate) refresh_at_ms: u64,
    pub(crate) fresh_until_ms: u64,
    pub(crate) serve_until_ms: u64,
    pub(crate) keep_until_ms: u64,
    /// The change that it is checked against from the beginning; see `Entry::checked`.
    pub(crate) checked: u32,
}

impl Times {
    /// Loaded then, served until then, and nothing in between.
    pub(crate) fn until(loaded_at_ms: u64, serve_until_ms: u64) -> Self {
        let end = serve_until_ms;
        Self {
            loaded_at_ms,
            refresh_at_ms: NEVER_MS,
            fresh_until_ms: end,
            serve_until_ms: end,
            keep_until_ms: end,
            checked: 0,
        }
    }
}

const NEVER_MS: u64 = u64::MAX;

/// Times are kept as distances from the load, to save 16 bytes an entry; 49 days are the most that is not never.
const NEVER: u32 = u32::MAX;

fn distance(from_ms: u64, to_ms: u64) -> u32 {
    match to_ms {
        NEVER_MS => NEVER,
        to_ms => u32::try_from(to_ms.saturating_sub(from_ms)).unwrap_or(NEVER).min(NEVER - 1),
    }
}

fn at(from_ms: u64, distance: u32) -> u64 {
    if distance == NEVER { NEVER_MS } else { from_ms.saturating_add(u64::from(distance)) }
}

/// What an entry holds.
pub(crate) trait HeapSize {
    /// Bytes that it has outside of itself. They never change: the sum of weights is only right because an entry weighs
    /// the same when it leaves as when it came.
    fn heap_bytes(&self) -> u64;
}

/// One value with its times. A hit reads little of it, and memory is handed out in steps of 16 bytes: with the counter
/// of its `Arc`, 72 bytes fit into 80.
///
/// Its times only ever become earlier, save that a refresh is asked for again when one has failed, and that
/// what is expired may be served on until it is gone.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// What the caller stores.
    pub(crate) payload: T,
    /// When the value was loaded.
    pub(crate) loaded_at_ms: u64,
    refresh_in: AtomicU32,
    fresh_for: AtomicU32,
    serve_for: AtomicU32,
    keep_for: AtomicU32,
    /// A number of the caller's, for what it has checked about the entry last.
    pub(crate) checked: AtomicU32,
    /// How often it was used lately, see [`touch`](Entry::touch).
    uses: AtomicU32,
}

/// Uses are counted in the low half; the high half is the time, in these units, of the last of them.
const USES_UNIT_MS: u64 = 16_384;

/// More uses than these in one unit of time are not counted: all of those come first.
const ENOUGH: u32 = 255;

/// In the place of uses: its owner has it.
const HANDED_OVER: u32 = u32::MAX;

/// What is left of a count that was right then: a half for each unit of time.
fn faded(uses: u32, now_ms: u64) -> u32 {
    let units = unit(now_ms).wrapping_sub((uses >> 16) as u16);
    (uses & 0xffff).checked_shr(u32::from(units)).unwrap_or(0)
}

fn unit(now_ms: u64) -> u16 {
    (now_ms / USES_UNIT_MS) as u16
}

impl<T: HeapSize> Entry<T> {
    /// The accounted bytes of an entry of this key: key, payload and overhead.
    pub(crate) fn weight(&self, key: &str) -> u64 {
        // Never 0: the eviction crate keeps what weighs nothing for ever.
        Self::OVERHEAD_BYTES.saturating_add(key.len() as u64).saturating_add(self.payload.heap_bytes())
    }
}

impl<T> Entry<T> {
    /// Bytes that an entry costs beside its key and what its payload has on the heap.
    pub(crate) const OVERHEAD_BYTES: u64 = SLOT_BYTES + size_of::<Self>() as u64;

    /// An entry with these times.
    pub(crate) fn new(payload: T, times: Times) -> Self {
        let since_load = |to_ms| AtomicU32::new(distance(times.loaded_at_ms, to_ms));
        Self {
            payload,
            loaded_at_ms: times.loaded_at_ms,
            refresh_in: since_load(times.refresh_at_ms),
            fresh_for: since_load(times.fresh_until_ms),
            serve_for: since_load(times.serve_until_ms),
            keep_for: since_load(times.keep_until_ms),
            checked: AtomicU32::new(times.checked),
            uses: AtomicU32::new(0),
        }
    }

    /// The first millisecond at which a hit asks for a younger value.
    pub(crate) fn refresh_at_ms(&self) -> u64 {
        at(self.loaded_at_ms, self.refresh_in.load(Relaxed))
    }

    /// The first millisecond at which it is stale, or is not served because another node owns it.
    pub(crate) fn fresh_until_ms(&self) -> u64 {
        at(self.loaded_at_ms, self.fresh_for.load(Relaxed).min(self.serve_for.load(Relaxed)))
    }

    /// The first millisecond at which it is stale, whoever owns it.
    pub(crate) fn fresh_at_its_owner_until_ms(&self) -> u64 {
        at(self.loaded_at_ms, self.fresh_for.load(Relaxed))
    }

    /// The first millisecond at which the entry is no hit any more.
    pub(crate) fn hit_until_ms(&self) -> u64 {
        at(self.loaded_at_ms, self.serve_for.load(Relaxed).min(self.keep_for.load(Relaxed)))
    }

    /// Whether the entry must no longer be served at `now_ms`.
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        now_ms >= self.hit_until_ms()
    }

    /// Whether it is served for less time than it is fresh: another node owns it, or did a moment ago.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.serve_for.load(Relaxed) < self.fresh_for.load(Relaxed)
    }

    /// Whether it is of no use here any more, not even when there is nothing else.
    pub(crate) fn is_gone(&self, now_ms: u64) -> bool {
        self.is_spent(now_ms) || (self.is_orphaned() && self.is_expired(now_ms))
    }

    /// Whether it is of no use to anybody any more.
    pub(crate) fn is_spent(&self, now_ms: u64) -> bool {
        now_ms >= at(self.loaded_at_ms, self.keep_for.load(Relaxed))
    }

    /// Whether a younger value should be asked for, and by the caller: it is told once, and then again from `again_ms` on.
    pub(crate) fn is_to_be_refreshed(&self, now_ms: u64, again_ms: u64) -> bool {
        let refresh_in = self.refresh_in.load(Relaxed);
        if now_ms < at(self.loaded_at_ms, refresh_in) {
            return false;
        }
        let again = distance(self.loaded_at_ms, again_ms);
        self.refresh_in.compare_exchange(refresh_in, again, Relaxed, Relaxed).is_ok()
    }

    /// Serves it until `until_ms` after all: there is nothing better. It is gone no later than it would have been.
    pub(crate) fn serve_on(&self, until_ms: u64) {
        self.serve_for.store(distance(self.loaded_at_ms, until_ms), Relaxed);
    }

    /// Ends it at `end_ms`, if it would not end before.
    pub(crate) fn cap(&self, end_ms: u64) {
        let end = distance(self.loaded_at_ms, end_ms);
        for time in [&self.fresh_for, &self.serve_for, &self.keep_for] {
            time.fetch_min(end, Relaxed);
        }
    }

    /// It is another node's: served until `end_ms`, and kept for its owner, who may ask for it while it is fresh.
    pub(crate) fn orphan(&self, end_ms: u64) {
        let end = distance(self.loaded_at_ms, end_ms);
        self.serve_for.fetch_min(end, Relaxed);
        self.keep_for.fetch_min(end.max(self.fresh_for.load(Relaxed)), Relaxed);
    }

    /// Its owner has it: gone at `end_ms`.
    pub(crate) fn mark_sent(&self, end_ms: u64) {
        let end = distance(self.loaded_at_ms, end_ms);
        self.serve_for.fetch_min(end, Relaxed);
        self.keep_for.fetch_min(end, Relaxed);
        self.uses.store(HANDED_OVER, Relaxed);
    }

    /// It was used. What two count at once may be counted once.
    pub(crate) fn touch(&self, now_ms: u64) {
        let uses = self.uses.load(Relaxed);
        let enough = u32::from(unit(now_ms)) << 16 | ENOUGH;
        // What all threads ask for is not written to by each of them at each hit.
        if uses == enough || uses == HANDED_OVER {
            return;
        }
        let count = faded(uses, now_ms).saturating_add(1).min(ENOUGH);
        self.uses.store(u32::from(unit(now_ms)) << 16 | count, Relaxed);
    }

    /// How often it was used in the last half minute, about; `None` = its owner has it already.
    pub(crate) fn uses(&self, now_ms: u64) -> Option<u32> {
        let uses = self.uses.load(Relaxed);
        (uses != HANDED_OVER).then(|| faded(uses, now_ms))
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;

    impl HeapSize for u64 {
        fn heap_bytes(&self) -> u64 {
            *self
        }
    }

    fn entry() -> Entry<u64> {
        let times = Times {
            loaded_at_ms: 1_000,
            refresh_at_ms: 1_500,
            fresh_until_ms: 2_000,
            serve_until_ms: 3_000,
            keep_until_ms: 4_000,
            checked: 0,
        };
        Entry::new(100, times)
    }

    #[test]
    fn what_it_weighs_is_what_it_was_given_and_more() {
        assert_eq!(entry().weight("key"), Entry::<u64>::OVERHEAD_BYTES + 103);
        assert_eq!(Entry::<u64>::OVERHEAD_BYTES - SLOT_BYTES, size_of::<Entry<u64>>() as u64);
        assert_eq!(Entry::new(u64::MAX, Times::until(0, 1)).weight("key"), u64::MAX);
    }

    #[test]
    fn a_refresh_is_asked_for_once_and_again_when_it_has_failed() {
        let entry = entry();
        assert_eq!(entry.refresh_at_ms(), 1_500);
        let asks = |now_ms| entry.is_to_be_refreshed(now_ms, 1_700);
        assert_eq!([1_499, 1_500, 1_500, 1_699, 1_700].map(asks), [false, true, false, false, true]);
        assert!(!Entry::new(0, Times::until(0, 1)).is_to_be_refreshed(u64::MAX - 1, 0), "nobody wants one");
    }

    #[test]
    fn what_is_lent_is_gone_here_before_it_is_of_no_use_to_its_owner() {
        let entry = entry();
        assert!(!entry.is_orphaned() && !Entry::new(0, Times::until(0, 1)).is_orphaned());
        entry.orphan(1_200);
        assert_eq!((entry.hit_until_ms(), entry.fresh_at_its_owner_until_ms()), (1_200, 2_000));
        assert!(entry.is_orphaned() && !entry.is_gone(1_199) && entry.is_gone(1_200));
        assert!(!entry.is_spent(1_999) && entry.is_spent(2_000));
    }

    #[test]
    fn what_is_served_on_is_gone_no_later() {
        let entry = entry();
        for (until_ms, hit_until_ms) in [(3_500, 3_500), (9_000, 4_000)] {
            entry.serve_on(until_ms);
            assert_eq!(entry.hit_until_ms(), hit_until_ms);
        }
    }

    #[test]
    fn an_end_that_is_far_away_is_not_never() {
        let until = |end_ms| Entry::new(0, Times::until(1_000, end_ms)).hit_until_ms();
        assert_eq!((until(u64::MAX - 1), until(u64::MAX)), (1_000 + u64::from(u32::MAX) - 1, u64::MAX));
    }

    #[test]
    fn uses_are_counted_and_fade_by_half_in_each_unit_of_time() {
        let entry = entry();
        let begin_ms = 5 * USES_UNIT_MS;
        (0..4).for_each(|_| entry.touch(begin_ms));
        let after = |units| entry.uses(begin_ms + units * USES_UNIT_MS);
        assert_eq!([0, 1, 2, 3, 40].map(after), [Some(4), Some(2), Some(1), Some(0), Some(0)]);
        (0..1000).for_each(|_| entry.touch(begin_ms));
        assert_eq!(after(0), Some(ENOUGH));
        entry.mark_sent(1_100);
        entry.touch(begin_ms);
        assert_eq!((after(0), entry.is_gone(1_100)), (None, true));
    }

    #[test]
    fn what_was_used_often_lately_counts_more_than_what_was_used_more_often_long_ago() {
        let entry = |uses: u32, at_ms: u64| {
            let entry = Entry::new((), Times::until(0, u64::MAX));
            (0..uses).for_each(|_| entry.touch(at_ms));
            entry
        };
        let minute = 60_000;
        assert_eq!(entry(0, 0).uses(minute), Some(0));
        assert_eq!(entry(7, minute).uses(minute), Some(7));
        assert!(entry(100, minute).uses(10 * minute) < entry(3, 10 * minute).uses(10 * minute));
        let many = entry(100_000, minute);
        assert_eq!(many.uses(minute), Some(255), "more than enough");
        many.mark_sent(minute);
        many.touch(minute);
        assert_eq!(many.uses(minute), None, "its owner has it");
    }

    #[test]
    fn what_is_lent_ends_here_and_is_kept_for_its_owner_and_what_is_capped_is_gone() {
        let entry = || Entry::new((), Times::until(1000, 100_000));
        let lent = entry();
        lent.orphan(5000);
        assert_eq!(
            (lent.fresh_until_ms(), lent.fresh_at_its_owner_until_ms(), lent.hit_until_ms()),
            (5000, 100_000, 5000)
        );
        assert!(lent.is_expired(5000) && lent.is_gone(5000) && !lent.is_spent(99_999) && lent.is_spent(100_000));
        let capped = entry();
        capped.cap(5000);
        assert_eq!((capped.fresh_at_its_owner_until_ms(), capped.is_spent(5000)), (5000, true));
        let mark_sent = entry();
        mark_sent.mark_sent(5000);
        assert!(!mark_sent.is_gone(4999) && mark_sent.is_spent(5000));
    }
}
