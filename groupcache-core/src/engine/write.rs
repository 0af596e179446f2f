//! Writes: the acting owner first and then every other node, so that no node fetches the old value from the owner
//! again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    cache::payload::Slot,
    engine::{Engine, apply, entry},
    error::{Error, Kind, Result},
    flight::WriteToken,
    identity::PeerId,
    limits::INVALIDATION,
    membership::{stabilizer::Member, view::View},
    peer::client::{
        call::{Call, Outcome},
        link::Link,
        receiver::Receiver,
        request::PendingOutcome,
        sent_write::SentWrite,
    },
    protocol::{
        chain::LoadChain,
        message::{Op, Response, WriteName},
    },
    runtime::clock::later,
    value::Value,
    write::{delete_hold::MAX_HOLD, outcome::WriteOutcome, settling::Settling},
};

/// Part of the time of a write that its acting owner may take before the other nodes are told: half of it.
const OWNER_FIRST: Duration = Duration::from_millis(INVALIDATION.as_millis() as u64 / 2);

/// Interval at which a write looks for nodes that are about to acknowledge it.
const POLL: Duration = Duration::from_millis(10);

/// Change that a write makes to a key.
pub(crate) enum Change<V: Value> {
    /// The entry becomes the value of the key.
    Set(Slot<V>),
    /// The value is dropped, and values that are loaded within `hold` are not cached.
    Remove { hold: Duration },
}

impl<V: Value> Change<V> {
    /// Returns the request to the acting owner.
    fn at_owner(&self) -> Op {
        match self {
            Self::Set(slot) => slot.payload.encoded().cloned().map_or(self.elsewhere(), Op::Set),
            Self::Remove { .. } => self.elsewhere(),
        }
    }

    /// Returns the request to all other nodes.
    fn elsewhere(&self) -> Op {
        Op::Remove { hold: self.hold() }
    }

    fn hold(&self) -> Duration {
        match self {
            Self::Set(_) => Duration::ZERO,
            Self::Remove { hold } => *hold,
        }
    }
}

/// Outcome of a write at its acting owner.
pub(super) struct AtOwner {
    /// The peer that took the write; `None` = this node, or no candidate.
    pub(super) acting: Option<PeerId>,
    /// Candidates before the acting owner that are unreachable or did not answer in time.
    pub(super) unreached: BTreeSet<PeerId>,
    /// Whether the owner refused the value as too large, so that the old value was only dropped.
    is_too_large: bool,
}

/// Write that is in the log of this node.
pub(super) struct LoggedWrite {
    pub(super) key: Arc<str>,
    pub(super) settling: Arc<Settling>,
    /// Writes of the key that the caller knew of, this one included.
    pub(super) known: Vec<WriteName>,
    /// State of the key on this node after the write was applied.
    pub(super) token: WriteToken,
    /// Time at which the caller gets the outcome.
    pub(super) end: Instant,
}

/// Sets a value, in a task that goes on if the caller gives up after `limit`.
pub(crate) async fn set<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    value: V,
    limit: Duration,
) -> Result<WriteOutcome> {
    engine.check(key)?;
    let (now_ms, hash) = (engine.context.local.clock.read_ms(), engine.ownership.hash(key));
    // At the call, because a write that this node hears of later is not in the value.
    let known = engine.context.local.writes.known(&engine.settings.name, key);
    let slot = entry::of_set(engine, key, hash, now_ms, now_ms, value)?;
    carry_out(engine, key, Change::Set(slot), known, limit).await
}

/// Removes a value, in a task that goes on if the caller gives up after `limit`.
pub(crate) async fn remove<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    hold: Duration,
    limit: Duration,
) -> Result<WriteOutcome> {
    engine.check(key)?;
    carry_out(engine, key, Change::Remove { hold: hold.min(MAX_HOLD) }, Vec::new(), limit).await
}

async fn carry_out<V: Value>(
    engine: &Arc<Engine<V>>,
    key: &str,
    change: Change<V>,
    known: Vec<WriteName>,
    limit: Duration,
) -> Result<WriteOutcome> {
    engine.counters.writes.up();
    tracing::trace!(group = &*engine.settings.name, key, "write.start");
    run_detached(engine, limit, write_everywhere(Arc::clone(engine), Arc::from(key), change, known)).await
}

/// Runs `work` in a task of its own, because a caller that gives up must not leave some nodes with the old value.
pub(super) async fn run_detached<V: Value, T: Send + 'static>(
    engine: &Engine<V>,
    limit: Duration,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (done, outcome) = oneshot::channel();
    engine.context.tasks.load(async move {
        let _ = done.send(work.await);
    });
    match engine.context.timers.timeout(limit, outcome).await {
        Some(outcome) => outcome.unwrap_or_else(|_| Err(engine.errors.closed())),
        None => Err(engine.errors.timed_out(limit, None)),
    }
}

/// Applies a write on this node and appends it to the log, then makes it at the acting owner and on all other nodes.
pub(super) async fn write_everywhere<V: Value>(
    engine: Arc<Engine<V>>,
    key: Arc<str>,
    change: Change<V>,
    known: Vec<WriteName>,
) -> Result<WriteOutcome> {
    let (view, op) = (engine.context.view(), change.elsewhere());
    let write = append(&engine, key, change.hold(), known);
    let at_owner = write_at_owner(&engine, &view, &write, change).await;
    let is_too_large = at_owner.is_too_large;
    let sent =
        broadcast(&engine, Some(&write.key), &op, &write.settling, &at_owner.unreached, at_owner.acting.as_ref());
    let outcome = settle(&engine, write.settling, sent, write.end).await;
    if is_too_large {
        let name = &engine.settings.name;
        let text = format!(
            "the value exceeds limits.max_value_bytes of the owner of its key in group {name:?}; the old value was \
             dropped, the new one is not kept; give all nodes the same limits"
        );
        return Err(Error::new(Kind::TooLarge, text));
    }
    Ok(outcome)
}

/// Applies a write of a key on this node, and appends it to the log.
///
/// The write is applied before its number exists, because no node may see a number that its writer has not applied. A
/// flight that begins between the two does not name the write, so that the write is applied once more.
fn append<V: Value>(engine: &Engine<V>, key: Arc<str>, hold: Duration, mut known: Vec<WriteName>) -> LoggedWrite {
    let end = Instant::now() + INVALIDATION;
    let (local, name) = (&engine.context.local, &engine.settings.name);
    let append = || local.writes.append(name, Some(&key), local.clock.read_ms());
    let settling = if mutant!(AppendBeforeApply) {
        append()
    } else {
        apply::drop_and_hold(engine, &key, hold);
        append()
    };
    let token = apply::drop_and_hold(engine, &key, hold);
    let own = local.writes.own_name(settling.number);
    known.retain(|name| name.writer != own.writer);
    known.push(own);
    LoggedWrite { key, settling, known, token, end }
}

/// Drops all values of the group on all nodes, in a task that goes on if the caller gives up after `limit`.
pub(crate) async fn clear<V: Value>(engine: &Arc<Engine<V>>, limit: Duration) -> Result<WriteOutcome> {
    engine.check_open()?;
    let clearing = Arc::clone(engine);
    let clear = async move {
        clearing.counters.writes.up();
        let end = Instant::now() + INVALIDATION;
        let local = &clearing.context.local;
        apply::drop_all(&clearing);
        let settling = local.writes.append(&clearing.settings.name, None, local.clock.read_ms());
        apply::drop_all(&clearing); // see `append`
        let sent = broadcast(&clearing, None, &Op::Clear, &settling, &BTreeSet::new(), None);
        Ok(settle(&clearing, settling, sent, end).await)
    };
    run_detached(engine, limit, clear).await
}

/// Sends a write to every connected node, except for the acting owner and the nodes in `unreached`. `key` is `None` for
/// a clear.
fn broadcast<V: Value>(
    engine: &Engine<V>,
    key: Option<&Arc<str>>,
    op: &Op,
    settling: &Arc<Settling>,
    unreached: &BTreeSet<PeerId>,
    acting: Option<&PeerId>,
) -> Arc<SentWrite> {
    let sent = SentWrite::new(Arc::clone(&engine.context.local), settling.number);
    let no_key: Arc<str> = "".into();
    for (id, link) in engine.context.connected_links() {
        if Some(&id) != acting && !(key.is_some() && unreached.contains(&id)) {
            let call = |reply| call(engine, op.clone(), key.unwrap_or(&no_key), 0, settling.number, Vec::new(), reply);
            sent.send(&link, call);
        }
    }
    acting.into_iter().for_each(|id| sent.was_sent_to(id));
    sent.all_sent();
    sent
}

/// Waits until a write has settled, or until every node that can be reached has answered, or until `end`.
async fn settle<V: Value>(
    engine: &Engine<V>,
    settling: Arc<Settling>,
    sent: Arc<SentWrite>,
    end: Instant,
) -> WriteOutcome {
    let writes = &engine.context.local.writes;
    let mut pending = writes.pending(settling.number);
    if !settling.is_settled() {
        let settled = async {
            tokio::select! {
                biased;
                () = settling.settled() => {}
                () = sent.answered() => {
                    // A node that has answered may wait for an earlier write, and is about to acknowledge both. A node
                    // that cannot be reached is not waited for.
                    while writes.may_acknowledge_soon(settling.number, &sent.peers()) {
                        tokio::select! {
                            biased;
                            () = settling.settled() => break,
                            () = sleep(POLL) => {}
                        }
                    }
                }
            }
        };
        let _ = timeout_at(end, settled).await;
        pending = writes.pending(settling.number);
    }
    if settling.is_settled() {
        pending.clear();
    }
    writes.count_written(&settling);
    WriteOutcome::of(pending, settling, Arc::clone(writes))
}

/// Makes a write at the first candidate that takes it, which may be this node, within [`OWNER_FIRST`]. Once that time is
/// over no further peer is asked, and the other nodes are told instead.
pub(super) async fn write_at_owner<V: Value>(
    engine: &Engine<V>,
    view: &View,
    write: &LoggedWrite,
    mut change: Change<V>,
) -> AtOwner {
    let hash = engine.ownership.hash(&write.key);
    let name = &engine.settings.name;
    let until = write.end - INVALIDATION + OWNER_FIRST;
    let mut at_owner = AtOwner { acting: None, unreached: BTreeSet::new(), is_too_large: false };
    for (rank, member) in view.candidates(engine.ownership.scope, hash).enumerate() {
        if member.is_local() {
            if let Change::Set(slot) = change {
                apply::store_written(engine, &write.key, &write.known, write.token, slot);
            }
            return at_owner;
        }
        if Instant::now() >= until {
            continue; // told with the other nodes, and no less reachable than they are
        }
        // A get of this node skips the candidate too, and the acting owner must be the candidate that gets are sent to.
        let offers = |link: &Link| link.offers(name, engine.settings.format);
        if engine.context.link(member).is_some_and(|link| link.admits() && !offers(&link)) {
            continue;
        }
        let mut outcome = request(engine, member, write, change.at_owner(), rank, until).await;
        if matches!(outcome, Some(Outcome::Answered(Response::TooLarge))) {
            // The write becomes a remove. A successor must not keep the value, because gets go to this owner.
            (change, at_owner.is_too_large) = (Change::Remove { hold: Duration::ZERO }, true);
            outcome = request(engine, member, write, change.at_owner(), rank, until).await;
        }
        match outcome {
            Some(Outcome::Answered(Response::Done)) => {
                at_owner.acting = Some(member.id.clone());
                if engine.context.link(member).is_some_and(|link| !link.has_log()) {
                    acknowledged_by_old(engine, member, write.settling.number);
                }
                return at_owner;
            }
            Some(Outcome::Answered(_)) => {} // declined, and notified with the other nodes
            Some(Outcome::Unreachable | Outcome::Died { .. } | Outcome::Expired) | None => {
                at_owner.unreached.insert(member.id.clone());
            }
        }
    }
    at_owner
}

/// Records the acknowledgement of an owner of an earlier release, which shows no position.
fn acknowledged_by_old<V: Value>(engine: &Engine<V>, member: &Member, number: u64) {
    if let Some(peer) = engine.context.link(member).and_then(|link| link.instance()) {
        engine.context.local.writes.acknowledged_one(&peer, number);
    }
}

/// Sends a write to one node and waits for the outcome until `until`.
async fn request<V: Value>(
    engine: &Engine<V>,
    member: &Member,
    write: &LoggedWrite,
    op: Op,
    rank: usize,
    until: Instant,
) -> Option<Outcome> {
    let pending = send(engine, member, write, op, rank)?;
    timeout_at(until, pending).await.ok()?.ok()
}

/// Sends a write to one node. Returns `None` if its breaker is open or too many requests wait. A set that finds no room
/// for its value is sent as a remove.
pub(super) fn send<V: Value>(
    engine: &Engine<V>,
    member: &Member,
    write: &LoggedWrite,
    op: Op,
    rank: usize,
) -> Option<PendingOutcome> {
    let link = engine.context.link(member)?;
    if let Op::Set(value) = &op
        && !link.takes(value.len())
    {
        // Not sent, because the peer would close the connection.
        let (outcome, pending) = oneshot::channel();
        let _ = outcome.send(Outcome::Answered(Response::TooLarge));
        return Some(pending);
    }
    let number = write.settling.number;
    let is_set = matches!(op, Op::Set(_));
    let known = if is_set { write.known.clone() } else { Vec::new() };
    let sent = link.request_by(|reply| call(engine, op, &write.key, rank, number, known, reply));
    if sent.is_some() || !is_set {
        return sent;
    }
    // Without room for the value, the owner drops the old one, so that no node refills from it.
    let remove = Op::Remove { hold: Duration::ZERO };
    let sent = link.request_by(|reply| call(engine, remove, &write.key, rank, number, Vec::new(), reply));
    if sent.is_some() {
        engine.context.local.counters.sets_without_room.up();
    }
    sent
}

/// Returns the request of a write.
fn call<V: Value>(
    engine: &Engine<V>,
    op: Op,
    key: &Arc<str>,
    rank: usize,
    number: u64,
    known: Vec<WriteName>,
    reply: Receiver,
) -> Call {
    let deadline_ms = later(engine.context.local.clock.read_ms(), INVALIDATION);
    let (group, key, chain) = (engine.index(), Arc::clone(key), LoadChain::EMPTY);
    Call { op, group, key, deadline_ms, rank, chain, number, known, strikes: None, reply }
}
