//! Sending: pages of entries for the nodes that own their keys now, the most used entries first.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;

use crate::{
    cache::{payload::Slot, revalidation::ChangesSince, store::Key},
    engine::Engine,
    handover::{PeerQueue, PlanForRing},
    identity::PeerId,
    protocol::{
        message::{Handed, NO_MORE, Page, Response},
        wire,
    },
    runtime::clock::{NEVER, later},
    value::Value,
};

/// Maximum bytes of a page, unless a single value is larger, so that later messages on the connection do not wait long.
const PAGE_BYTES: usize = 192 << 10;

/// Maximum number of values in a page, which the receiver stores in a few milliseconds.
const PAGE_ENTRIES: usize = 2048;

/// Number of entries that are visited before other tasks run.
const VISITED_AT_ONCE: usize = 256;

/// Returns the transfer plan of the current ring.
pub(crate) fn current_plan<V: Value>(engine: &Engine<V>) -> Arc<PlanForRing> {
    let (number, ring) = (engine.context.handover.number(), engine.context.view_ref().ring_of(engine.ownership.scope));
    let now_ms = engine.context.now_ms();
    // A draining node has no later time to send the other entries.
    let is_whole = engine.context.is_draining() || engine.context.handover.is_quiet(now_ms);
    engine.handover.plans.of_ring(number, ring, is_whole, now_ms)
}

/// Fills the transfer plan of the current ring, unless it is filled already.
pub(crate) async fn build_plan<V: Value>(engine: &Engine<V>) {
    let plan = current_plan(engine);
    plan.queues.get_or_init(|| build_queues(engine, plan.is_whole)).await;
}

/// Returns the keys of the entries that other nodes own now, by node. If `is_whole`, all entries count, otherwise the
/// recently used ones.
async fn build_queues<V: Value>(engine: &Engine<V>, is_whole: bool) -> BTreeMap<PeerId, PeerQueue> {
    let (now_ms, view) = (engine.context.now_ms(), engine.context.view());
    // Grouped by their number of uses, because sorting a million keys would delay other tasks by a tenth of a second.
    let mut found: BTreeMap<PeerId, BTreeMap<Reverse<u32>, Vec<Key>>> = BTreeMap::new();
    for (visited, step) in engine.cache.owned.steps().enumerate() {
        let Some((key, slot)) = step else {
            tokio::task::yield_now().await;
            continue;
        };
        if let Some(owner) = engine.ownership.peer_owner(&view, engine.ownership.hash(&key))
            && let Some(uses) = slot.uses(now_ms).filter(|uses| is_whole || *uses > 0)
            && sendable_until(engine, &slot, now_ms).is_some()
        {
            if !found.contains_key(&owner.id) {
                found.insert(owner.id.clone(), BTreeMap::new());
            }
            if let Some(by_uses) = found.get_mut(&owner.id) {
                by_uses.entry(Reverse(uses)).or_default().push(key);
            }
        }
        if visited % VISITED_AT_ONCE == VISITED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    let queue = |by_uses: BTreeMap<_, Vec<Key>>| PeerQueue::new(by_uses.into_values().flatten().collect());
    found.into_iter().map(|(owner, by_uses)| (owner, queue(by_uses))).collect()
}

/// Returns a page for the peer that owns its keys now. The cursor confirms that the peer has all entries before it.
pub(crate) async fn page<V: Value>(engine: Arc<Engine<V>>, to: PeerId, cursor: u64) -> Response {
    if !engine.context.handover.is_on || !may_send(&engine) {
        return Response::Unsupported;
    }
    let plan = current_plan(&engine);
    let queues = plan.queues.get_or_init(|| build_queues(&engine, plan.is_whole)).await;
    let Some(queue) = queues.get(&to) else { return Response::Page(Page::default()) };
    if cursor == NO_MORE {
        queue.finish();
        return Response::Page(Page::default());
    }
    let start = plan.position(cursor).min(queue.keys.len());
    let arrived_ms = engine.context.local.clock.read_ms();
    // Before the first value, because the peer judges the page by these positions.
    let positions = engine.context.local.writes.positions();
    mark_arrived(&engine, queue, start);
    let (mut entries, mut bytes, mut at) = (Vec::new(), 0, start);
    while let Some(key) = queue.keys.get(at).filter(|_| entries.len() < PAGE_ENTRIES) {
        if let Some(handed) = page_entry(&engine, key, arrived_ms) {
            let size = wire::handed_bytes(&handed);
            if !entries.is_empty() && bytes + size > PAGE_BYTES {
                break;
            }
            bytes += size;
            entries.push(handed);
        }
        at += 1;
        // Entries that have left memory take no room in the page, so that the page alone does not bound the loop.
        if (at - start).is_multiple_of(VISITED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
    if entries.is_empty() {
        queue.finish();
    }
    engine.counters.handover_sent.add(entries.len() as u64);
    engine.counters.handover_sent_bytes.add(entries.iter().map(|handed| handed.bytes.len() as u64).sum());
    let clock = &engine.context.local.clock;
    let read_ms = clock.read_ms();
    engine.context.handover.send_rate.spend(bytes as u64).await;
    // The entries have grown older while the rate limit delayed the page.
    let waited_ms = clock.read_ms().saturating_sub(read_ms);
    for handed in &mut entries {
        handed.age_ms = handed.age_ms.saturating_add(waited_ms);
        handed.remaining_ms = handed.remaining_ms.map(|left_ms| left_ms.saturating_sub(waited_ms));
    }
    let next = if entries.is_empty() { 0 } else { plan.cursor(at) };
    Response::Page(Page { entries, next, left: (queue.keys.len() - at) as u64, positions })
}

/// Returns whether this node may send entries. A removed group sends none.
pub(crate) fn may_send<V: Value>(engine: &Engine<V>) -> bool {
    !engine.is_removed.load(Relaxed)
}

/// Returns an entry for a page, or `None` if it is not in memory, was sent already, or must not be sent.
fn page_entry<V: Value>(engine: &Engine<V>, key: &str, arrived_ms: u64) -> Option<Handed> {
    let horizon_ms = engine.horizon_ms();
    let slot = engine.cache.owned.peek(key)?;
    slot.uses(0)?; // `None` if the entry was sent
    let (bytes, age_ms, remaining_ms) = sendable(engine, &slot, engine.context.now_ms())?;
    let as_of_age_ms = engine.as_of_age_ms(slot.as_of_ms.max(horizon_ms), arrived_ms);
    Some(Handed { key: Bytes::copy_from_slice(key.as_bytes()), bytes, age_ms, as_of_age_ms, remaining_ms })
}

/// Marks the first entries of a queue as sent. The entries are served for the time of a replica, and their
/// memory is free afterwards.
fn mark_arrived<V: Value>(engine: &Engine<V>, queue: &PeerQueue, until: usize) {
    let end_ms = later(engine.context.now_ms(), engine.settings.freshness.replica_time_to_live);
    for key in queue.advance(until) {
        // The key may belong to this node again.
        let is_orphaned = |_: &Slot<V>| !engine.ownership.is_mine(engine.ownership.hash(key));
        if let Some(slot) = engine.cache.owned.peek(key).filter(is_orphaned) {
            slot.mark_sent(end_ms);
        }
    }
}

/// Returns the encoded value of an entry with its age and its remaining time, for the node that owns its key now, or
/// `None` if the entry must not be sent.
pub(crate) fn sendable<V: Value>(engine: &Engine<V>, slot: &Slot<V>, now_ms: u64) -> Option<(Bytes, u64, Option<u64>)> {
    let until_ms = sendable_until(engine, slot, now_ms)?;
    let remaining_ms = (until_ms != NEVER).then(|| until_ms - now_ms);
    Some((slot.payload.encoded()?.clone(), now_ms.saturating_sub(slot.as_of_ms), remaining_ms))
}

/// Returns the time at which an entry ends at the node that owns its key now, or `None` if the entry must not be sent.
fn sendable_until<V: Value>(engine: &Engine<V>, slot: &Slot<V>, now_ms: u64) -> Option<u64> {
    slot.payload.encoded()?;
    let until_ms = slot.fresh_at_its_owner_until_ms();
    // After a long absence, writes since the entry was checked may be forgotten.
    let is_doubtful = match engine.context.changes.since(slot.checked.load(Relaxed)) {
        ChangesSince::Nothing => false,
        ChangesSince::TooMuch => true,
        ChangesSince::Changes { absence_ms, .. } => absence_ms.is_some(),
    };
    let is_over = now_ms >= until_ms || slot.is_spent(now_ms) || engine.flights.is_clearing();
    (!is_doubtful && !is_over).then_some(until_ms)
}
