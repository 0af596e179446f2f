//! The owner before this one: asked, from its memory only, for a value that would be loaded otherwise.
//!
//! Only what no write can have undone is asked for, and only what has neither been written nor loaded here since the
//! key may have moved: what a former owner still has must not come back after that.

mod settled;
mod worth;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use self::{settled::Settled, worth::Worth};
use super::{
    Flying, Inner,
    held::{Held, Slot},
    write::Acknowledged,
};
use crate::{
    chain::Chain,
    changes::Since,
    clock::{NEVER, later},
    handover::HandOver,
    identity::PeerId,
    loader::LoadReason,
    membership::stabilizer::Member,
    message::{Answer, Decline, Encoded, Op, Source},
    peer::{
        link::Link,
        table::{Call, Outcome},
    },
    short,
    store::Entry,
    sync::Mutex,
    value::Value,
};

/// How long all former owners of a key together may take: they look into memory, and a loader may take as long.
const PEEK: Duration = Duration::from_millis(20);

/// Former owners of one key that are asked, one after the other, those included that another one has named.
const MAX_ASKED: usize = 3;

/// What a group knows of the former owners of its keys.
#[derive(Debug, Default)]
pub(super) struct Formers {
    worth: Mutex<BTreeMap<PeerId, Worth>>,
    settled: Settled,
    /// Views that were followed by then are not looked at: the whole group was changed.
    cleared_ms: AtomicU64,
}

impl Formers {
    /// A key is written, or was loaded. Told before the lock of its flights is taken.
    pub(super) fn settle(&self, handover: &HandOver, hash: u64, now_ms: u64) {
        if handover.is_open(now_ms) {
            self.settled.add(handover.number(), hash);
        }
    }

    /// Whether a key was written or loaded here since that former view was followed by another.
    pub(super) fn is_settled(&self, number: u64, hash: u64) -> bool {
        self.settled.has(number, hash)
    }

    /// All keys are written.
    pub(super) fn clear(&self, now_ms: u64) {
        self.cleared_ms.fetch_max(now_ms, Relaxed);
    }

    /// Whether all keys were written since then.
    pub(super) fn is_cleared_since(&self, since_ms: u64) -> bool {
        since_ms <= self.cleared_ms.load(Relaxed)
    }

    fn may_be_asked(&self, number: u64, peer: &PeerId, now_ms: u64) -> bool {
        self.worth.lock().get(peer).is_none_or(|worth| worth.number < number || worth.may_be_asked(now_ms))
    }

    fn judge(&self, former: &Asked, judge: impl FnOnce(&mut Worth)) {
        let mut all = self.worth.lock();
        let worth = all.entry(former.id.clone()).or_default();
        if worth.number < former.number {
            *worth = Worth::unknown(former.number);
        }
        judge(worth);
    }

    /// Forgets what was found of views that are not looked at any more.
    pub(super) fn sweep(&self, handover: &HandOver) {
        let oldest = handover.former().last().map(|former| former.number);
        self.settled.sweep(oldest);
        self.worth.lock().retain(|_, worth| oldest.is_some_and(|oldest| worth.number >= oldest));
    }
}

/// A former owner that is asked.
struct Asked {
    number: u64,
    id: PeerId,
    link: Arc<Link>,
}

impl<V: Value> Inner<V> {
    /// Whether former owners should be asked for what is about to be loaded.
    pub(super) fn may_have_moved(&self, flight: &Flying<V>, reason: LoadReason) -> bool {
        reason == LoadReason::Owner && self.shared.handover.is_open(flight.begun_ms) && !self.shared.is_draining()
    }

    /// Lands a flight with what a former owner has, instead of a load; false = nobody has it, and the flight still runs.
    pub(super) async fn take_from_formers(&self, flight: &Flying<V>, hash: u64, changes: u32) -> bool {
        let handed = self.peek_at_formers(flight, hash).await;
        handed.is_some_and(|value| self.land_handed(flight, hash, &value, changes))
    }

    /// What a former owner has.
    async fn peek_at_formers(&self, flight: &Flying<V>, hash: u64) -> Option<Encoded> {
        let now_ms = self.shared.local.clock.read_ms();
        if self.flights.may_be_undone(flight) && !mutant!(PeekIgnoresStripes) {
            return None;
        }
        if self.holds.is_held(flight.key(), flight.begun_ms) || self.previous(flight.key()).is_some() {
            return None;
        }
        let end = Instant::now() + PEEK;
        let mut to_ask = VecDeque::from(self.formers_of(hash, now_ms));
        let (mut asked, mut referrers) = (Vec::new(), Vec::new());
        // Whether a former owner is worth asking shows in what came of it, whoever had it in the end.
        let judge_all = |referrers: Vec<Asked>, is_found| {
            for referrer in referrers {
                self.formers.judge(&referrer, |worth| worth.answered(is_found));
            }
        };
        while let Some(former) = to_ask.pop_front().filter(|_| asked.len() < MAX_ASKED) {
            self.counters.peeks.up();
            asked.push(former.id.clone());
            // As many requests as are allowed wait for it: that says nothing of what it has.
            let Some(answer) = self.ask_former(&former.link, flight.key(), now_ms) else { continue };
            match timeout_at(end, answer).await {
                Ok(Ok(Outcome::Answered(Answer::Value(value)))) => {
                    referrers.push(former);
                    judge_all(referrers, true);
                    return Some(value);
                }
                Ok(Ok(Outcome::Answered(Answer::Referred(id)))) => {
                    if id == former.id {
                        to_ask.clear(); // what those before it have is older than what it had
                    } else if !asked.contains(&id) && to_ask.iter().all(|other| other.id != id) {
                        to_ask.extend(self.named(id, former.number, now_ms));
                    }
                    referrers.push(former);
                }
                Ok(Ok(Outcome::Answered(Answer::Declined(Decline::NotHeld)))) => {
                    self.formers.judge(&former, |worth| worth.answered(false));
                }
                Ok(Ok(Outcome::Expired)) | Err(_) => {
                    self.formers.judge(&former, |worth| worth.was_late(now_ms, self.shared.local.clock.read_ms()));
                    return None; // there is no time left for another
                }
                // It says nothing of its other keys, or of the next moment.
                Ok(Ok(Outcome::Answered(Answer::TooLarge | Answer::Overloaded { .. }))) => {}
                Ok(_) => self.formers.judge(&former, |worth| worth.is_over = true),
            }
        }
        judge_all(referrers, false);
        None
    }

    /// A former owner whom another one named: a node knows the views since it came, and not those before.
    fn named(&self, id: PeerId, number: u64, now_ms: u64) -> Option<Asked> {
        self.may_be_asked(self.shared.view().members().iter().find(|member| member.id == id)?, number, now_ms)
    }

    fn may_be_asked(&self, owner: &Member, number: u64, now_ms: u64) -> Option<Asked> {
        if !self.formers.may_be_asked(number, &owner.id, now_ms) {
            return None;
        }
        let (name, format) = (&self.settings.name, self.settings.format);
        let link = self.shared.link(owner)?;
        let may = link.admits() && link.hands_over() && link.offers(name, format);
        may.then(|| Asked { number, id: owner.id.clone(), link })
    }

    /// Who owned a key before this node, and may be asked: the last one first.
    fn formers_of(&self, hash: u64, now_ms: u64) -> Vec<Asked> {
        let (scope, longest) = (self.settings.scope, self.settings.ages.longest());
        let mut found: Vec<Asked> = Vec::new();
        for former in self.shared.handover.former().iter() {
            if !former.is_open(now_ms, longest) || self.formers.is_cleared_since(former.since_ms) {
                continue;
            }
            if self.formers.is_settled(former.number, hash) && !mutant!(PeekIgnoresStripes) {
                break; // and so it is since the older ones
            }
            let Some(owner) = former.view.owner(scope, hash).filter(|owner| owner.dial.is_some()) else { continue };
            if found.iter().all(|other| other.id != owner.id) {
                found.extend(self.may_be_asked(owner, former.number, now_ms));
            }
            if found.len() == MAX_ASKED {
                break;
            }
        }
        found
    }

    /// Who owned a key in the views that are still looked at, beside this node.
    pub(super) fn owned_before(&self, key: &str) -> BTreeSet<PeerId> {
        let (now_ms, hash) = (self.shared.now_ms(), self.place.hash(key.as_bytes()));
        let former = self.shared.handover.former();
        let open = former.iter().filter(|former| former.is_open(now_ms, self.settings.ages.longest()));
        let owners = open.filter_map(|former| former.view.owner(self.settings.scope, hash));
        owners.filter(|owner| owner.dial.is_some()).map(|owner| owner.id.clone()).collect()
    }

    /// Who may have a key that this node has owned and does not have: who owned it before. This node itself, when it had
    /// something newer.
    fn referral(&self, hash: u64, now_ms: u64) -> Option<PeerId> {
        let (scope, longest) = (self.settings.scope, self.settings.ages.longest());
        let mut was_mine = self.owns(&self.shared.view_ref(), hash);
        for former in self.shared.handover.former().iter() {
            if !former.is_open(now_ms, longest) || self.formers.is_cleared_since(former.since_ms) {
                continue;
            }
            if self.formers.is_settled(former.number, hash) && !mutant!(PeekIgnoresStripes) {
                return Some(self.shared.local.hello().id.clone());
            }
            match former.view.owner(scope, hash) {
                Some(owner) if owner.dial.is_none() => was_mine = true,
                Some(owner) if was_mine => return Some(owner.id.clone()),
                _ => {}
            }
        }
        None
    }

    fn ask_former(&self, link: &Link, key: &Arc<str>, now_ms: u64) -> Option<oneshot::Receiver<Outcome>> {
        let (answer, told) = oneshot::channel();
        let call = Call {
            op: Op::Former,
            group: self.index(),
            key: Arc::clone(key),
            deadline_ms: later(now_ms, PEEK),
            rank: 0,
            chain: Chain::EMPTY,
            reply: Arc::new(Acknowledged(Mutex::new(Some(answer)))),
        };
        link.send(call).ok().map(|()| told)
    }

    /// Lands a flight with what a former owner had; false = it is of no use, and the flight still runs.
    fn land_handed(&self, flight: &Flying<V>, hash: u64, value: &Encoded, changes: u32) -> bool {
        let Some(slot) = self.handed(hash, &value.bytes, value.age_ms, value.remaining_ms, changes) else {
            return false;
        };
        self.counters.peeked.up();
        let keep = || self.store.insert(flight.key(), Slot::clone(&slot));
        match self.flights.land(flight, Ok(Slot::clone(&slot)), keep) {
            Some(inserted) => self.stored(flight.key(), inserted, false),
            None => self.counters.passed_by_a_write.up(),
        }
        true
    }

    /// An entry of a value that was another node's; `None` when it cannot be used here.
    pub(super) fn handed(
        &self,
        hash: u64,
        bytes: &Bytes,
        age_ms: u64,
        remaining_ms: Option<u64>,
        changes: u32,
    ) -> Option<Slot<V>> {
        if bytes.len() > self.shared.local.limits.max_value_bytes {
            return None;
        }
        let now_ms = self.shared.local.clock.read_ms();
        let times = self.times_of_handed(age_ms, remaining_ms, now_ms, hash, changes)?;
        // A copy: a slice would hold the whole frame alive for as long as the value is kept.
        let held = Held::<V>::handed(short::copied(bytes)).ok()?;
        Some(Slot::new(Entry::new(held, times)))
    }

    /// The value of an entry, with its age and what is left of its time, for the node that owns it now; `None` when it
    /// is not to be handed on.
    pub(super) fn to_hand_over(&self, slot: &Slot<V>, now_ms: u64) -> Option<(Bytes, u64, Option<u64>)> {
        let until_ms = self.handed_over_until(slot, now_ms)?;
        let remaining_ms = (until_ms != NEVER).then(|| until_ms - now_ms);
        Some((slot.payload.encoded()?.clone(), now_ms.saturating_sub(slot.loaded_at_ms), remaining_ms))
    }

    /// The end of what may be handed on, for the node that owns it now; `None` when it is not.
    pub(super) fn handed_over_until(&self, slot: &Slot<V>, now_ms: u64) -> Option<u64> {
        slot.payload.encoded()?;
        let until_ms = slot.fresh_at_its_owner_until_ms();
        // A write may have passed this node by.
        let is_doubtful = match self.shared.changes.since(slot.checked.load(Relaxed)) {
            Since::Nothing => false,
            Since::TooMuch => true,
            Since::Changes { cut_off_ms, .. } => cut_off_ms.is_some(),
        };
        let is_over = now_ms >= until_ms || slot.is_spent(now_ms) || self.flights.is_clearing();
        (!is_doubtful && !is_over).then_some(until_ms)
    }

    /// What the next owner of a key is told, who asks for it.
    pub(super) fn told_to_next_owner(&self, key: &str) -> Answer {
        if !self.shared.handover.is_on {
            return Answer::Unsupported;
        }
        let now_ms = self.shared.now_ms();
        let is_usable = !self.is_removed.load(Relaxed) && !self.shared.is_cut_off.load(Relaxed);
        let slot = self.store.peek(key).filter(|_| is_usable);
        match slot.and_then(|slot| self.to_hand_over(&slot, now_ms)) {
            Some((bytes, age_ms, remaining_ms)) => {
                self.counters.handed_over.up();
                self.counters.handed_over_bytes.add(bytes.len() as u64);
                Answer::Value(Encoded {
                    bytes,
                    age_ms,
                    remaining_ms,
                    borrow_ms: 0,
                    is_hot: false,
                    source: Source::Memory,
                })
            }
            None => {
                let referral = self.referral(self.place.hash(key.as_bytes()), now_ms).filter(|_| is_usable);
                referral.map_or(Answer::Declined(Decline::NotHeld), Answer::Referred)
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
