//! Previous-owner reads: before this node loads a key, it asks the previous owners for the value, from memory only.
//!
//! A request names the writes of the key that the previous owner may not have heard of. A key is read only if it was
//! neither written nor loaded on this node since it moved. Otherwise an older value could come back.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::{
    cache::payload::Slot,
    engine::{Engine, GroupFlight, entry, lookup::Purpose, send},
    identity::PeerId,
    loader::LoadReason,
    membership::stabilizer::Member,
    peer::client::{
        call::{Call, Outcome},
        link::Link,
        request::PendingOutcome,
    },
    protocol::{
        chain::LoadChain,
        message::{Decline, Encoded, Op, Response, Source},
    },
    runtime::clock::later,
    value::Value,
};

/// Time for all previous owners of a key together. Previous owners read memory only, and a loader may be as fast.
const READ_DEADLINE: Duration = Duration::from_millis(20);

/// Maximum number of previous owners that are asked for one key, one after the other, with those of referrals.
const MAX_ASKED: usize = 3;

/// Previous owner that may be asked.
struct Candidate {
    /// Number of the previous view in which the node owned the key, or of the view of the referral.
    number: u64,
    id: PeerId,
    link: Arc<Link>,
}

/// Returns whether previous owners may have the value of a load that is about to begin: this node owns the key and does
/// not drain, and the view changed lately.
pub(crate) fn may_have_moved<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>, reason: LoadReason) -> bool {
    let is_open = || engine.context.handover.is_open(flight.begun_ms) && !engine.context.is_draining();
    reason == LoadReason::Owner && is_open()
}

/// Completes a flight with the value of a previous owner, instead of a load. Returns `false` if none has a usable
/// value, and then the flight still runs.
pub(crate) async fn take<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>, hash: u64, changes: u32) -> bool {
    let value = read(engine, flight, hash).await;
    value.is_some_and(|value| complete(engine, flight, hash, &value, changes))
}

/// Asks the previous owners of a key, one after the other, and returns the first value.
async fn read<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>, hash: u64) -> Option<Encoded> {
    let now_ms = engine.context.local.clock.read_ms();
    let has_previous = || engine.lookup(flight.key(), engine.context.now_ms(), Purpose::Previous).is_ok();
    if engine.holds.is_held(flight.key(), flight.begun_ms) || has_previous() {
        return None;
    }
    let owners = &engine.handover.previous;
    let end = Instant::now() + READ_DEADLINE;
    let mut to_ask = VecDeque::from(candidates(engine, hash, now_ms));
    let (mut asked, mut referrers): (Vec<PeerId>, Vec<Candidate>) = (Vec::new(), Vec::new());
    // The outcome shows whether the request to a previous owner was useful, whichever node had the value in the end.
    let judge_all = |referrers: Vec<Candidate>, is_found| {
        for referrer in referrers {
            owners.judge(referrer.number, &referrer.id, |peer| peer.answered(is_found));
        }
    };
    while let Some(candidate) = to_ask.pop_front().filter(|_| asked.len() < MAX_ASKED) {
        engine.counters.previous_owner_reads.up();
        asked.push(candidate.id.clone());
        let Candidate { number, id, link } = &candidate;
        // An open breaker or a full queue shows nothing about the values of the previous owner.
        let end_ms = later(now_ms, READ_DEADLINE);
        let Some(pending) = ask(engine, link, flight, end_ms) else { continue };
        match timeout_at(end, pending).await {
            Ok(Ok(Outcome::Answered(Response::Value(value)))) => {
                referrers.push(candidate);
                judge_all(referrers, true);
                return Some(value);
            }
            Ok(Ok(Outcome::Answered(Response::Referred(named)))) => {
                if named == *id {
                    to_ask.clear(); // the owners before this one have older values than it had
                } else if !asked.contains(&named) && to_ask.iter().all(|other| other.id != named) {
                    to_ask.extend(referred(engine, &named, *number, now_ms));
                }
                referrers.push(candidate);
            }
            Ok(Ok(Outcome::Answered(Response::Declined(Decline::NotCached)))) => {
                owners.judge(*number, id, |peer| peer.answered(false));
            }
            Ok(Ok(Outcome::Expired)) | Err(_) => {
                owners.judge(*number, id, |peer| peer.was_late(now_ms, engine.context.local.clock.read_ms()));
                return None; // no time is left for another previous owner
            }
            // Neither response shows anything about other keys or later requests.
            Ok(Ok(Outcome::Answered(Response::TooLarge | Response::Overloaded { .. }))) => {}
            Ok(_) => owners.judge(*number, id, |peer| peer.is_over = true),
        }
    }
    judge_all(referrers, false);
    None
}

/// Asks a previous owner for a value. The request names the writes of the key that the owner may not have heard of, also
/// those that another node has named to this one.
fn ask<V: Value>(engine: &Engine<V>, link: &Link, flight: &GroupFlight<V>, deadline_ms: u64) -> Option<PendingOutcome> {
    let known = match mutant!(NotNamedOn) {
        true => Vec::new(),
        false => link.names_for(&engine.settings.name, flight.key()),
    };
    if !known.is_empty() && !link.has_log() {
        return None; // the peer cannot judge its value
    }
    let (group, key) = (engine.index(), Arc::clone(flight.key()));
    link.request_by(|reply| Call {
        op: Op::ReadAsPreviousOwner,
        group,
        key,
        deadline_ms,
        rank: 0,
        chain: LoadChain::EMPTY,
        number: 0,
        known,
        strikes: None,
        reply,
    })
}

/// Returns the previous owner of a referral, if it is a member and may be asked. Referrals name owners in views from
/// before this node joined, which it does not know.
fn referred<V: Value>(engine: &Engine<V>, id: &PeerId, number: u64, now_ms: u64) -> Option<Candidate> {
    candidate(engine, engine.context.view().members().iter().find(|member| member.id == *id)?, number, now_ms)
}

/// Returns a previous owner if its link works and offers the group, and if earlier reads there were useful.
fn candidate<V: Value>(engine: &Engine<V>, owner: &Member, number: u64, now_ms: u64) -> Option<Candidate> {
    if !engine.handover.previous.may_be_asked(number, &owner.id, now_ms) {
        return None;
    }
    let (name, format) = (&engine.settings.name, engine.settings.format);
    let link = engine.context.link(owner)?;
    let may = link.admits() && link.hands_over() && link.offers(name, format);
    may.then(|| Candidate { number, id: owner.id.clone(), link })
}

/// Returns the previous owners of a key that may be asked, the last one first.
fn candidates<V: Value>(engine: &Engine<V>, hash: u64, now_ms: u64) -> Vec<Candidate> {
    let (owners, longest) = (&engine.handover.previous, engine.settings.freshness.longest());
    let mut found: Vec<Candidate> = Vec::new();
    for previous in engine.context.handover.previous_views().iter() {
        if !previous.is_open(now_ms, longest) || owners.is_cleared_since(previous.since_ms) {
            continue;
        }
        if owners.is_overwritten(previous.number, hash) && !mutant!(PeekIgnoresStripes) {
            break; // overwritten since all older views too
        }
        let Some(owner) = engine.ownership.peer_owner(&previous.view, hash) else { continue };
        if found.iter().all(|other| other.id != owner.id) {
            found.extend(candidate(engine, owner, previous.number, now_ms));
        }
        if found.len() == MAX_ASKED {
            break;
        }
    }
    found
}

/// Returns the other nodes that owned a key in the previous views that are still in use.
pub(crate) fn owned_before<V: Value>(engine: &Engine<V>, key: &str) -> BTreeSet<PeerId> {
    let (now_ms, hash) = (engine.context.now_ms(), engine.ownership.hash(key));
    let previous = engine.context.handover.previous_views();
    let open = previous.iter().filter(|previous| previous.is_open(now_ms, engine.settings.freshness.longest()));
    open.filter_map(|previous| engine.ownership.peer_owner(&previous.view, hash))
        .map(|owner| owner.id.clone())
        .collect()
}

/// Returns the peer to ask for a key that this node owned and does not hold: its previous owner, or this node's own id
/// if this node has written or loaded the key since, after which the requester stops.
fn referral<V: Value>(engine: &Engine<V>, hash: u64, now_ms: u64) -> Option<PeerId> {
    let (owners, longest) = (&engine.handover.previous, engine.settings.freshness.longest());
    let mut was_mine = engine.ownership.is_mine(hash);
    for previous in engine.context.handover.previous_views().iter() {
        if !previous.is_open(now_ms, longest) || owners.is_cleared_since(previous.since_ms) {
            continue;
        }
        if owners.is_overwritten(previous.number, hash) && !mutant!(PeekIgnoresStripes) {
            return Some(engine.context.local.hello().id.clone());
        }
        match previous.view.owner(engine.ownership.scope, hash) {
            Some(owner) if owner.is_local() => was_mine = true,
            Some(owner) if was_mine => return Some(owner.id.clone()),
            _ => {}
        }
    }
    None
}

/// Completes a flight with the value of a previous owner. Returns `false` if this node cannot use the value, and then
/// the flight still runs.
fn complete<V: Value>(engine: &Engine<V>, flight: &GroupFlight<V>, hash: u64, value: &Encoded, changes: u32) -> bool {
    let Some(slot) = entry::of_handover(engine, hash, value, changes, flight.begun_ms) else { return false };
    if !engine.may_keep_taken() || !engine.is_recent(slot.as_of_ms, engine.context.local.clock.exact_ms()) {
        return false;
    }
    let horizon_ms = engine.horizon_of_taken_ms();
    engine.counters.previous_owner_hits.up();
    let keep = || engine.cache.owned.insert(flight.key(), Slot::clone(&slot));
    match engine.flights.complete(flight, Ok(Slot::clone(&slot)), horizon_ms, keep) {
        Some(inserted) => engine.cache.after_insert(flight.key(), &inserted, false, engine.context.now_ms()),
        None => engine.counters.discarded_after_write.up(),
    }
    true
}

/// Returns the response to a read by a key's current owner: the cached value with its remaining time, or a referral.
/// Never loads.
pub(crate) fn answer<V: Value>(engine: &Engine<V>, key: &str) -> Response {
    if !engine.context.handover.is_on {
        return Response::Unsupported;
    }
    if !send::may_send(engine) {
        return Response::Declined(Decline::NotCached);
    }
    let (now_ms, horizon_ms) = (engine.context.now_ms(), engine.horizon_ms());
    let slot = engine.cache.owned.peek(key);
    let as_of_age_ms = slot.as_ref().and_then(|slot| engine.as_of_age_ms(slot.as_of_ms.max(horizon_ms), now_ms));
    match slot.and_then(|slot| send::sendable(engine, &slot, now_ms)) {
        Some((bytes, age_ms, remaining_ms)) => {
            engine.counters.handover_sent.up();
            engine.counters.handover_sent_bytes.add(bytes.len() as u64);
            let source = Source::Memory;
            Response::Value(Encoded { bytes, age_ms, as_of_age_ms, remaining_ms, borrow_ms: 0, is_hot: false, source })
        }
        None => {
            let referral = referral(engine, engine.ownership.hash(key), now_ms);
            referral.map_or(Response::Declined(Decline::NotCached), Response::Referred)
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
