//! Entries of a group: makes entries with their times of loaded, set and received values.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use crate::{
    cache::{
        payload::{Payload, Slot},
        store::{Entry, Times},
    },
    engine::{Engine, GroupFlight, Outcome, errors::panic_text, lookup::Purpose},
    error::{Error, Kind, Result},
    loader::{Finding, Keep, LoadReason, Loaded},
    protocol::message::Encoded,
    runtime::small_bytes,
    value::Value,
};

/// State of the node when a load begins.
pub(crate) struct LoadStart<V: Value> {
    /// Number of the last change.
    pub(crate) changes: u32,
    /// Reason of the load.
    pub(crate) reason: LoadReason,
    /// Previous entry, for the loader, and for the waiters if the loader fails.
    pub(crate) previous: Option<Slot<V>>,
}

impl<V: Value> LoadStart<V> {
    pub(crate) fn now(engine: &Engine<V>, key: &str, reason: LoadReason) -> Self {
        let changes = engine.context.changes.number();
        Self { changes, reason, previous: engine.lookup(key, engine.context.now_ms(), Purpose::Previous).ok() }
    }
}

/// Returns the times of an entry that is loaded now, or `None` if it is not kept. The owner of the key in this node's
/// view decides how long the entry is kept.
fn times<V: Value>(engine: &Engine<V>, keep: Keep, is_value: bool, now_ms: u64, hash: u64) -> Option<Times> {
    let checked = engine.context.changes.number(); // read before the view
    let (random, limit) = (engine.context.random_share(), engine.ownership.keep_limit(hash));
    let times = engine.settings.freshness.times(keep, is_value, now_ms, random, limit)?;
    Some(Times { checked, ..times })
}

/// Makes the entry of a value that is set, on the node of the caller or at the owner.
///
/// The value contains every write before `as_of_ms`.
pub(crate) fn of_set<V: Value>(
    engine: &Engine<V>,
    key: &str,
    hash: u64,
    now_ms: u64,
    as_of_ms: u64,
    value: V,
) -> Result<Slot<V>> {
    let times = times(engine, Keep::AsTheGroup, true, now_ms, hash).unwrap_or_else(|| Times::until(now_ms, now_ms));
    of_value(engine, key, value, Times { as_of_ms, ..times })
}

/// Makes the outcome of a load for its waiters, and the entry to cache, if any.
pub(crate) fn of_load<V: Value>(
    engine: &Engine<V>,
    flight: &GroupFlight<V>,
    hash: u64,
    loaded: Loaded<V>,
    now_ms: u64,
    start: &LoadStart<V>,
) -> Result<(Outcome<V>, Option<Slot<V>>)> {
    let key = flight.key();
    let is_value = !matches!(loaded.finding, Finding::NotFound);
    // The entry counts as checked when the load began, because a later change may concern the value.
    let times = times(engine, loaded.keep, is_value, now_ms, hash);
    // The value contains every write from before the load began, unless the loader has read an older value.
    let read_as_of_ms = flight.context.load_context().map_or(u64::MAX, |load| load.read_as_of_ms());
    let as_of_ms = flight.begun_ms.min(read_as_of_ms);
    let times = times.map(|times| Times { checked: start.changes, as_of_ms, ..times });
    let is_kept = times.is_some();
    let times = times.unwrap_or_else(|| Times::until(as_of_ms, now_ms));
    let slot = match loaded.finding {
        Finding::Value(value) => of_value(engine, key, value, times)?,
        Finding::NotFound => {
            let negative = is_kept.then(|| Slot::new(Entry::new(Payload::NOTHING, times)));
            return Ok((Err(engine.errors.not_found().into()), negative));
        }
        Finding::Unchanged => {
            let previous = start.previous.as_ref().filter(|slot| slot.payload.encoded().is_some());
            let previous = previous.ok_or_else(|| engine.errors.nothing_unchanged())?;
            Slot::new(Entry::new(previous.payload.share(), times))
        }
    };
    Ok((Ok(Slot::clone(&slot)), is_kept.then_some(slot)))
}

/// Makes the entry of a value from a previous owner, or returns `None` if this node cannot use it.
///
/// `changes` is the number of the last change when the value was requested, because later changes may concern it.
/// `left_ms` is the time at which the request left.
pub(crate) fn of_handover<V: Value>(
    engine: &Engine<V>,
    hash: u64,
    value: &Encoded,
    changes: u32,
    left_ms: u64,
) -> Option<Slot<V>> {
    let Encoded { bytes, age_ms, as_of_age_ms, remaining_ms, .. } = value;
    let ages = Ages {
        age_ms: *age_ms,
        as_of_ms: engine.as_of_peer(as_of_age_ms.or(Some(*age_ms)), left_ms),
        remaining_ms: *remaining_ms,
    };
    of_page(engine, hash, bytes, &ages, changes)
}

/// Ages of a value of another node.
pub(crate) struct Ages {
    pub(crate) age_ms: u64,
    /// Time before which the value contains every write; `None` = since its load.
    pub(crate) as_of_ms: Option<u64>,
    pub(crate) remaining_ms: Option<u64>,
}

/// Makes the entry of a value of a page. Otherwise as [`of_handover`].
pub(crate) fn of_page<V: Value>(
    engine: &Engine<V>,
    hash: u64,
    bytes: &Bytes,
    ages: &Ages,
    changes: u32,
) -> Option<Slot<V>> {
    if bytes.len() > engine.context.local.limits.max_value_bytes {
        return None;
    }
    let (now_ms, limit) = (engine.context.local.clock.read_ms(), engine.ownership.keep_limit(hash));
    let times = engine.settings.freshness.of_handover(ages.age_ms, ages.remaining_ms, now_ms, limit)?;
    let as_of_ms = ages.as_of_ms.unwrap_or(times.as_of_ms);
    // Copied, because a slice would keep the whole frame in memory as long as the value.
    let payload = Payload::<V>::from_handover(small_bytes::copy(bytes)).ok()?;
    Some(Slot::new(Entry::new(payload, Times { checked: changes, as_of_ms, ..times })))
}

/// Encodes a value and makes its entry.
///
/// # Errors
/// The value cannot be encoded, its code panics, or its encoded form exceeds `limits.max_value_bytes`.
fn of_value<V: Value>(engine: &Engine<V>, key: &str, value: V, times: Times) -> Result<Slot<V>> {
    let name = &engine.settings.name;
    let text = || format!("a value of group {name:?} could not be encoded");
    let payload = match catch_unwind(AssertUnwindSafe(|| Payload::of(value))) {
        Ok(Ok(payload)) => payload,
        Ok(Err(e)) => return Err(Error::caused(Kind::LoadFailed { is_transient: false }, text(), e)),
        Err(panic) => return Err(Error::caused(Kind::LoadFailed { is_transient: false }, text(), panic_text(&*panic))),
    };
    let max = engine.context.local.limits.max_value_bytes;
    let len = payload.encoded().map_or(0, Bytes::len);
    tracing::trace!(group = &**name, key, value = &*payload.preview(), bytes = len, "cache.insert");
    if len > max {
        let text = format!(
            "a value of group {name:?} has {len} bytes and limits.max_value_bytes is {max}; raise it on every node, or store less"
        );
        return Err(Error::new(Kind::TooLarge, text));
    }
    Ok(Slot::new(Entry::new(payload, times)))
}
