//! Peek: reads local memory and the owner's memory, and loads nothing.

use std::{sync::Arc, time::Duration};

use crate::{
    cache::{
        payload::{Payload, Slot},
        store::{Entry, Times},
    },
    engine::{Engine, lookup::Purpose},
    error::Result,
    peer::client::call::{Call, Outcome},
    protocol::{
        chain::LoadChain,
        message::{Op, Response},
    },
    runtime::clock::later,
    value::Value,
};

/// Returns the entry of `key` from local memory, or otherwise from the owner's memory. Returns `None` if neither has
/// one, or if the owner cannot be reached or does not answer in time.
pub(crate) async fn peek<V: Value>(engine: &Engine<V>, key: &str, limit: Duration) -> Result<Option<Slot<V>>> {
    engine.check(key)?;
    let now_ms = engine.context.now_ms();
    let local =
        engine.lookup(key, now_ms, Purpose::Serve).or_else(|_| engine.lookup(key, now_ms, Purpose::ServeReplica));
    if let Ok(slot) = local {
        return Ok(Some(slot));
    }
    let view = engine.context.view();
    let Some(owner) = engine.ownership.peer_owner(&view, engine.ownership.hash(key)) else { return Ok(None) };
    let Some(link) = engine.context.link(owner) else { return Ok(None) };
    let end_ms = later(engine.context.local.clock.read_ms(), limit);
    let (left_ms, group, key) = (engine.context.local.clock.read_ms(), engine.index(), Arc::from(key));
    let known = link.names_for(&engine.settings.name, &key);
    let answer = link.request_by(|reply| Call {
        op: Op::Peek,
        group,
        key,
        deadline_ms: end_ms,
        rank: 0,
        chain: LoadChain::EMPTY,
        number: 0,
        known,
        strikes: None,
        reply,
    });
    let Some(answer) = answer else { return Ok(None) };
    let answer = engine.context.timers.timeout(limit, answer).await;
    let Some(Ok(Outcome::Answered(Response::Value(value)))) = answer else { return Ok(None) };
    let as_of_ms = engine.as_of_peer(value.as_of_age_ms.or(Some(value.age_ms)), left_ms);
    if as_of_ms.is_some_and(|as_of_ms| !engine.is_recent(as_of_ms, left_ms)) {
        return Ok(None);
    }
    let now_ms = engine.context.now_ms();
    Ok(Some(Slot::new(Entry::new(Payload::received(value.bytes), Times::until(now_ms, now_ms)))))
}
