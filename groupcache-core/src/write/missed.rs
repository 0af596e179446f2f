//! Writes that a peer has not heard of: told as soon as it can be told again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{identity::PeerId, membership::stabilizer::DialId, runtime::sync::Mutex};

/// Keys that are remembered for one peer, and for all that are away together. What is more becomes "all of the group".
const MAX_KEYS: usize = 10_000;

/// Peers that have left the view and may come back with what they held; as many as a node may have.
const MAX_DEPARTED: usize = 2_000;

/// For so long a peer that has left may come back and hear what it has missed.
const DEPARTED: Duration = Duration::from_secs(3600);

/// What one peer has missed of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    Keys(BTreeSet<Arc<str>>),
    Everything,
}

/// What peers have missed.
#[derive(Debug, Default)]
pub(crate) struct MissedWrites(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Of peers that are named: in the view, or away.
    missed: BTreeMap<PeerId, Groups>,
    /// Who is in the view.
    here: BTreeSet<PeerId>,
    /// Peers that are known and not in the view.
    departed: BTreeMap<PeerId, AbsentPeer>,
    /// Listed targets where nobody has answered yet, and the first write that they miss: whoever is there may have been
    /// there for long.
    unidentified_targets: BTreeMap<DialId, u64>,
    passed: WriteLog,
}

/// What a peer has missed, by group.
pub(crate) type Groups = BTreeMap<Arc<str>, Missed>;

#[derive(Debug)]
struct AbsentPeer {
    since_ms: u64,
    /// The first write that it has missed.
    from: u64,
}

/// Writes, in their order and with numbers, while anybody is away; kept once for all of them.
#[derive(Debug, Default)]
struct WriteLog {
    first: u64,
    /// Groups and keys; no key = all.
    writes: VecDeque<(Arc<str>, Option<Arc<str>>)>,
    /// Of each group the number after the last write that there was no room for.
    forgotten: BTreeMap<Arc<str>, u64>,
}

impl WriteLog {
    fn next(&self) -> u64 {
        self.first + self.writes.len() as u64
    }

    fn add(&mut self, group: &Arc<str>, key: Option<&Arc<str>>) {
        if self.writes.len() >= MAX_KEYS
            && let Some((group, _)) = self.writes.pop_front()
        {
            self.first += 1;
            self.forgotten.insert(group, self.first);
        }
        self.writes.push_back((Arc::clone(group), key.cloned()));
    }

    /// What was written from this number on.
    fn since(&self, from: u64) -> impl Iterator<Item = (&Arc<str>, Option<&Arc<str>>)> {
        let forgotten = self.forgotten.iter().filter(move |(_, until)| from < **until).map(|(group, _)| (group, None));
        let kept = self.writes.iter().skip(usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX));
        forgotten.chain(kept.map(|(group, key)| (group, key.as_ref())))
    }

    /// Lets go of what nobody has missed.
    fn trim(&mut self, oldest: u64) {
        while self.first < oldest && self.writes.pop_front().is_some() {
            self.first += 1;
        }
        self.forgotten.retain(|_, until| oldest < *until);
    }
}

fn add(groups: &mut Groups, group: &Arc<str>, key: Option<&Arc<str>>) {
    let keys = |missed: &Missed| if let Missed::Keys(keys) = missed { keys.len() } else { 0 };
    let is_full = groups.values().map(keys).sum::<usize>() >= MAX_KEYS;
    match (groups.entry(Arc::clone(group)).or_insert_with(|| Missed::Keys(BTreeSet::new())), key) {
        (Missed::Keys(keys), Some(key)) if !is_full || keys.contains(key) => drop(keys.insert(Arc::clone(key))),
        (missed, _) => *missed = Missed::Everything,
    }
}

impl State {
    /// All that was written from this number on, this peer has missed.
    fn has_missed_since(&mut self, peer: &PeerId, from: u64) {
        for (group, key) in self.passed.since(from) {
            add(self.missed.entry(peer.clone()).or_default(), group, key);
        }
    }

    fn is_away(&mut self, peer: &PeerId, away: AbsentPeer) {
        if self.departed.len() < MAX_DEPARTED {
            self.departed.insert(peer.clone(), away);
        }
    }

    fn trim(&mut self) {
        let away = self.departed.values().map(|away| away.from);
        let oldest = away.chain(self.unidentified_targets.values().copied()).min().unwrap_or(u64::MAX);
        self.passed.trim(oldest);
    }
}

impl MissedWrites {
    /// This peer has not heard that a key of a group has changed; `None` = that all have.
    pub(crate) fn missed(&self, peer: &PeerId, group: &Arc<str>, key: Option<&Arc<str>>) {
        add(self.0.lock().missed.entry(peer.clone()).or_default(), group, key);
    }

    /// A key of a group has changed, or all have: those that are away do not hear of it.
    ///
    /// Those of the writer's view, in the order of their ids, are told by the writer. Returns who is not in it, and in the
    /// view that the node has now: the writer took its own before.
    pub(crate) fn record_write<'a>(
        &self,
        group: &Arc<str>,
        key: Option<&Arc<str>>,
        told: impl Iterator<Item = &'a PeerId> + Clone,
    ) -> Vec<PeerId> {
        let mut state = self.0.lock();
        if !state.departed.is_empty() || !state.unidentified_targets.is_empty() {
            state.passed.add(group, key);
        }
        if state.here.iter().eq(told.clone()) {
            return Vec::new();
        }
        let told: BTreeSet<_> = told.collect();
        let others: Vec<_> = state.here.iter().filter(|peer| !told.contains(peer)).cloned().collect();
        for peer in &others {
            add(state.missed.entry(peer.clone()).or_default(), group, key);
        }
        others
    }

    /// There is another view: who is in it now, and who no longer is.
    pub(crate) fn view_changed<'a>(&self, gone: impl Iterator<Item = &'a PeerId>, here: BTreeSet<PeerId>, now_ms: u64) {
        let mut state = self.0.lock();
        let from = state.passed.next();
        for peer in gone {
            state.is_away(peer, AbsentPeer { since_ms: now_ms, from });
        }
        for peer in &here {
            if let Some(away) = state.departed.remove(peer) {
                state.has_missed_since(peer, away.from);
            }
        }
        let State { missed, departed, .. } = &mut *state;
        departed.retain(|_, away| now_ms.saturating_sub(away.since_ms) < DEPARTED.as_millis() as u64);
        missed.retain(|peer, _| here.contains(peer) || departed.contains_key(peer));
        state.here = here;
        state.trim();
    }

    /// A target is dialled for the first time.
    pub(crate) fn dialled(&self, dial: DialId) {
        let mut state = self.0.lock();
        let from = state.passed.next();
        state.unidentified_targets.insert(dial, from);
    }

    /// This peer has answered there. Until it is in the view it misses what is written.
    pub(crate) fn peer_identified(&self, dial: DialId, peer: &PeerId, now_ms: u64) {
        let mut state = self.0.lock();
        let from = state.unidentified_targets.remove(&dial).filter(|_| !state.here.contains(peer));
        let from = state.departed.get(peer).map_or(from, |away| Some(away.from));
        if let Some(from) = from {
            state.has_missed_since(peer, from);
            let from = state.passed.next();
            state.is_away(peer, AbsentPeer { since_ms: now_ms, from });
        }
        state.trim();
    }

    /// A target is dialled no more, where this peer was expected, or anybody.
    pub(crate) fn target_dropped(&self, dial: DialId, expected: Option<&PeerId>, now_ms: u64) {
        let mut state = self.0.lock();
        if let Some(from) = state.unidentified_targets.remove(&dial)
            && let Some(peer) = expected.filter(|peer| !state.here.contains(*peer))
            && !state.departed.contains_key(peer)
        {
            state.is_away(peer, AbsentPeer { since_ms: now_ms, from });
        }
        state.trim();
    }

    /// Targets where nobody has answered yet.
    pub(crate) fn unidentified_targets(&self) -> Vec<DialId> {
        self.0.lock().unidentified_targets.keys().copied().collect()
    }

    /// Whether a peer has missed anything of the groups that are here: of others it cannot be told.
    pub(crate) fn has_missed(&self, peer: &PeerId, is_here: impl Fn(&str) -> bool) -> bool {
        self.0.lock().missed.get(peer).is_some_and(|groups| groups.keys().any(|group| is_here(group)))
    }

    /// Takes out what this peer has missed of the groups that are here; who cannot tell it puts it back.
    pub(crate) fn take(&self, peer: &PeerId, is_here: impl Fn(&str) -> bool) -> Groups {
        let mut state = self.0.lock();
        let (taken, left) = state.missed.remove(peer).into_iter().flatten().partition(|(group, _)| is_here(group));
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

    #[test]
    fn what_is_too_much_to_remember_becomes_everything_of_its_group() {
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

    /// A write by who has the view that the node has now.
    fn record_write(missed_writes: &MissedWrites, group: &Arc<str>, key: Option<&Arc<str>>) {
        let here = missed_writes.0.lock().here.clone();
        assert!(missed_writes.record_write(group, key, here.iter()).is_empty());
    }

    fn here(names: &[&str]) -> BTreeSet<PeerId> {
        names.iter().map(|name| id(name)).collect()
    }

    fn keys(keys: &[&str]) -> Missed {
        Missed::Keys(keys.iter().map(|key| Arc::from(*key)).collect())
    }

    #[test]
    fn who_has_left_misses_each_key_that_is_written_until_it_is_back_or_is_given_up() {
        let missed_writes = MissedWrites::default();
        let users: Arc<str> = "users".into();
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.view_changed([id("a"), id("b")].iter(), here(&["c"]), 0);
        record_write(&missed_writes, &users, Some(&"2".into()));
        missed_writes.peer_identified(DialId(7), &id("a"), 500);
        assert_eq!(missed_writes.take(&id("a"), |_| true), [(Arc::clone(&users), keys(&["2"]))].into());
        record_write(&missed_writes, &users, Some(&"3".into()));
        missed_writes.view_changed([].iter(), here(&["a", "c"]), 1000);
        assert_eq!(
            missed_writes.take(&id("a"), |_| true),
            [(Arc::clone(&users), keys(&["3"]))].into(),
            "before it was in the view"
        );
        record_write(&missed_writes, &users, None);
        missed_writes.view_changed([].iter(), here(&["a", "c"]), 3_600_000);
        missed_writes.view_changed([].iter(), here(&["a", "b", "c"]), 3_600_001);
        assert!(
            !missed_writes.has_missed(&id("a"), |_| true) && !missed_writes.has_missed(&id("b"), |_| true),
            "one was told, one forgotten"
        );
    }

    #[test]
    fn who_has_never_answered_misses_what_is_written_since_it_was_listed() {
        let missed_writes = MissedWrites::default();
        let (users, orders): (Arc<str>, Arc<str>) = ("users".into(), "orders".into());
        missed_writes.view_changed([].iter(), here(&["me"]), 0);
        missed_writes.dialled(DialId(1));
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.dialled(DialId(2));
        missed_writes.dialled(DialId(3));
        record_write(&missed_writes, &orders, None);
        assert_eq!(missed_writes.unidentified_targets(), [DialId(1), DialId(2), DialId(3)]);
        missed_writes.peer_identified(DialId(1), &id("a"), 10);
        missed_writes.peer_identified(DialId(2), &id("b"), 10);
        missed_writes.peer_identified(DialId(3), &id("me"), 10); // a hint that was ourselves
        let all = (Arc::clone(&orders), Missed::Everything);
        assert_eq!(missed_writes.take(&id("a"), |_| true), [(Arc::clone(&users), keys(&["1"])), all.clone()].into());
        assert_eq!(missed_writes.take(&id("b"), |_| true), [all].into());
        assert!(!missed_writes.has_missed(&id("me"), |_| true) && missed_writes.unidentified_targets().is_empty());
    }

    #[test]
    fn who_comes_or_leaves_while_a_write_is_under_way_misses_it_and_is_named() {
        let (missed_writes, users): (_, Arc<str>) = (MissedWrites::default(), "users".into());
        missed_writes.view_changed([].iter(), here(&["a", "b", "me"]), 0);
        missed_writes.view_changed([id("b")].iter(), here(&["a", "me"]), 0);
        let before = here(&["a", "me"]);
        // The owner takes its time; meanwhile b is back.
        missed_writes.view_changed([].iter(), here(&["a", "b", "me"]), 0);
        assert!(!missed_writes.has_missed(&id("b"), |_| true), "nothing was written while it was away");
        assert_eq!(missed_writes.record_write(&users, Some(&"1".into()), before.iter()), [id("b")]);
        assert_eq!(missed_writes.take(&id("b"), |_| true), [(Arc::clone(&users), keys(&["1"]))].into());
        // And the other way round: the writer has the view without b, which the node is about to install.
        assert_eq!(missed_writes.record_write(&users, Some(&"2".into()), before.iter()), [id("b")]);
        missed_writes.view_changed([id("b")].iter(), here(&["a", "me"]), 0);
        missed_writes.view_changed([].iter(), here(&["a", "b", "me"]), 0);
        assert_eq!(missed_writes.take(&id("b"), |_| true), [(users, keys(&["2"]))].into());
    }

    #[test]
    fn who_was_expected_where_nobody_answered_is_told_elsewhere() {
        let (missed_writes, users) = (MissedWrites::default(), Arc::from("users"));
        missed_writes.dialled(DialId(1));
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.target_dropped(DialId(1), Some(&id("a")), 0);
        missed_writes.dialled(DialId(2));
        missed_writes.peer_identified(DialId(2), &id("a"), 10);
        assert_eq!(missed_writes.take(&id("a"), |_| true), [(users, keys(&["1"]))].into());
    }

    #[test]
    fn what_is_too_much_to_remember_for_those_who_are_away_becomes_everything_of_its_group() {
        let missed_writes = MissedWrites::default();
        let [users, orders, items]: [Arc<str>; 3] = ["users".into(), "orders".into(), "items".into()];
        missed_writes.dialled(DialId(1));
        record_write(&missed_writes, &users, Some(&"1".into()));
        missed_writes.dialled(DialId(2));
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
