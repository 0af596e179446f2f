//! Applying: the effect of a write on the memory of this node, whichever node made the write.

use std::time::Duration;

use crate::{
    cache::{self, payload::Slot},
    engine::Engine,
    flight::WriteToken,
    protocol::message::WriteName,
    runtime::clock::later,
    value::Value,
    write::delete_hold::MAX_HOLD,
};

/// Drops the value of a key on this node, and detaches its flights, so that their values are not cached.
pub(crate) fn drop_written<V: Value>(engine: &Engine<V>, key: &str) -> WriteToken {
    mark_overwritten(engine, key);
    let replica = || if mutant!(CopyNotInvalidated) { None } else { engine.cache.remove_replica(key) };
    let remove = || (engine.cache.owned.remove(key), replica());
    let (dropped, token) = engine.flights.write(key, remove);
    if dropped.0.is_some() || dropped.1.is_some() {
        engine.counters.invalidations.up();
    }
    engine.drop_elsewhere(dropped.0);
    engine.drop_elsewhere(dropped.1);
    token
}

/// Records that the values of previous owners are older than this write.
fn mark_overwritten<V: Value>(engine: &Engine<V>, key: &str) {
    let now_ms = engine.context.local.clock.read_ms();
    engine.handover.previous.mark_overwritten(&engine.context.handover, engine.ownership.hash(key), now_ms);
}

/// Drops the value of a key on this node, and caches no value of the key that is loaded within `hold`.
pub(crate) fn drop_and_hold<V: Value>(engine: &Engine<V>, key: &str, hold: Duration) -> WriteToken {
    if !hold.is_zero() {
        let now_ms = engine.context.local.clock.read_ms();
        // Before the write, because a flight that begins after the write must find the hold.
        engine.holds.hold(key, now_ms, later(now_ms, hold.min(MAX_HOLD)));
    }
    drop_written(engine, key)
}

/// Stores a written value, unless this node has heard of a write of the key that the caller did not know of.
pub(super) fn store_written<V: Value>(
    engine: &Engine<V>,
    key: &str,
    known: &[WriteName],
    token: WriteToken,
    slot: Slot<V>,
) {
    let writes = &engine.context.local.writes;
    if writes.has_heard_beyond(writes.own(), &engine.settings.name, key, known) {
        return;
    }
    if let Some(inserted) = engine.flights.finish_write(token, || engine.cache.owned.insert(key, slot)) {
        engine.cache.after_insert(key, &inserted, false, engine.context.now_ms());
    }
}

/// Drops all values on this node, and detaches all flights, so that their values are not cached.
pub(crate) fn drop_all<V: Value>(engine: &Engine<V>) {
    engine.handover.previous.clear(engine.context.local.clock.read_ms());
    forget_all(engine);
}

/// Drops all values on this node as [`drop_all`] does, and still takes the values that previous owners have.
pub(crate) fn forget_all<V: Value>(engine: &Engine<V>) {
    let dropped = engine.flights.clear(|| engine.cache.clear());
    engine.counters.invalidations.add(dropped.len() as u64);
    let runtimes = &engine.context.tasks.runtimes;
    cache::drop_in_background(dropped, &runtimes.of_user, !runtimes.is_on_own_thread());
}
