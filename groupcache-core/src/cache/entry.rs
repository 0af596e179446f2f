//! Entry: a payload with its times, its weight and the number of its recent uses.

use std::mem::size_of;

use crate::runtime::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Accounted bytes of an entry beside its key, the heap of its payload and its own struct: the counter of its `Arc`, a
/// place of 48 bytes with room for a short key, a share of the hash table, the counter of a value, the overhead of two
/// allocations, and remembered evicted keys. A long key and a long value each take one more allocation or counter.
///
/// Measured as resident memory of a group on 64-bit Linux with glibc, with keys of 20 bytes and values of 100 bytes,
/// `Bytes` or `String`: 7 % less than accounted while the group fills, 3 % less once it evicts (`make bench-memory`).
const SLOT_BYTES: u64 = 104;

/// Times of an entry, in milliseconds of the node's own monotonic clock. `u64::MAX` is never.
///
/// A hit at or after `refresh_at_ms` asks for a younger value. From `fresh_until_ms` on the entry is stale, from
/// `serve_until_ms` on it is no hit, and from `keep_until_ms` on it is of no use at all. The last three ascend in this
/// order and may be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) as_of_ms: u64,
    pub(crate) refresh_at_ms: u64,
    pub(crate) fresh_until_ms: u64,
    pub(crate) serve_until_ms: u64,
    pub(crate) keep_until_ms: u64,
    /// Number of the last change that the new entry counts as checked against; see `Entry::checked`.
    pub(crate) checked: u32,
}

impl Times {
    /// Returns the times of an entry that is fresh until `serve_until_ms`, is never refreshed and is never stale.
    pub(crate) fn until(as_of_ms: u64, serve_until_ms: u64) -> Self {
        let end = serve_until_ms;
        Self {
            as_of_ms,
            refresh_at_ms: NEVER_MS,
            fresh_until_ms: end,
            serve_until_ms: end,
            keep_until_ms: end,
            checked: 0,
        }
    }
}

const NEVER_MS: u64 = u64::MAX;

/// Distance that stands for never. Times are kept as distances from the load, which saves 16 bytes per entry. The
/// longest other distance is 49 days.
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

/// Payload of an entry.
pub(crate) trait HeapSize {
    /// Returns the bytes of the payload outside of its own struct. The number never changes, because the sum of weights
    /// is right only if an entry weighs as much when it leaves as when it was inserted.
    fn heap_bytes(&self) -> u64;
}

/// Payload with its times. With the counter of its `Arc` an entry takes 72 bytes, which fit into the 80 bytes that an
/// allocator with steps of 16 bytes gives.
///
/// The times only become earlier, with two exceptions: a refresh is due again some time after it was begun, and an
/// expired entry may be served on until `keep_until_ms`.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// Payload that the caller stores.
    pub(crate) payload: T,
    /// Time before which the value contains every write: the start of its load.
    pub(crate) as_of_ms: u64,
    refresh_in: AtomicU32,
    fresh_for: AtomicU32,
    serve_for: AtomicU32,
    keep_for: AtomicU32,
    /// Number of the last change that a caller has checked the entry against.
    pub(crate) checked: AtomicU32,
    /// Recent uses in the low half and the time of the last one in the high half, or [`SENT`]; see
    /// [`touch`](Entry::touch).
    uses: AtomicU32,
}

/// Unit of the time of the last use, which is the high half of `uses`; the low half counts the uses.
const USES_UNIT_MS: u64 = 16_384;

/// Maximum number of uses that are counted: entries with more of them are all sent first.
const ENOUGH: u32 = 255;

/// Value of `uses` of an entry that was sent to its owner.
const SENT: u32 = u32::MAX;

/// Returns what is left of a count of uses at `now_ms`: the count is halved with each unit of time.
fn faded(uses: u32, now_ms: u64) -> u32 {
    let units = unit(now_ms).wrapping_sub((uses >> 16) as u16);
    (uses & 0xffff).checked_shr(u32::from(units)).unwrap_or(0)
}

fn unit(now_ms: u64) -> u16 {
    (now_ms / USES_UNIT_MS) as u16
}

impl<T: HeapSize> Entry<T> {
    /// Returns the accounted bytes of an entry of this key: key, payload and overhead.
    pub(crate) fn weight(&self, key: &str) -> u64 {
        // Never 0, because an eviction makes room by the weight of what leaves.
        Self::OVERHEAD_BYTES.saturating_add(key.len() as u64).saturating_add(self.payload.heap_bytes())
    }
}

impl<T> Entry<T> {
    /// Accounted bytes of an entry beside its key and the heap of its payload.
    pub(crate) const OVERHEAD_BYTES: u64 = SLOT_BYTES + size_of::<Self>() as u64;

    /// Creates an entry with these times.
    pub(crate) fn new(payload: T, times: Times) -> Self {
        let since_load = |to_ms| AtomicU32::new(distance(times.as_of_ms, to_ms));
        Self {
            payload,
            as_of_ms: times.as_of_ms,
            refresh_in: since_load(times.refresh_at_ms),
            fresh_for: since_load(times.fresh_until_ms),
            serve_for: since_load(times.serve_until_ms),
            keep_for: since_load(times.keep_until_ms),
            checked: AtomicU32::new(times.checked),
            uses: AtomicU32::new(0),
        }
    }

    /// Returns the first millisecond at which a hit asks for a younger value.
    pub(crate) fn refresh_at_ms(&self) -> u64 {
        at(self.as_of_ms, self.refresh_in.load(Relaxed))
    }

    /// Returns the first millisecond at which the entry is stale, or is not served because another node owns it.
    pub(crate) fn fresh_until_ms(&self) -> u64 {
        at(self.as_of_ms, self.fresh_for.load(Relaxed).min(self.serve_for.load(Relaxed)))
    }

    /// Returns the first millisecond at which the entry is stale at the owner of its key, which may be another node.
    pub(crate) fn fresh_at_its_owner_until_ms(&self) -> u64 {
        at(self.as_of_ms, self.fresh_for.load(Relaxed))
    }

    /// Returns the first millisecond at which the entry is no hit any more.
    pub(crate) fn hit_until_ms(&self) -> u64 {
        at(self.as_of_ms, self.serve_for.load(Relaxed).min(self.keep_for.load(Relaxed)))
    }

    /// Returns whether the entry must no longer be served at `now_ms`.
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        now_ms >= self.hit_until_ms()
    }

    /// Returns whether the entry is served for less time than it is fresh, because another node owns its key or owned
    /// it a moment ago.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.serve_for.load(Relaxed) < self.fresh_for.load(Relaxed)
    }

    /// Returns whether the entry is of no use on this node any more, not even if a loader fails.
    pub(crate) fn is_gone(&self, now_ms: u64) -> bool {
        self.is_spent(now_ms) || (self.is_orphaned() && self.is_expired(now_ms))
    }

    /// Returns whether the entry is of no use to any node any more.
    pub(crate) fn is_spent(&self, now_ms: u64) -> bool {
        now_ms >= at(self.as_of_ms, self.keep_for.load(Relaxed))
    }

    /// Returns whether this caller should ask for a younger value. A first caller gets `true` when the refresh is due,
    /// and another one from `again_ms` on.
    pub(crate) fn is_to_be_refreshed(&self, now_ms: u64, again_ms: u64) -> bool {
        let refresh_in = self.refresh_in.load(Relaxed);
        if now_ms < at(self.as_of_ms, refresh_in) {
            return false;
        }
        let again = distance(self.as_of_ms, again_ms);
        self.refresh_in.compare_exchange(refresh_in, again, Relaxed, Relaxed).is_ok()
    }

    /// Serves the expired entry until `until_ms`, because no better value exists. The end of its use does not move.
    pub(crate) fn serve_on(&self, until_ms: u64) {
        self.serve_for.store(distance(self.as_of_ms, until_ms), Relaxed);
    }

    /// Ends the entry at `end_ms`, unless it ends earlier.
    pub(crate) fn cap(&self, end_ms: u64) {
        let end = distance(self.as_of_ms, end_ms);
        for time in [&self.fresh_for, &self.serve_for, &self.keep_for] {
            time.fetch_min(end, Relaxed);
        }
    }

    /// Marks the entry as orphaned: this node serves it until `end_ms`, and keeps it for the owner, which may ask for
    /// it while it is fresh.
    pub(crate) fn orphan(&self, end_ms: u64) {
        let end = distance(self.as_of_ms, end_ms);
        self.serve_for.fetch_min(end, Relaxed);
        self.keep_for.fetch_min(end.max(self.fresh_for.load(Relaxed)), Relaxed);
    }

    /// Marks the entry as sent to its owner: it ends at `end_ms`.
    pub(crate) fn mark_sent(&self, end_ms: u64) {
        let end = distance(self.as_of_ms, end_ms);
        self.serve_for.fetch_min(end, Relaxed);
        self.keep_for.fetch_min(end, Relaxed);
        self.uses.store(SENT, Relaxed);
    }

    /// Counts a use. Two uses at the same moment may be counted as one.
    pub(crate) fn touch(&self, now_ms: u64) {
        let uses = self.uses.load(Relaxed);
        let enough = u32::from(unit(now_ms)) << 16 | ENOUGH;
        // An entry that all threads ask for is not written by each of them at each hit.
        if uses == enough || uses == SENT {
            return;
        }
        let count = faded(uses, now_ms).saturating_add(1).min(ENOUGH);
        self.uses.store(u32::from(unit(now_ms)) << 16 | count, Relaxed);
    }

    /// Returns whether the entry was ended before its time, because it may lack a write.
    pub(crate) fn is_capped(&self) -> bool {
        self.keep_for.load(Relaxed) == 0
    }

    /// Returns whether the entry was used since it was stored, or was sent to its owner.
    pub(crate) fn was_used(&self) -> bool {
        self.uses.load(Relaxed) != 0
    }

    /// Returns the number of recent uses, which is halved every 16 s, or `None` if the entry was sent to its owner.
    pub(crate) fn uses(&self, now_ms: u64) -> Option<u32> {
        let uses = self.uses.load(Relaxed);
        (uses != SENT).then(|| faded(uses, now_ms))
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
            as_of_ms: 1_000,
            refresh_at_ms: 1_500,
            fresh_until_ms: 2_000,
            serve_until_ms: 3_000,
            keep_until_ms: 4_000,
            checked: 0,
        };
        Entry::new(100, times)
    }

    #[test]
    fn weight_is_key_payload_and_overhead() {
        assert_eq!(entry().weight("key"), Entry::<u64>::OVERHEAD_BYTES + 103);
        assert_eq!(Entry::<u64>::OVERHEAD_BYTES - SLOT_BYTES, size_of::<Entry<u64>>() as u64);
        assert_eq!(Entry::new(u64::MAX, Times::until(0, 1)).weight("key"), u64::MAX);
    }

    /// Checks that one caller is to refresh a due entry, that a second one is after the pause, and that an entry
    /// without a time of refresh is never due.
    #[test]
    fn refresh_is_due_once_and_again_after_a_pause() {
        let entry = entry();
        assert_eq!(entry.refresh_at_ms(), 1_500);
        let asks = |now_ms| entry.is_to_be_refreshed(now_ms, 1_700);
        assert_eq!([1_499, 1_500, 1_500, 1_699, 1_700].map(asks), [false, true, false, false, true]);
        assert!(!Entry::new(0, Times::until(0, 1)).is_to_be_refreshed(u64::MAX - 1, 0), "never due");
    }

    /// Checks that an orphaned entry is gone on this node while its owner may still ask for it.
    #[test]
    fn orphaned_entry_is_gone_here_before_it_is_spent() {
        let entry = entry();
        assert!(!entry.is_orphaned() && !Entry::new(0, Times::until(0, 1)).is_orphaned());
        entry.orphan(1_200);
        assert_eq!((entry.hit_until_ms(), entry.fresh_at_its_owner_until_ms()), (1_200, 2_000));
        assert!(entry.is_orphaned() && !entry.is_gone(1_199) && entry.is_gone(1_200));
        assert!(!entry.is_spent(1_999) && entry.is_spent(2_000));
    }

    #[test]
    fn entry_served_on_ends_no_later() {
        let entry = entry();
        for (until_ms, hit_until_ms) in [(3_500, 3_500), (9_000, 4_000)] {
            entry.serve_on(until_ms);
            assert_eq!(entry.hit_until_ms(), hit_until_ms);
        }
    }

    /// Checks that an end more than 49 days away is cut to 49 days, and that `u64::MAX` stays never.
    #[test]
    fn far_end_is_not_never() {
        let until = |end_ms| Entry::new(0, Times::until(1_000, end_ms)).hit_until_ms();
        assert_eq!((until(u64::MAX - 1), until(u64::MAX)), (1_000 + u64::from(u32::MAX) - 1, u64::MAX));
    }

    #[test]
    fn uses_are_halved_in_each_unit_of_time() {
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

    /// Checks that few recent uses count more than many old ones, which decides the order of a hand-over.
    #[test]
    fn recent_uses_count_more_than_older_ones() {
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
        assert_eq!(many.uses(minute), Some(255), "the maximum");
        many.mark_sent(minute);
        many.touch(minute);
        assert_eq!(many.uses(minute), None, "the entry was sent");
    }

    /// Checks the ends of an orphaned entry, which is kept for its owner, and of a capped and a sent entry, which are
    /// not.
    #[test]
    fn orphaned_entry_is_kept_and_capped_or_sent_one_is_not() {
        let entry = || Entry::new((), Times::until(1000, 100_000));
        let orphaned = entry();
        orphaned.orphan(5000);
        assert_eq!(
            (orphaned.fresh_until_ms(), orphaned.fresh_at_its_owner_until_ms(), orphaned.hit_until_ms()),
            (5000, 100_000, 5000)
        );
        assert!(orphaned.is_expired(5000) && orphaned.is_gone(5000));
        assert!(!orphaned.is_spent(99_999) && orphaned.is_spent(100_000));
        let capped = entry();
        capped.cap(5000);
        assert_eq!((capped.fresh_at_its_owner_until_ms(), capped.is_spent(5000)), (5000, true));
        let sent = entry();
        sent.mark_sent(5000);
        assert!(!sent.is_gone(4999) && sent.is_spent(5000));
    }
}
