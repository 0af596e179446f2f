//! Writes: the acting owner first, then everyone else, so that nobody refills from an owner that does not know yet.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    Group, Inner,
    held::{Slot, release},
    hold::MAX_HOLD,
};
use crate::{
    chain::Chain,
    clock::later,
    config::INVALIDATION,
    error::{Error, Kind, Result},
    flight::Mark,
    identity::PeerId,
    loader::Keep,
    membership::{
        stabilizer::Member,
        view::{Scope, View},
    },
    message::{Answer, Decline, Op},
    peer::{
        link::Link,
        table::{Call, Outcome, Reply},
    },
    store::Times,
    sync::Mutex,
    value::Value,
};

/// How far a write has come.
///
/// Who is not reached may serve what it held before until that expires.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a write that did not reach everyone leaves old values there; log_unreached() is the least"]
pub struct Invalidated {
    pub(super) unreached: Vec<PeerId>,
    pub(super) views_differed: bool,
}

impl Invalidated {
    /// Of a write that nobody has to hear of.
    pub(super) fn nobody() -> Self {
        Self { unreached: Vec::new(), views_differed: false }
    }

    /// Both together.
    pub(super) fn add(&mut self, other: Self) {
        self.unreached.extend(other.unreached);
        self.unreached.sort();
        self.unreached.dedup();
        self.views_differed |= other.views_differed;
    }

    /// Every node that is known of has dropped the old value: no get that starts now, anywhere, sees it.
    pub fn is_complete(&self) -> bool {
        self.unreached.is_empty()
    }

    /// The nodes that did not acknowledge within a second, and those that discovery names and that have never answered: by
    /// their addresses, where no more is known of them.
    pub fn unreached(&self) -> &[PeerId] {
        &self.unreached
    }

    /// Some node had another set of owners in mind at that moment; nodes that this one does not know were not asked.
    pub fn views_differed(&self) -> bool {
        self.views_differed
    }

    /// Logs a warning that names who was not reached, if anybody.
    pub fn log_unreached(&self) {
        if !self.is_complete() {
            tracing::warn!(unreached = ?self.unreached, "a write did not reach every node; what they hold expires by itself");
        }
    }
}

/// What a write does.
pub(super) enum Change<V: Value> {
    Set(Slot<V>),
    /// What is loaded within `hold` is not kept.
    Remove {
        hold: Duration,
    },
}

impl<V: Value> Change<V> {
    /// At the node that acts as the owner.
    fn at_owner(&self) -> Op {
        match self {
            Self::Set(slot) => slot.payload.encoded().cloned().map_or(self.elsewhere(), Op::Set),
            Self::Remove { .. } => self.elsewhere(),
        }
    }

    /// At all others.
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

/// What became of a write at the node that stands for all until the others are told.
pub(super) struct AtOwner {
    /// Who took it; `None` = this node.
    pub(super) acting: Option<PeerId>,
    /// Who should have and could not be reached.
    unreached: Vec<PeerId>,
    /// The value was refused, and what was held was dropped.
    is_too_large: bool,
}

impl<V: Value> Group<V> {
    /// Fills the cache with a value after its source has changed: the owner stores it, all others drop theirs.
    ///
    /// It is not a database write: the value may be evicted at any time, and the loader is the truth. Loads that
    /// run meanwhile are answered to those who wait for them and not kept. Once begun it is carried out, even if
    /// the future is dropped or the deadline passes. It takes one exchange with the owner and one with every other node, side by side.
    ///
    /// # Errors
    /// [`is_unreachable`](Error::is_unreachable) when neither the owner nor any successor could be reached,
    /// [`is_too_large`](Error::is_too_large), [`is_bad_key`](Error::is_bad_key), [`is_closed`](Error::is_closed).
    pub async fn set(&self, key: &str, value: impl Into<V>) -> Result<Invalidated> {
        let group = &self.inner;
        group.check(key)?;
        let now_ms = group.shared.local.clock.read_ms();
        let hash = group.place.hash(key.as_bytes());
        let slot = group.slot(key, value.into(), group.times_of_set(now_ms, hash))?;
        group.carry_out(key, Change::Set(slot), self.deadline).await
    }

    /// Drops a value everywhere, so that the next get loads it anew. Otherwise as [`set`](Self::set).
    ///
    /// # Errors
    /// Those of [`set`](Self::set).
    pub async fn remove(&self, key: &str) -> Result<Invalidated> {
        self.inner.check(key)?;
        self.inner.carry_out(key, Change::Remove { hold: Duration::ZERO }, self.deadline).await
    }

    /// As [`remove`](Self::remove), and what is loaded within `hold` from now on is handed out and not kept: for a source
    /// that is written in one place and read from replicas, which lag behind by less than that.
    ///
    /// Concurrent gets still share one load. `hold` is cut to an hour. A value that is [`set`](Self::set) meanwhile is
    /// kept, and not refreshed until the hold ends. Nodes that are named as unreached drop their values when they can
    /// be reached again, and hold nothing; nor does a node that joins later. With more than 10,000 keys held at once
    /// nothing of the group is kept that is loaded before the last of the others ends.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # async fn f(users: groupcache_core::Group<String>) -> Result<(), groupcache_core::Error> {
    /// users.remove_and_hold("12345", Duration::from_secs(2)).await?.log_unreached();
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`set`](Self::set).
    pub async fn remove_and_hold(&self, key: &str, hold: Duration) -> Result<Invalidated> {
        self.inner.check(key)?;
        // Less than a millisecond is not nothing.
        let hold = hold.clamp(Duration::from_millis(1), MAX_HOLD);
        self.inner.carry_out(key, Change::Remove { hold }, self.deadline).await
    }
}

impl<V: Value> Inner<V> {
    pub(super) fn times_of_set(&self, now_ms: u64, hash: u64) -> Times {
        self.times(Keep::AsTheGroup, true, now_ms, hash).unwrap_or_else(|| Times::until(now_ms, now_ms))
    }

    async fn carry_out(self: &Arc<Self>, key: &str, change: Change<V>, wait: Duration) -> Result<Invalidated> {
        self.counters.writes.up();
        tracing::trace!(group = &*self.settings.name, key, "to write");
        let (group, key) = (Arc::clone(self), Arc::from(key));
        self.carry_on(wait, group.write_everywhere(key, change)).await
    }

    async fn write_everywhere(self: Arc<Self>, key: Arc<str>, change: Change<V>) -> Result<Invalidated> {
        let view = self.shared.view();
        let (elsewhere, hold) = (change.elsewhere(), change.hold());
        let AtOwner { acting, mut unreached, is_too_large } = self.write_at_owner(&view, &key, change).await?;
        if acting.is_some() {
            self.drop_and_hold(&key, hold);
        }
        unreached.iter().for_each(|peer| self.not_told(peer, Some(&key)));
        unreached.extend(self.passes_by(&view, Some(&key)));
        let mut told = Vec::new();
        for member in view.members().iter().filter(|m| m.dial.is_some() && Some(&m.id) != acting.as_ref()) {
            if unreached.contains(&member.id) {
                continue;
            }
            match self.tell(member, &key, elsewhere.clone(), 0) {
                Some(answer) => told.push((member.id.clone(), answer)),
                None => {
                    self.not_told(&member.id, Some(&key));
                    unreached.push(member.id.clone());
                }
            }
        }
        for (id, answer) in told {
            if !self.has_dropped(answer.await.ok()) {
                self.not_told(&id, Some(&key));
                unreached.push(id);
            }
        }
        if is_too_large {
            let name = &self.settings.name;
            let text = format!(
                "the value is larger than limits.max_value_bytes of the node that owns its key in group {name:?}; the old \
                 value was dropped, the new one is not kept; give all nodes the same limits"
            );
            return Err(Error::new(Kind::TooLarge, text));
        }
        unreached.sort();
        unreached.dedup(); // who comes at this moment may be known in two ways
        let views_differed = self.views_differ(&view);
        Ok(Invalidated { unreached, views_differed })
    }

    /// Whether a node that was told of a write has nothing of before it any more. One without the group holds nothing of it,
    /// unless it is this node that has it no more: then nobody knows what the write was about.
    pub(super) fn has_dropped(&self, outcome: Option<Outcome>) -> bool {
        match outcome {
            Some(Outcome::Answered(Answer::Done)) => true,
            Some(Outcome::Answered(Answer::Declined(Decline::UnknownGroup))) => !self.is_removed.load(Relaxed),
            _ => false,
        }
    }

    /// Those that are away are told when they come; returns who may have something at this moment and is not told by who
    /// has this view.
    pub(super) fn passes_by(&self, view: &View, key: Option<&Arc<str>>) -> Vec<PeerId> {
        let told = view.members().iter().map(|member| &member.id);
        let others = self.shared.undelivered.passes(&self.settings.name, key, told);
        self.shared.strangers(view).chain(others).collect()
    }

    /// It is told as soon as it can be.
    pub(super) fn not_told(&self, peer: &PeerId, key: Option<&Arc<str>>) {
        self.shared.undelivered.missed(peer, &self.settings.name, key);
    }

    /// Whether some peer has another set of owners in mind.
    pub(super) fn views_differ(&self, view: &View) -> bool {
        let mut links = view.members().iter().filter_map(|member| self.shared.link(member));
        links.any(|link| link.admits() && link.fingerprint() != view.fingerprint())
    }

    /// The write at the first of owner and successors that takes it.
    pub(super) async fn write_at_owner(&self, view: &View, key: &Arc<str>, mut change: Change<V>) -> Result<AtOwner> {
        let hash = self.place.hash(key.as_bytes());
        let (mut unreached, mut is_too_large) = (Vec::new(), false);
        let mut candidates = view.candidates(self.settings.scope, hash).enumerate();
        let me = loop {
            // In a group of zones there are others to tell, who know nothing of the trouble in ours.
            let Some((rank, member)) = candidates.next() else {
                break unreached.is_empty() || self.settings.scope == Scope::Zone;
            };
            if member.dial.is_none() {
                break true;
            }
            // A get of ours would not ask it either: the acting owner is the one that gets go to.
            let offers = |link: &Link| link.offers(&self.settings.name, self.settings.format);
            if self.shared.link(member).is_some_and(|link| link.admits() && !offers(&link)) {
                continue;
            }
            let mut answer = self.ask(member, key, change.at_owner(), rank).await;
            if matches!(answer, Some(Outcome::Answered(Answer::TooLarge))) {
                // Nor may a successor keep it, since gets go to this one: it is a remove now.
                (change, is_too_large) = (Change::Remove { hold: Duration::ZERO }, true);
                answer = self.ask(member, key, change.at_owner(), rank).await;
            }
            match answer {
                Some(Outcome::Answered(Answer::Done)) => {
                    return Ok(AtOwner { acting: Some(member.id.clone()), unreached, is_too_large });
                }
                Some(Outcome::Answered(_)) => {} // declined: it is told to drop with the others
                Some(Outcome::Unreachable | Outcome::Expired) | None => unreached.push(member.id.clone()),
            }
        };
        if !me {
            let name = &self.settings.name;
            let text =
                format!("the owner of a key of group {name:?} and every successor are unreachable: {unreached:?}");
            return Err(Error::new(Kind::Unreachable, text));
        }
        match change {
            Change::Set(slot) => self.store_written(key, slot),
            Change::Remove { hold } => self.drop_and_hold(key, hold),
        }
        Ok(AtOwner { acting: None, unreached, is_too_large })
    }

    /// As [`tell`](Self::tell), and waits for the answer.
    async fn ask(&self, member: &Member, key: &Arc<str>, op: Op, rank: usize) -> Option<Outcome> {
        self.tell(member, key, op, rank)?.await.ok()
    }

    /// Sends a write to one node; `None` when its breaker is open or too much waits for it.
    pub(super) fn tell(
        &self,
        member: &Member,
        key: &Arc<str>,
        op: Op,
        rank: usize,
    ) -> Option<oneshot::Receiver<Outcome>> {
        let link = self.shared.link(member)?;
        let (answer, told) = oneshot::channel();
        if let Op::Set(value) = &op
            && !link.takes(value.len())
        {
            // It would end the whole stream there.
            let _ = answer.send(Outcome::Answered(Answer::TooLarge));
            return Some(told);
        }
        let call = Call {
            op,
            group: self.index(),
            key: Arc::clone(key),
            deadline_ms: later(self.shared.local.clock.read_ms(), INVALIDATION),
            rank,
            chain: Chain::EMPTY,
            reply: Arc::new(Acknowledged(Mutex::new(Some(answer)))),
        };
        link.send(call).ok().map(|()| told)
    }

    /// Drops what is held here and lets nothing that is under way be stored.
    pub(super) fn drop_written(&self, key: &str) -> Mark {
        self.settle(key);
        let copies = || self.mirror.as_ref().filter(|_| !mutant!(CopyNotInvalidated));
        let remove = || (self.store.remove(key), copies().and_then(|mirror| mirror.remove(key)));
        let (dropped, mark) = self.flights.write(key, self.shared.local.clock.read_ms(), remove);
        if dropped.0.is_some() || dropped.1.is_some() {
            self.counters.invalidated.up();
        }
        release(dropped);
        mark
    }

    /// What a former owner still has of a key does not come back.
    fn settle(&self, key: &str) {
        let now_ms = self.shared.local.clock.read_ms();
        self.formers.settle(&self.shared.handover, self.place.hash(key.as_bytes()), now_ms);
    }

    /// The same, and for a while nothing is stored that is loaded.
    pub(super) fn drop_and_hold(&self, key: &str, hold: Duration) {
        if !hold.is_zero() {
            let now_ms = self.shared.local.clock.read_ms();
            // Before the write: a flight that begins after it must find it.
            self.holds.hold(key, now_ms, later(now_ms, hold.min(MAX_HOLD)));
        }
        self.drop_written(key);
    }

    /// Stores a written value; what is under way is not stored over it.
    fn store_written(&self, key: &str, slot: Slot<V>) {
        self.settle(key);
        let store = || (self.store.insert(key, slot), self.mirror.as_ref().and_then(|mirror| mirror.remove(key)));
        let ((inserted, copy), _) = self.flights.write(key, self.shared.now_ms(), store);
        release(copy);
        self.stored(key, inserted, false);
    }
}

/// Hands the outcome of a write to the task that waits for it.
pub(super) struct Acknowledged(pub(super) Mutex<Option<oneshot::Sender<Outcome>>>);

impl Reply for Acknowledged {
    fn reply(self: Arc<Self>, outcome: Outcome, _: Instant) {
        if let Some(waiting) = self.0.lock().take() {
            let _ = waiting.send(outcome);
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use crate::Node;

    #[tokio::test]
    async fn who_does_not_know_a_group_that_was_removed_here_may_have_its_values() {
        let node = Node::builder().start().await.unwrap();
        let group = node.group::<String>("data").capacity_bytes(1 << 20);
        let group = group.loader(async |key: &str| Ok::<_, std::io::Error>(key.to_owned())).build().unwrap();
        let has_dropped = |answer| group.inner.has_dropped(Some(Outcome::Answered(answer)));
        let unknown = || Answer::Declined(Decline::UnknownGroup);
        assert!(has_dropped(unknown()) && has_dropped(Answer::Done));
        assert!(!has_dropped(Answer::Declined(Decline::Closing)) && !group.inner.has_dropped(None));
        node.remove_group("data");
        assert!(!has_dropped(unknown()) && has_dropped(Answer::Done));
    }
}
