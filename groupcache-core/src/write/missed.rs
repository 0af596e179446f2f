//! Missed writes: the writes that a peer has not received, recorded until they can be replayed to the peer.
//!
//! Members that do not acknowledge a write, and peers that are not in the view, miss writes. For known peers outside
//! the view, and for targets that have not answered yet, the writes are kept once for all of them in a `WriteLog`. When
//! there are too many keys, the record of a group becomes [`Missed::Everything`], so that a replay drops too many
//! values instead of too few. A peer that is absent for an hour is forgotten. `node/replay.rs` delivers the missed
//! writes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{identity::PeerId, membership::stabilizer::DialId, runtime::sync::Mutex};

/// Maximum number of keys that are recorded for one peer, and maximum number of writes in the log. With more, the
/// record of a group becomes [`Missed::Everything`].
const MAX_KEYS: usize = 10_000;

/// Maximum number of absent peers, which may return with the values that they held: as many as a node may have peers.
const MAX_ABSENT: usize = 2_000;

/// Time for which the missed writes of an absent peer are recorded.
const ABSENT_LIMIT: Duration = Duration::from_secs(3600);

/// The missed writes of one peer in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    Keys(BTreeSet<Arc<str>>),
    Everything,
}

/// The record of missed writes of a node.
#[derive(Debug, Default)]
pub(crate) struct MissedWrites(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Missed writes by peer: members, and absent peers.
    missed: BTreeMap<PeerId, Groups>,
    /// Members of the view.
    members: BTreeSet<PeerId>,
    /// Known peers that are not in the view.
    absent: BTreeMap<PeerId, AbsentPeer>,
    /// Listed targets that have not answered yet. A peer may have been running at such a target for a long time.
    unidentified_targets: BTreeMap<DialId, UnidentifiedTarget>,
    log: WriteLog,
}

/// The missed writes of one peer, by group.
pub(crate) type Groups = BTreeMap<Arc<str>, Missed>;

/// A listed target that has not answered yet.
#[derive(Debug)]
struct UnidentifiedTarget {
    expected: Option<PeerId>,
    /// Number of the first write that the peer at the target misses.
    from: u64,
}

/// A known peer that is not in the view.
#[derive(Debug)]
struct AbsentPeer {
    /// Coarse time since which the peer is absent.
    since_ms: u64,
    /// Number of the first write that the peer has missed.
    from: u64,
    /// Whether the peer has ever answered.
    was_met: bool,
}

/// The numbered writes since the first one that an absent peer or an unidentified target has missed.
#[derive(Debug, Default)]
struct WriteLog {
    /// Number of the first write in `writes`.
    first: u64,
    /// Groups and keys; no key for a write of all keys.
    writes: VecDeque<(Arc<str>, Option<Arc<str>>)>,
    /// By group, the number after the last write that was removed for want of room.
    forgotten: BTreeMap<Arc<str>, u64>,
}

impl WriteLog {
    /// Returns the number of the next write.
    fn next(&self) -> u64 {
        self.first + self.writes.len() as u64
    }

    /// Adds a write, in the place of the oldest one if there is no room.
    fn add(&mut self, group: &Arc<str>, key: Option<&Arc<str>>) {
        if self.writes.len() >= MAX_KEYS
            && let Some((group, _)) = self.writes.pop_front()
        {
            self.first += 1;
            self.forgotten.insert(group, self.first);
        }
        self.writes.push_back((Arc::clone(group), key.cloned()));
    }

    /// Returns the writes from this number on. A group with removed writes is returned without a key.
    fn since(&self, from: u64) -> impl Iterator<Item = (&Arc<str>, Option<&Arc<str>>)> {
        let forgotten = self.forgotten.iter().filter(move |(_, until)| from < **until).map(|(group, _)| (group, None));
        let kept = self.writes.iter().skip(usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX));
        forgotten.chain(kept.map(|(group, key)| (group, key.as_ref())))
    }

    /// Removes the writes before `oldest`, which no peer has missed.
    fn trim(&mut self, oldest: u64) {
        while self.first < oldest && self.writes.pop_front().is_some() {
            self.first += 1;
        }
        self.forgotten.retain(|_, until| oldest < *until);
    }
}

/// Adds a write to the missed writes of a peer; no key for a write of all keys.
fn add(groups: &mut Groups, group: &Arc<str>, key: Option<&Arc<str>>) {
    let keys = |missed: &Missed| if let Missed::Keys(keys) = missed { keys.len() } else { 0 };
    let is_full = groups.values().map(keys).sum::<usize>() >= MAX_KEYS;
    match (groups.entry(Arc::clone(group)).or_insert_with(|| Missed::Keys(BTreeSet::new())), key) {
        (Missed::Keys(keys), Some(key)) if !is_full || keys.contains(key) => drop(keys.insert(Arc::clone(key))),
        (missed, _) => *missed = Missed::Everything,
    }
}

impl State {
    /// Records for a peer that it has missed all writes from this number on.
    fn add_missed_since(&mut self, peer: &PeerId, from: u64) {
        for (group, key) in self.log.since(from) {
            add(self.missed.entry(peer.clone()).or_default(), group, key);
        }
    }

    /// Records that a peer is absent, if there is room.
    fn add_absent(&mut self, peer: &PeerId, absent: AbsentPeer) {
        if self.absent.len() >= MAX_ABSENT && absent.was_met {
            // A target that never answered may be an invention.
            let unmet = self.absent.iter().find(|(_, absent)| !absent.was_met).map(|(peer, _)| peer.clone());
            unmet.map(|peer| self.absent.remove(&peer));
        }
        if self.absent.len() < MAX_ABSENT {
            self.absent.insert(peer.clone(), absent);
        }
    }

    /// Removes the writes of the log that no peer has missed.
    fn trim(&mut self) {
        let absent = self.absent.values().map(|peer| peer.from);
        let oldest =
            absent.chain(self.unidentified_targets.values().map(|target| target.from)).min().unwrap_or(u64::MAX);
        self.log.trim(oldest);
    }
}

impl MissedWrites {
    /// Records that a peer has missed a write of this key, or a write of all keys if `key` is `None`.
    pub(crate) fn missed(&self, peer: &PeerId, group: &Arc<str>, key: Option<&Arc<str>>) {
        add(self.0.lock().missed.entry(peer.clone()).or_default(), group, key);
    }

    /// Records a write of this key, or of all keys, for the absent peers and the unidentified targets.
    ///
    /// `notified` are the members of the writer's view, in the order of their ids, which the writer notifies itself.
    /// Returns the other peers that may hold the old value: members of the current view that are not among them, because
    /// the writer has taken its view earlier, and known peers outside of the view that are dialled. A target that never
    /// answered is no peer. The write is recorded as missed for the members, too.
    pub(crate) fn record_write<'a>(
        &self,
        group: &Arc<str>,
        key: Option<&Arc<str>>,
        notified: impl Iterator<Item = &'a PeerId> + Clone,
    ) -> Vec<PeerId> {
        let mut state = self.0.lock();
        if !state.absent.is_empty() || !state.unidentified_targets.is_empty() {
            state.log.add(group, key);
        }
        let dialled = state.unidentified_targets.values().filter_map(|target| target.expected.as_ref());
        let was_met = |peer: &&PeerId| state.absent.get(*peer).is_some_and(|absent| absent.was_met);
        let dialled: Vec<_> = dialled.filter(was_met).cloned().collect();
        if state.members.iter().eq(notified.clone()) {
            return dialled;
        }
        let notified: BTreeSet<_> = notified.collect();
        let others: Vec<_> = state.members.iter().filter(|peer| !notified.contains(peer)).cloned().collect();
        for peer in &others {
            add(state.missed.entry(peer.clone()).or_default(), group, key);
        }
        others.into_iter().chain(dialled).collect()
    }

    /// Records another view, with the members that it lost and the members that it has.
    pub(crate) fn view_changed<'a>(
        &self,
        gone: impl Iterator<Item = &'a PeerId>,
        members: BTreeSet<PeerId>,
        now_ms: u64,
    ) {
        let mut state = self.0.lock();
        let from = state.log.next();
        for peer in gone {
            state.add_absent(peer, AbsentPeer { since_ms: now_ms, from, was_met: true });
        }
        for peer in &members {
            if let Some(absent) = state.absent.remove(peer) {
                state.add_missed_since(peer, absent.from);
            }
        }
        let State { missed, absent, .. } = &mut *state;
        absent.retain(|_, peer| now_ms.saturating_sub(peer.since_ms) < ABSENT_LIMIT.as_millis() as u64);
        missed.retain(|peer, _| members.contains(peer) || absent.contains_key(peer));
        state.members = members;
        state.trim();
    }

    /// Records that a target is dialled for the first time. From here on the target misses writes.
    pub(crate) fn dialled(&self, dial: DialId, expected: Option<&PeerId>) {
        let mut state = self.0.lock();
        let from = state.log.next();
        state.unidentified_targets.insert(dial, UnidentifiedTarget { expected: expected.cloned(), from });
    }

    /// Records that a target is this peer. A peer that is not a member has missed the writes since the first dial, and
    /// misses further writes until it is in the view.
    pub(crate) fn peer_identified(&self, dial: DialId, peer: &PeerId, now_ms: u64) {
        let mut state = self.0.lock();
        let target = state.unidentified_targets.remove(&dial).filter(|_| !state.members.contains(peer));
        let from = target.map(|target| target.from);
        let from = state.absent.get(peer).map_or(from, |absent| Some(absent.from));
        if let Some(from) = from {
            state.add_missed_since(peer, from);
            let from = state.log.next();
            state.add_absent(peer, AbsentPeer { since_ms: now_ms, from, was_met: true });
        }
        state.trim();
    }

    /// Records that a target is not dialled any more. The expected peer, if it is not a member, becomes absent.
    pub(crate) fn target_dropped(&self, dial: DialId, expected: Option<&PeerId>, now_ms: u64) {
        let mut state = self.0.lock();
        if let Some(UnidentifiedTarget { from, .. }) = state.unidentified_targets.remove(&dial)
            && let Some(peer) = expected.filter(|peer| !state.members.contains(*peer))
            && !state.absent.contains_key(peer)
        {
            state.add_absent(peer, AbsentPeer { since_ms: now_ms, from, was_met: false });
        }
        state.trim();
    }

    /// Returns whether a peer has missed a write of a group that this node has. Writes of other groups cannot be
    /// replayed.
    pub(crate) fn has_missed(&self, peer: &PeerId, is_known: impl Fn(&str) -> bool) -> bool {
        self.0.lock().missed.get(peer).is_some_and(|groups| groups.keys().any(|group| is_known(group)))
    }

    /// Takes out the missed writes of a peer in the groups that this node has. The caller records a write again that it
    /// cannot deliver.
    pub(crate) fn take(&self, peer: &PeerId, is_known: impl Fn(&str) -> bool) -> Groups {
        let mut state = self.0.lock();
        let (taken, left) = state.missed.remove(peer).into_iter().flatten().partition(|(group, _)| is_known(group));
        let left: Groups = left;
        if !left.is_empty() {
            state.missed.insert(peer.clone(), left);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> PeerId {
        PeerId::new(name).unwrap()
    }

    /// Checks that the missed keys of a group become everything when a peer has missed too many keys.
    #[test]
    fn too_many_missed_keys_become_everything_of_their_group() {
        let (missed_writes, peer) = (MissedWrites::default(), id("a"));
        let [users, orders]: [Arc<str>; 2] = ["users".into(), "orders".into()];
        for n in 0..MAX_KEYS {
            missed_writes.missed(&peer, &users, Some(&format!("key-{n}").into()));
            missed_writes.missed(&peer, &users, Some(&"key-1".into()));
        }
        let missed = missed_writes.take(&peer, |_| true);
        assert!(matches!(&missed[&users], Missed::Keys(keys) if keys.len() == MAX_KEYS));
        assert!(missed_writes.take(&peer, |_| true).is_empty());

        for n in 0..=MAX_KEYS {
            missed_writes.missed(&peer, &users, Some(&format!("key-{n}").into()));
        }
        missed_writes.missed(&peer, &orders, Some(&"key-1".into()));
        missed_writes.missed(&peer, &users, Some(&"key-1".into()));
        let missed = missed_writes.take(&peer, |_| true);
        assert_eq!(missed[&users], Missed::Everything);
        assert!(matches!(&missed[&orders], Missed::Keys(keys) if keys.len() == 1), "there is room again");
    }

    /// Records a write of a writer that has the current view.
    fn record_write(missed_writes: &MissedWrites, group: &Arc<str>, key: Option<&Arc<str>>) {
        let members = missed_writes.0.lock().members.clone();
        assert!(missed_writes.record_write(group, key, members.iter()).is_empty());
    }

    fn members(names: &[&str]) -> BTreeSet<PeerId> {
        names.iter().map(|name| id(name)).collect()
    }

    fn keys(keys: &[&str]) -> Missed {
        Missed::Keys(keys.iter().map(|key| Arc::from(*key)).collect())
    }

    /// Checks that a peer that has left the view misses all writes until it is a member again, for an hour at most.
    #[test]
    fn absent_peer_misses_writes_until_it_is_a_member_again() {
        let missed_writes = MissedWrites::default();
        let users: Arc<str> = "users".into();
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.view_changed([id("a"), id("b")].iter(), members(&["c"]), 0);
        record_write(&missed_writes, &users, Some(&"2".into()));
        missed_writes.peer_identified(DialId(7), &id("a"), 500);
        assert_eq!(missed_writes.take(&id("a"), |_| true), [(Arc::clone(&users), keys(&["2"]))].into());
        record_write(&missed_writes, &users, Some(&"3".into()));
        missed_writes.view_changed([].iter(), members(&["a", "c"]), 1000);
        assert_eq!(
            missed_writes.take(&id("a"), |_| true),
            [(Arc::clone(&users), keys(&["3"]))].into(),
            "missed before the peer is in the view"
        );
        record_write(&missed_writes, &users, None);
        missed_writes.view_changed([].iter(), members(&["a", "c"]), 3_600_000);
        missed_writes.view_changed([].iter(), members(&["a", "b", "c"]), 3_600_001);
        assert!(
            !missed_writes.has_missed(&id("a"), |_| true) && !missed_writes.has_missed(&id("b"), |_| true),
            "node a was notified, and node b was forgotten"
        );
    }

    /// Checks that a target that has not answered yet misses the writes since its first dial.
    #[test]
    fn unidentified_target_misses_writes_since_its_first_dial() {
        let missed_writes = MissedWrites::default();
        let (users, orders): (Arc<str>, Arc<str>) = ("users".into(), "orders".into());
        missed_writes.view_changed([].iter(), members(&["me"]), 0);
        missed_writes.dialled(DialId(1), None);
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.dialled(DialId(2), None);
        missed_writes.dialled(DialId(3), None);
        record_write(&missed_writes, &orders, None);
        missed_writes.peer_identified(DialId(1), &id("a"), 10);
        missed_writes.peer_identified(DialId(2), &id("b"), 10);
        missed_writes.peer_identified(DialId(3), &id("me"), 10); // the target is the local node
        let all = (Arc::clone(&orders), Missed::Everything);
        assert_eq!(missed_writes.take(&id("a"), |_| true), [(Arc::clone(&users), keys(&["1"])), all.clone()].into());
        assert_eq!(missed_writes.take(&id("b"), |_| true), [all].into());
        assert!(!missed_writes.has_missed(&id("me"), |_| true));
    }

    /// Checks that a target that never answered is pending in no write, although it is listed again, and that a peer that
    /// answered is.
    #[test]
    fn only_peers_that_answered_are_pending() {
        let (missed_writes, users): (_, Arc<str>) = (MissedWrites::default(), "users".into());
        missed_writes.view_changed([].iter(), members(&["me", "met"]), 0);
        missed_writes.view_changed([id("met")].iter(), members(&["me"]), 0);
        missed_writes.dialled(DialId(1), Some(&id("unmet")));
        missed_writes.target_dropped(DialId(1), Some(&id("unmet")), 0);
        missed_writes.dialled(DialId(2), Some(&id("unmet")));
        missed_writes.dialled(DialId(3), Some(&id("met")));
        let me = members(&["me"]);
        assert_eq!(missed_writes.record_write(&users, None, me.iter()), [id("met")]);
    }

    /// Checks that a peer that joins or leaves during a write misses the write, and is returned as pending.
    #[test]
    fn peer_that_joins_or_leaves_during_a_write_is_pending() {
        let (missed_writes, users): (_, Arc<str>) = (MissedWrites::default(), "users".into());
        missed_writes.view_changed([].iter(), members(&["a", "b", "me"]), 0);
        missed_writes.view_changed([id("b")].iter(), members(&["a", "me"]), 0);
        let before = members(&["a", "me"]);
        // While the owner applies the write, node b returns.
        missed_writes.view_changed([].iter(), members(&["a", "b", "me"]), 0);
        assert!(!missed_writes.has_missed(&id("b"), |_| true), "no write was made while node b was absent");
        assert_eq!(missed_writes.record_write(&users, Some(&"1".into()), before.iter()), [id("b")]);
        assert_eq!(missed_writes.take(&id("b"), |_| true), [(Arc::clone(&users), keys(&["1"]))].into());
        // In the other order, the writer has the view without node b, and the node has not installed it yet.
        assert_eq!(missed_writes.record_write(&users, Some(&"2".into()), before.iter()), [id("b")]);
        missed_writes.view_changed([id("b")].iter(), members(&["a", "me"]), 0);
        missed_writes.view_changed([].iter(), members(&["a", "b", "me"]), 0);
        assert_eq!(missed_writes.take(&id("b"), |_| true), [(users, keys(&["2"]))].into());
    }

    /// Checks that the peer that was expected at a dropped target receives its missed writes at another target.
    #[test]
    fn expected_peer_of_a_dropped_target_keeps_missed_writes() {
        let (missed_writes, users) = (MissedWrites::default(), Arc::from("users"));
        missed_writes.dialled(DialId(1), None);
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.target_dropped(DialId(1), Some(&id("a")), 0);
        missed_writes.dialled(DialId(2), None);
        missed_writes.peer_identified(DialId(2), &id("a"), 10);
        assert_eq!(missed_writes.take(&id("a"), |_| true), [(users, keys(&["1"]))].into());
    }

    /// Checks that a write that leaves the full log becomes everything of its group, for the targets that have missed
    /// it.
    #[test]
    fn write_removed_from_full_log_becomes_everything() {
        let missed_writes = MissedWrites::default();
        let [users, orders, items]: [Arc<str>; 3] = ["users".into(), "orders".into(), "items".into()];
        missed_writes.dialled(DialId(1), None);
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.dialled(DialId(2), None);
        record_write(&missed_writes, &items, Some(&"1".into()));
        for n in 1..MAX_KEYS {
            record_write(&missed_writes, &orders, Some(&format!("key-{}", n % 10).into()));
        }
        missed_writes.peer_identified(DialId(1), &id("a"), 0);
        missed_writes.peer_identified(DialId(2), &id("b"), 0);
        let (a, b) = (missed_writes.take(&id("a"), |_| true), missed_writes.take(&id("b"), |_| true));
        assert_eq!((a[&users].clone(), a[&items].clone()), (Missed::Everything, keys(&["1"])));
        assert_eq!((b.get(&users), b[&items].clone()), (None, keys(&["1"])));
        assert!(matches!(&b[&orders], Missed::Keys(keys) if keys.len() == 10));
    }
}
