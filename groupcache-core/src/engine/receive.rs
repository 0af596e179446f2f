//! Receiving: stores the values that previous owners send, if memory has no usable entry and no write can have replaced
//! them.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{
    cache::payload::Slot,
    engine::{
        Engine,
        entry::{self, Ages},
    },
    handover::PreviousView,
    peer::group_service::{PageRequest, PageResult},
    protocol::message::{self, Handed, Page},
    value::Value,
    write::index::{Positions, Shown},
};

/// Number of entries that are stored before other tasks run: some tens of microseconds of work.
const STORED_AT_ONCE: usize = 64;

/// Divisor of the budget: a hand-over may evict at most 1/SHARE of it. Entries arrive most-used first, and later
/// ones must not evict earlier ones.
const SHARE: u64 = 4;

/// Returns the number of bytes that may be received now.
pub(crate) fn room<V: Value>(engine: &Engine<V>) -> u64 {
    let capacity = engine.cache.capacity();
    capacity.saturating_sub(engine.cache.bytes()) + capacity / SHARE
}

/// Stores the entries of a page that are still wanted.
pub(crate) async fn store_page<V: Value>(engine: Arc<Engine<V>>, page: Page, request: PageRequest) -> PageResult {
    let positions = page.positions.into_iter();
    let positions = positions.map(|p| (p.writer, Shown { number: p.number, base: p.base })).collect();
    let mut result = PageResult::default();
    let previous_views = engine.context.handover.previous_views();
    for (n, handed) in page.entries.into_iter().enumerate() {
        // Before the first entry too, so that the next page is requested meanwhile.
        if n % STORED_AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
        // After a clear, values that other nodes hold from before it are not wanted.
        if engine.handover.previous.is_cleared_since(request.since_ms) || engine.is_removed.load(Relaxed) {
            result.is_over = true;
            break;
        }
        if let Some(bytes) = store_entry(&engine, &handed, &request, &positions, &previous_views) {
            result.kept += 1;
            result.bytes += bytes;
            engine.counters.handover_received.up();
            engine.counters.handover_received_bytes.add(handed.bytes.len() as u64);
        }
    }
    result
}

/// Stores one entry of a page and returns its weight, or `None` if it is not kept.
fn store_entry<V: Value>(
    engine: &Engine<V>,
    handed: &Handed,
    request: &PageRequest,
    positions: &Positions,
    previous_views: &[PreviousView],
) -> Option<u64> {
    let key = message::key(&handed.key).ok()?;
    let hash = engine.ownership.hash(key);
    let now_ms = engine.context.now_ms();
    let is_wanted =
        engine.may_keep_taken() && engine.ownership.is_mine(hash) && !engine.holds.is_held(key, request.asked_ms);
    // An entry that this node has sent to another owner is about to end, and is replaced when the key comes back.
    let is_left_over = |slot: &Slot<V>| slot.is_expired(now_ms) || slot.is_orphaned();
    if !is_wanted || !engine.cache.owned.peek(key).as_ref().is_none_or(is_left_over) {
        return None;
    }
    // The peer may have owned the key several views ago. A value that was loaded or written here since then is newer.
    let was_owner = |previous: &&PreviousView| {
        previous.view.owner(engine.ownership.scope, hash).is_some_and(|owner| owner.id == request.peer)
    };
    let previous = previous_views.iter().find(was_owner);
    let (number, since_ms) = previous.map_or((0, request.since_ms), |previous| (previous.number, previous.since_ms));
    if engine.handover.previous.is_cleared_since(since_ms) {
        return None;
    }
    // Before the judgement, so that a write which comes meanwhile keeps the value out.
    let token = engine.flights.token(key);
    let writes = &engine.context.local.writes;
    if writes.has_heard_beyond_page(&engine.settings.name, key, request.has_log.then_some(positions))
        && !mutant!(PageNotJudged)
    {
        engine.counters.discarded_after_write.up();
        return None;
    }
    let as_of_ms = engine.as_of_peer(handed.as_of_age_ms.or(Some(handed.age_ms)), request.asked_ms);
    let ages = Ages { age_ms: handed.age_ms, as_of_ms, remaining_ms: handed.remaining_ms };
    let slot = entry::of_page(engine, hash, &handed.bytes, &ages, request.changes)?;
    let bytes = slot.weight(key);
    let mut slot = Some(slot);
    let fill = || {
        // The present entry is returned, because this may be its last reference, which is dropped after the lock.
        let there = engine.cache.owned.peek(key);
        let is_free = there.as_ref().is_none_or(is_left_over);
        let is_overwritten = engine.handover.previous.is_overwritten(number, hash) && !mutant!(PullIgnoresStripes);
        let kept = slot.take_if(|_| is_free && !is_overwritten);
        (there, kept.map(|slot| engine.cache.owned.insert(key, slot)))
    };
    let filled = engine.flights.finish_write(token, fill);
    drop(slot); // not kept
    let (_, inserted) = filled?;
    engine.cache.after_insert(key, &inserted?, false, engine.context.now_ms());
    Some(bytes)
}
