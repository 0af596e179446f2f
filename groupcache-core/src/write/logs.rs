//! Logs of all writers that this node has heard of.
//!
//! Entries that fall off become an entry of all keys of their group, so that a node that asks for them drops too many
//! values instead of too few. The [`index`](super::index) answers which writes of a key this node has heard of.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    identity::Instance,
    protocol::{
        message::{LogEntry, LogPart, Position, WriteName},
        wire::entry_bytes,
    },
    write::{
        index::{Index, KeyHash, Positions, add, key_hash, remove},
        log::{Entry, Log},
    },
};

/// Maximum number of entries of the own log, and of all other logs together.
const MAX_ENTRIES: usize = 10_000;

/// Time for which an entry is kept.
pub(crate) const KEPT: Duration = Duration::from_secs(3600);

/// Maximum number of logs. Beyond it the log of the writer that was not heard for the longest time is forgotten.
const MAX_LOGS: usize = 4_000;

/// Maximum number of positions that are shown at once, so that a frame stays small.
const SHOWN_AT_ONCE: usize = 2_000;

/// Maximum bytes of entries in one answer, so that later messages on the connection do not wait long.
const PART_BYTES: usize = 192 << 10;

/// Entry that was heard by its name only, as an entry after a gap of which the rest is not known.
#[derive(Debug)]
struct Remembered {
    group: Arc<str>,
    hash: KeyHash,
    name: WriteName,
    heard_ms: u64,
}

/// The logs.
#[derive(Debug)]
pub(crate) struct Logs {
    own: Instance,
    logs: BTreeMap<Instance, Log>,
    /// Names of the heard writes.
    pub(crate) index: Index,
    /// Writers of the kept entries of single keys, in the order in which they were heard: the own ones, and others.
    own_order: VecDeque<(u64, Instance)>,
    order: VecDeque<(u64, Instance)>,
    named: VecDeque<Remembered>,
    /// Remembered writes after which the value of the key was dropped.
    dropped: BTreeMap<KeyHash, Vec<WriteName>>,
    /// Positions in the logs that are forgotten. A node that still shows such a log has nothing that this node lacks.
    past: BTreeMap<Instance, u64>,
    /// Changes of positions.
    changes: u64,
}

impl Logs {
    pub(crate) fn new(own: Instance) -> Self {
        Self {
            logs: BTreeMap::from([(own.clone(), Log::default())]),
            own,
            index: Index::default(),
            own_order: VecDeque::new(),
            order: VecDeque::new(),
            named: VecDeque::new(),
            dropped: BTreeMap::new(),
            past: BTreeMap::new(),
            changes: 0,
        }
    }

    /// Returns the number of changes of positions so far.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn position(&self, writer: &Instance) -> u64 {
        let past = || self.past.get(writer).copied().unwrap_or(0);
        self.logs.get(writer).map_or_else(past, Log::position)
    }

    pub(crate) fn own_position(&self) -> u64 {
        self.position(&self.own)
    }

    /// Returns whether an entry need not be applied.
    pub(crate) fn is_applied(&self, writer: &Instance, entry: &Entry) -> bool {
        let is_past = || entry.number <= self.position(writer);
        self.logs.get(writer).map_or_else(is_past, |log| log.is_applied(entry))
    }

    /// Returns whether an entry is applied.
    fn has(&self, writer: &Instance, number: u64) -> bool {
        self.logs.get(writer).map_or_else(|| number <= self.position(writer), |log| log.has(number))
    }

    pub(crate) fn has_gap(&self, writer: &Instance) -> bool {
        self.logs.get(writer).is_some_and(Log::has_gap)
    }

    /// Appends a write, which this node has applied, to the own log. Returns its number.
    pub(crate) fn append(&mut self, group: &Arc<str>, key: Option<&Arc<str>>, now_ms: u64) -> u64 {
        let (own, number) = (self.own.clone(), self.own_position() + 1);
        let entry = Entry { number, group: Arc::clone(group), key: key.cloned(), written_ms: now_ms };
        self.announce(&own, &entry, now_ms);
        self.commit(&own, entry, now_ms);
        number
    }

    /// Adds an entry to the index, before the value is dropped: from here on the entry is named to other nodes.
    pub(crate) fn announce(&mut self, writer: &Instance, entry: &Entry, now_ms: u64) {
        self.heard_of(writer, entry.number, now_ms);
        match &entry.key {
            Some(key) => {
                let hash = key_hash(&entry.group, key);
                self.index.add(hash, WriteName { writer: writer.clone(), number: entry.number });
            }
            None => self.index.add_of_group(writer, &entry.group, entry.number),
        }
    }

    /// Records an entry after it was applied. The position moves only here.
    pub(crate) fn commit(&mut self, writer: &Instance, entry: Entry, now_ms: u64) {
        let (is_own, is_of_key, written_ms) = (*writer == self.own, entry.key.is_some(), entry.written_ms);
        let log = self.log_of(writer, now_ms);
        if log.is_applied(&entry) {
            return;
        }
        let has_moved = log.record(entry);
        if has_moved {
            self.moved(writer);
        }
        if is_of_key {
            let order = if is_own { &mut self.own_order } else { &mut self.order };
            order.push_back((written_ms, writer.clone()));
            if order.len() > MAX_ENTRIES {
                self.forget_first(is_own);
            }
        }
    }

    /// Records that this node has heard of an entry.
    fn heard_of(&mut self, writer: &Instance, number: u64, now_ms: u64) {
        let log = self.log_of(writer, now_ms);
        log.announced = log.announced.max(number);
    }

    fn log_of(&mut self, writer: &Instance, now_ms: u64) -> &mut Log {
        if self.logs.len() >= MAX_LOGS && !self.logs.contains_key(writer) {
            let others = self.logs.iter().filter(|(other, _)| **other != self.own);
            let oldest = others.min_by_key(|(_, log)| log.heard_ms).map(|(other, _)| other.clone());
            oldest.iter().for_each(|oldest| self.forget_log(oldest));
        }
        let past = self.past.remove(writer);
        let log = self.logs.entry(writer.clone()).or_default();
        if let Some(past) = past {
            // The entries up to it are lost here, so that they are not passed on.
            log.begin_at(past);
        }
        log.heard_ms = now_ms;
        log
    }

    fn moved(&mut self, writer: &Instance) {
        self.changes += 1;
        if let Some(log) = self.logs.get_mut(writer) {
            log.changed = self.changes;
        }
    }

    /// Records that every entry of a log up to `number` is applied.
    pub(crate) fn reach(&mut self, writer: &Instance, number: u64, now_ms: u64) {
        if self.log_of(writer, now_ms).reach(number) {
            self.moved(writer);
        }
    }

    /// Announces that a log is about to begin at `number`, which counts as a write of all keys of all groups.
    pub(crate) fn announce_base(&mut self, writer: &Instance, number: u64, now_ms: u64) {
        self.heard_of(writer, number, now_ms);
        self.index.add_base(writer, number);
    }

    /// Begins a log at `number`, after all values were dropped and all flights detached.
    pub(crate) fn begin_at(&mut self, writer: &Instance, number: u64, now_ms: u64) {
        if self.log_of(writer, now_ms).begin_at(number) {
            self.moved(writer);
        }
    }

    /// Adds the entries of a log from before its base. The base stays a write of all keys for this node.
    pub(crate) fn fill(&mut self, part: &LogPart, after: u64, now_ms: u64) {
        if let Some(log) =
            self.logs.get_mut(&part.writer).filter(|log| part.base <= after && part.through >= log.base())
        {
            log.fill(after, part.entries.iter().map(|entry| of_wire(entry, now_ms)).collect());
        }
    }

    /// Returns whether another node with these positions has said to have every entry of every log.
    pub(crate) fn has_said_all(&self, positions: &Positions) -> bool {
        let has_said = |writer: &Instance| positions.get(writer).map_or(0, |shown| shown.number);
        self.logs.iter().all(|(writer, log)| has_said(writer) >= log.announced)
    }

    /// Returns whether a named write of a key is not applied here, so that the value may lack it. A write that is announced
    /// does not suffice, because its value is about to be dropped.
    fn lacks(&self, hash: KeyHash, name: &WriteName) -> bool {
        let WriteName { writer, number } = name;
        let mut dropped = self.dropped.get(&hash).into_iter().flatten();
        let is_dropped = dropped.any(|known| known.writer == *writer && known.number >= *number);
        !self.has(writer, *number) && !is_dropped
    }

    /// Remembers the named writes of a key that this node has not applied. Returns whether there was one, after which the
    /// caller drops the value and calls [`dropped`](Self::dropped).
    pub(crate) fn remember(&mut self, group: &Arc<str>, key: &str, names: &[WriteName], now_ms: u64) -> bool {
        let hash = key_hash(group, key);
        let mut has_lacked = false;
        for name in names {
            if name.writer == self.own || !self.lacks(hash, name) {
                continue;
            }
            has_lacked = true;
            if self.index.has(hash, name) {
                continue;
            }
            self.heard_of(&name.writer, name.number, now_ms);
            self.index.add(hash, name.clone());
            self.named.push_back(Remembered { group: Arc::clone(group), hash, name: name.clone(), heard_ms: now_ms });
            if self.named.len() > MAX_ENTRIES {
                self.forget_named();
            }
        }
        has_lacked
    }

    /// Records that the value of a key was dropped after these writes were remembered.
    pub(crate) fn dropped(&mut self, group: &str, key: &str, names: &[WriteName]) {
        let hash = key_hash(group, key);
        for name in names {
            if self.has(&name.writer, name.number) {
                continue;
            }
            // Forgotten together with the remembered write.
            if self.named.iter().rev().any(|named| named.hash == hash && named.name.writer == name.writer) {
                add(&mut self.dropped, hash, name.clone());
            }
        }
    }

    /// Returns the positions that have changed since change `since`, a limited number of them, and the change up to
    /// which they are shown.
    pub(crate) fn positions_since(&self, since: u64) -> (Vec<Position>, u64) {
        if since == self.changes {
            return (Vec::new(), since);
        }
        let mut changed: Vec<_> = self.logs.iter().filter(|(_, log)| log.changed > since).collect();
        changed.sort_by_key(|(_, log)| log.changed);
        let is_partial = changed.len() > SHOWN_AT_ONCE;
        changed.truncate(SHOWN_AT_ONCE);
        let until = changed.last().filter(|_| is_partial).map_or(self.changes, |(_, log)| log.changed);
        let position = |(writer, log): (&Instance, &Log)| Position {
            writer: writer.clone(),
            number: log.position(),
            base: log.base(),
        };
        (changed.into_iter().map(position).collect(), until)
    }

    /// Returns the base of a log.
    pub(crate) fn base(&self, writer: &Instance) -> u64 {
        self.logs.get(writer).map_or(0, Log::base)
    }

    /// Returns the entries after the given ones, up to the size of an answer.
    pub(crate) fn parts(&self, after: &[WriteName], now_ms: u64) -> Vec<LogPart> {
        let (mut parts, mut bytes) = (Vec::new(), 0);
        for WriteName { writer, number: after } in after {
            let Some(log) = self.logs.get(writer).filter(|log| log.position() > *after) else { continue };
            let base = if log.base() > *after { log.base() } else { 0 };
            let mut part = LogPart { writer: writer.clone(), through: log.position(), base, entries: Vec::new() };
            for entry in log.after(base.max(*after)) {
                let entry = to_wire(entry, now_ms);
                bytes += entry_bytes(&entry);
                // Not before an entry of all keys, which may stand for earlier numbers.
                if bytes > PART_BYTES && !part.entries.is_empty() && entry.key.is_some() {
                    part.through = entry.number - 1;
                    break;
                }
                part.entries.push(entry);
            }
            parts.push(part);
            if bytes > PART_BYTES {
                break;
            }
        }
        parts
    }

    /// Forgets what is older than [`KEPT`].
    pub(crate) fn sweep(&mut self, now_ms: u64) {
        let Some(end_ms) = now_ms.checked_sub(KEPT.as_millis() as u64) else { return };
        for is_own in [true, false] {
            let order = |logs: &Self| (if is_own { &logs.own_order } else { &logs.order }).front().map(|(ms, _)| *ms);
            while order(self).is_some_and(|written_ms| written_ms < end_ms) {
                self.forget_first(is_own);
            }
        }
        while self.named.front().is_some_and(|named| named.heard_ms < end_ms) {
            self.forget_named();
        }
    }

    /// Forgets the logs of writers that are gone and were not heard within [`KEPT`].
    pub(crate) fn forget_gone(&mut self, now_ms: u64, is_gone: impl Fn(&Instance) -> bool) {
        let Some(end_ms) = now_ms.checked_sub(KEPT.as_millis() as u64) else { return };
        let is_old = |log: &Log| log.heard_ms < end_ms;
        let gone: Vec<_> = self
            .logs
            .iter()
            .filter(|(writer, log)| **writer != self.own && is_old(log) && is_gone(writer))
            .map(|(writer, _)| writer.clone())
            .collect();
        gone.iter().for_each(|writer| self.forget_log(writer));
    }

    /// Forgets the entries of a log and all names of its writes, and keeps the position.
    fn forget_log(&mut self, writer: &Instance) {
        if self.past.len() >= MAX_LOGS {
            self.past.pop_first();
        }
        self.past.insert(writer.clone(), self.position(writer));
        self.logs.remove(writer);
        self.index.forget(writer);
    }

    /// Takes the entry of a single key that was heard first off its log.
    fn forget_first(&mut self, is_own: bool) {
        let order = if is_own { &mut self.own_order } else { &mut self.order };
        let Some((_, writer)) = order.pop_front() else { return };
        let Some(forgotten) = self.logs.get_mut(&writer).and_then(Log::forget_first) else { return };
        if let Some(key) = &forgotten.key {
            self.index.remove(key_hash(&forgotten.group, key), &writer, forgotten.number);
        }
        self.index.add_of_group(&writer, &forgotten.group, forgotten.number);
    }

    /// Forgets the named write that was heard first. A write that never came becomes one of all keys of its group.
    fn forget_named(&mut self) {
        let Some(Remembered { group, hash, name, .. }) = self.named.pop_front() else { return };
        remove(&mut self.dropped, hash, &name.writer, name.number);
        if !self.has(&name.writer, name.number) {
            self.index.add_of_group(&name.writer, &group, name.number);
            self.index.remove(hash, &name.writer, name.number);
        }
    }
}

/// Returns an entry of another node's answer. An age is rounded up by one fiftieth, because clocks differ.
pub(crate) fn of_wire(entry: &LogEntry, now_ms: u64) -> Entry {
    let age_ms = entry.age_ms.saturating_add(entry.age_ms / 50);
    let LogEntry { number, group, key, .. } = entry.clone();
    Entry { number, group, key, written_ms: now_ms.saturating_sub(age_ms) }
}

fn to_wire(entry: &Entry, now_ms: u64) -> LogEntry {
    let Entry { number, group, key, written_ms } = entry.clone();
    LogEntry { number, group, key, age_ms: now_ms.saturating_sub(written_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Incarnation, PeerId},
        write::index::{Named, Shown},
    };

    fn writer(id: &str) -> Instance {
        Instance { id: PeerId::new(id).unwrap(), incarnation: Incarnation(1) }
    }

    fn entry(number: u64, key: Option<&str>) -> Entry {
        Entry { number, group: "users".into(), key: key.map(Into::into), written_ms: 0 }
    }

    fn logs() -> Logs {
        Logs::new(writer("me"))
    }

    /// Applies an entry of another writer.
    fn apply(logs: &mut Logs, by: &str, number: u64, key: Option<&str>) {
        logs.announce(&writer(by), &entry(number, key), 0);
        logs.commit(&writer(by), entry(number, key), 0);
    }

    fn positions(of: &[(&str, u64)]) -> Positions {
        of.iter().map(|(id, number)| (writer(id), Shown { number: *number, base: 0 })).collect()
    }

    fn names(logs: &Logs, key: &str, shown: &[(&str, u64)]) -> Vec<(String, u64)> {
        let names = logs.index.names("users", key, &positions(shown), Named::All).into_iter();
        names.map(|name| (name.writer.id.to_string(), name.number)).collect()
    }

    fn owned(names: &[(&str, u64)]) -> Vec<(String, u64)> {
        names.iter().map(|(id, number)| ((*id).to_owned(), *number)).collect()
    }

    /// Checks that a request names the last write of each writer that the other node has not said to have, for the key
    /// and for all keys of its group.
    #[test]
    fn request_names_unsaid_writes_of_every_writer() {
        let mut logs = logs();
        apply(&mut logs, "a", 1, Some("k"));
        apply(&mut logs, "a", 2, Some("other"));
        apply(&mut logs, "b", 1, Some("k"));
        apply(&mut logs, "c", 1, None);
        assert_eq!(names(&logs, "k", &[]), owned(&[("a", 1), ("b", 1), ("c", 1)]));
        assert_eq!(names(&logs, "k", &[("a", 1), ("c", 1)]), owned(&[("b", 1)]));
        assert!(!logs.has_said_all(&positions(&[("a", 2), ("b", 1)])));
        assert!(logs.has_said_all(&positions(&[("a", 2), ("b", 1), ("c", 1)])));
        logs.announce(&writer("b"), &entry(2, Some("k")), 0);
        assert!(!logs.has_said_all(&positions(&[("a", 2), ("b", 1), ("c", 1)])), "announced, and not applied yet");
        assert_eq!(names(&logs, "k", &[("a", 2), ("b", 1), ("c", 1)]), owned(&[("b", 2)]));
        assert_eq!(logs.position(&writer("b")), 1);
    }

    /// Checks that a base counts as a write of all keys of all groups, for names and for values of other nodes.
    #[test]
    fn base_is_named_for_every_key() {
        let mut logs = logs();
        logs.announce_base(&writer("a"), 5, 0);
        logs.begin_at(&writer("a"), 5, 0);
        assert_eq!(names(&logs, "any", &[("a", 4)]), owned(&[("a", 5)]));
        assert!(names(&logs, "any", &[("a", 5)]).is_empty());
        assert!(
            !logs.index.has_said_all_wide(&positions(&[("a", 4)]))
                && logs.index.has_said_all_wide(&positions(&[("a", 5)]))
        );
        assert!(logs.index.names("users", "any", &Positions::new(), Named::Group).is_empty());
    }

    /// Checks that a named write is remembered for its key until it arrives, and is named to other nodes meanwhile.
    #[test]
    fn named_write_is_remembered_until_it_arrives() {
        let mut logs = logs();
        let name = |number| [WriteName { writer: writer("a"), number }];
        assert!(logs.remember(&"users".into(), "k", &name(7), 0));
        assert!(logs.remember(&"users".into(), "k", &name(7), 0), "the value is about to be dropped");
        logs.dropped("users", "k", &name(7));
        assert!(!logs.remember(&"users".into(), "k", &name(7), 0), "the second request changes nothing");
        assert!(!logs.remember(&"users".into(), "k", &name(6), 0), "a later write of the same writer covers it");
        assert!(logs.remember(&"users".into(), "k", &name(8), 0));
        assert_eq!((names(&logs, "k", &[]), logs.position(&writer("a"))), (owned(&[("a", 8)]), 0));
        assert!(names(&logs, "other", &[]).is_empty());
        let own = [WriteName { writer: writer("me"), number: 9 }];
        assert!(!logs.remember(&"users".into(), "k", &own, 0), "this node knows its own writes");
        (1..=8).for_each(|number| apply(&mut logs, "a", number, Some("k")));
        assert!(!logs.remember(&"users".into(), "k", &name(8), 0));
    }

    /// Checks that the writes beyond the limit become one write of all keys of their group, and that the own log and the
    /// other logs have limits of their own.
    #[test]
    fn forgotten_writes_are_named_for_their_group() {
        let mut logs = logs();
        let keys = MAX_ENTRIES as u64 + 2;
        (1..=keys).for_each(|number| apply(&mut logs, "a", number, Some(&format!("key-{number}"))));
        assert_eq!(names(&logs, "any", &[("a", 1)]), owned(&[("a", 2)]), "two writes were forgotten");
        assert_eq!(names(&logs, "key-3", &[("a", 2)]), owned(&[("a", 3)]));
        for number in 1..=3 {
            logs.append(&"users".into(), Some(&format!("own-{number}").into()), 0);
        }
        assert_eq!(names(&logs, "own-1", &[("a", keys)]), owned(&[("me", 1)]));
        logs.sweep(KEPT.as_millis() as u64 + 1);
        assert_eq!(names(&logs, "any", &[]), owned(&[("a", keys), ("me", 3)]), "an hour later");
        logs.forget_gone(KEPT.as_millis() as u64 + 1, |_| true);
        assert_eq!(names(&logs, "any", &[]), owned(&[("me", 3)]));
    }

    /// Checks that a node keeps its position in a forgotten log, so that a node that still shows the log costs it no value,
    /// and that it passes on nothing from before that position.
    #[test]
    fn position_in_a_forgotten_log_is_kept() {
        let mut logs = logs();
        (1..=3).for_each(|number| apply(&mut logs, "a", number, Some("k")));
        logs.forget_gone(KEPT.as_millis() as u64 + 1, |_| true);
        let after = |number| [WriteName { writer: writer("a"), number }];
        assert_eq!((logs.position(&writer("a")), logs.parts(&after(0), 0).len()), (3, 0));
        assert_eq!(logs.positions_since(0).0, [], "not shown any more");
        assert!(!logs.remember(&"users".into(), "k", &after(3), 0));
        apply(&mut logs, "a", 2, Some("k"));
        apply(&mut logs, "a", 4, Some("k"));
        let part = logs.parts(&after(0), 0).remove(0);
        assert_eq!((logs.position(&writer("a")), part.base, part.entries.len()), (4, 3, 1));
    }

    /// Checks that positions are shown once per change, and that entries are passed on in parts of a limited size.
    #[test]
    fn changed_positions_and_entries_are_passed_on() {
        let mut logs = logs();
        apply(&mut logs, "a", 1, Some("k"));
        let (shown, changes) = logs.positions_since(0);
        assert_eq!(shown, [Position { writer: writer("a"), number: 1, base: 0 }]);
        assert!(logs.positions_since(changes).0.is_empty());
        let long = "k".repeat(1000);
        (2..=500).for_each(|number| apply(&mut logs, "a", number, Some(&long)));
        assert_eq!(logs.positions_since(changes).0.len(), 1);
        let after = |number| [WriteName { writer: writer("a"), number }];
        let part = logs.parts(&after(1), 9).remove(0);
        assert_eq!((part.entries[0].number, part.entries[0].age_ms, part.base), (2, 9, 0));
        assert!(part.through < 500 && part.through == part.entries.last().unwrap().number, "{}", part.through);
        assert_eq!(logs.parts(&after(part.through), 0)[0].through, 2 * part.through - 1);
        assert!(logs.parts(&after(500), 0).is_empty());
    }
}
