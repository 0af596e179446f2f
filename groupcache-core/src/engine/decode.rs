//! Decoding of a received value, and a load in its place where it does not decode here.

use std::{sync::Arc, time::Duration};

use crate::{
    cache::payload::{NoValue, Slot},
    engine::{
        Engine, Failure,
        load::{self, Dispatched},
        pending::PendingGet,
    },
    error::{Error, Kind, Result},
    loader::LoadReason,
    value::Value,
};

/// Returns the decoded value. A peer's value that does not decode here is loaded on this node.
pub(crate) async fn value_of<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    pending: &PendingGet,
    slot: &Slot<V>,
) -> Result<V> {
    match slot.payload.value() {
        Ok(value) => Ok(value),
        Err(NoValue::NotFound) => Err(engine.errors.not_found()),
        Err(NoValue::Undecodable(undecodable)) => {
            engine.counters.decode_failures.up();
            let name = &engine.settings.name;
            tracing::debug!(group = %name, error = %undecodable, "a peer's value does not decode; loading it here");
            Box::pin(load_decodable(engine, key, pending)).await
        }
    }
}

/// Loads a key on this node, because the value of a peer does not decode.
async fn load_decodable<V: Value>(engine: &Arc<Engine<V>>, key: &str, pending: &PendingGet) -> Result<V> {
    let loaded = match load::join(engine, key, pending.hash, &pending.chain, LoadReason::Fallback)? {
        Dispatched::Found(slot) => slot,
        Dispatched::Flight(flight, _joined) => {
            match engine.context.timers.timeout_at(pending.deadline.end, flight.outcome()).await {
                Some(Ok(slot)) => {
                    let begun_ms = engine.context.local.clock.at_ms(pending.deadline.begun);
                    if !engine.is_recent(flight.horizon_ms().max(slot.as_of_ms), begun_ms) {
                        return Err(engine.errors.too_old());
                    }
                    slot
                }
                Some(Err(Failure::Final(error))) => return Err(error),
                Some(Err(Failure::Expired(_))) | None => return Err(engine.errors.timed_out(Duration::ZERO, None)),
            }
        }
    };
    loaded.payload.value().map_err(|no_value| match no_value {
        NoValue::NotFound => engine.errors.not_found(),
        NoValue::Undecodable(e) => Error::caused(
            Kind::LoadFailed { is_transient: false },
            "a loaded value does not decode; make its decode read what its encode writes",
            e,
        ),
    })
}
