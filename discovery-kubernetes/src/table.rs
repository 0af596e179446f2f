//! Table of the known objects, and its merge into peers: pure, without a clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use groupcache_core::{
    PeerId,
    discovery::{Address, NodeState, Peer},
};

use crate::object::{Content, Object, Record};

/// Maximum number of objects per namespace: five times the peers that a node accepts.
pub(crate) const MAX_OBJECTS: usize = 10_000;
/// Maximum number of addresses per peer; a node accepts no more.
const MAX_ADDRESSES: usize = 8;

/// Known objects of all namespaces, in the given order of the namespaces.
#[derive(Debug)]
pub(crate) struct Table {
    namespaces: Vec<Known>,
    /// Peers of the objects that a watch has changed or removed since the last merge.
    gone: BTreeSet<PeerId>,
}

/// Known objects of one namespace.
#[derive(Debug, Default)]
struct Known {
    objects: BTreeMap<Arc<str>, Box<[Record]>>,
    /// Whether a complete list has been read, so that an unknown object does not exist.
    is_listed: bool,
}

/// Result of a merge.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    pub(crate) peers: Vec<Peer>,
    /// Whether each namespace has been listed.
    pub(crate) is_complete: bool,
    /// Number of pods without an address or a port.
    pub(crate) waiting: usize,
    /// Names that pods of several namespaces share.
    pub(crate) conflicts: BTreeSet<PeerId>,
    /// Pods that are being deleted, with their grace periods.
    pub(crate) terminating: BTreeMap<PeerId, Duration>,
    /// Peers that were in a changed or removed object and are in no object anymore.
    pub(crate) gone: Vec<PeerId>,
}

/// Accumulated records of one peer.
struct Sum<'a> {
    namespace: usize,
    uid: Option<&'a Arc<str>>,
    addresses: Vec<Address>,
    grace: Option<u32>,
}

impl Table {
    pub(crate) fn new(namespaces: usize) -> Self {
        Self { namespaces: std::iter::repeat_with(Known::default).take(namespaces).collect(), gone: BTreeSet::new() }
    }

    /// Replaces the objects of a namespace by a complete list. An unreadable object keeps its last known records.
    /// Returns the number of objects beyond the limit.
    pub(crate) fn list(&mut self, namespace: usize, listed: Vec<Object>) -> usize {
        let Some(known) = self.namespaces.get_mut(namespace) else { return 0 };
        let mut before = std::mem::take(&mut known.objects);
        known.is_listed = true;
        for Object { name, content, .. } in listed {
            let records = match content {
                Content::Read(records) => Some(records),
                Content::Garbage => before.remove(&name),
            };
            known.objects.extend(records.filter(|records| !records.is_empty()).map(|records| (name, records)));
        }
        let mut ignored = 0;
        while known.objects.len() > MAX_OBJECTS {
            known.objects.pop_last();
            ignored += 1;
        }
        ignored
    }

    /// Adds or changes one object. Returns whether there is room for it.
    pub(crate) fn put(&mut self, namespace: usize, object: Object) -> bool {
        let Some(known) = self.namespaces.get_mut(namespace) else { return false };
        let Content::Read(records) = object.content else { return true };
        if known.objects.len() >= MAX_OBJECTS && !known.objects.contains_key(&object.name) {
            return false;
        }
        let before = match records.is_empty() {
            true => known.objects.remove(&object.name),
            false => known.objects.insert(object.name, records),
        };
        self.miss(before);
        true
    }

    /// Removes a deleted object.
    pub(crate) fn remove(&mut self, namespace: usize, name: &str) {
        let before = self.namespaces.get_mut(namespace).and_then(|known| known.objects.remove(name));
        self.miss(before);
    }

    /// Remembers the peers of a changed or removed object. The next merge decides whether they are gone or have moved
    /// to another slice.
    fn miss(&mut self, before: Option<Box<[Record]>>) {
        self.gone.extend(before.into_iter().flatten().filter_map(|record| record.id));
    }

    /// Merges all records into peers.
    pub(crate) fn merge(&mut self) -> Merged {
        let Self { namespaces, gone } = self;
        let is_complete = namespaces.iter().all(|known| known.is_listed);
        let mut merged = Merged { is_complete, ..Merged::default() };
        let mut sums: BTreeMap<&PeerId, Sum<'_>> = BTreeMap::new();
        for (namespace, known) in namespaces.iter().enumerate() {
            for record in known.objects.values().flatten() {
                let Some(id) = &record.id else {
                    merged.peers.extend(record.addresses.iter().filter_map(|address| Peer::at(address).ok()));
                    continue;
                };
                let sum = sums.entry(id).or_insert_with(|| Sum::of(namespace, record));
                if sum.namespace != namespace {
                    merged.conflicts.insert(id.clone());
                } else if sum.is_replaced_by(record) {
                    *sum = Sum::of(namespace, record);
                }
                if sum.namespace == namespace && sum.is_same_pod(record) {
                    sum.add(record);
                }
            }
        }
        merged.gone = std::mem::take(gone).into_iter().filter(|id| !sums.contains_key(id)).collect();
        merged.waiting = sums.values().filter(|sum| sum.addresses.is_empty()).count();
        let grace = |sum: &Sum<'_>| Some(Duration::from_secs(sum.grace?.into()));
        merged.terminating = sums.iter().filter_map(|(id, sum)| Some(((*id).clone(), grace(sum)?))).collect();
        let found = sums.into_iter().filter(|(_, sum)| !sum.addresses.is_empty());
        merged.peers.extend(found.map(|(id, sum)| sum.peer(id)));
        merged
    }
}

impl<'a> Sum<'a> {
    fn of(namespace: usize, record: &'a Record) -> Self {
        Self { namespace, uid: record.uid.as_ref(), addresses: Vec::new(), grace: record.grace }
    }

    /// Returns whether the record is about the same pod. Several slices may have the pod: one per address family, or
    /// two between which an endpoint moves.
    fn is_same_pod(&self, record: &Record) -> bool {
        self.uid.zip(record.uid.as_ref()).is_none_or(|(a, b)| a == b)
    }

    /// Returns whether the record is about another pod of the same name that stays, while this one terminates.
    fn is_replaced_by(&self, record: &Record) -> bool {
        !self.is_same_pod(record) && self.grace.is_some() && !record.is_terminating()
    }

    fn add(&mut self, record: &Record) {
        for address in &record.addresses {
            if self.addresses.len() < MAX_ADDRESSES && !self.addresses.contains(address) {
                self.addresses.push(address.clone());
            }
        }
        self.grace = self.grace.max(record.grace);
    }

    fn peer(self, id: &PeerId) -> Peer {
        let peer = Peer::member(id.clone(), self.addresses);
        if self.grace.is_some() { peer.with_state(NodeState::Draining) } else { peer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, uid: &str, address: &str) -> Record {
        Record {
            id: PeerId::new(id).ok(),
            uid: (!uid.is_empty()).then(|| uid.into()),
            addresses: Address::new(address).into_iter().collect(),
            grace: None,
        }
    }

    fn object(name: &str, records: impl IntoIterator<Item = Record>) -> Object {
        let content = Content::Read(records.into_iter().collect());
        Object { name: name.into(), version: String::new(), content }
    }

    fn pod(name: &str, address: &str) -> Object {
        object(name, [record(name, "u", address)])
    }

    fn seen(table: &mut Table) -> (Vec<String>, Vec<String>) {
        let merged = table.merge();
        let show = |peer: &Peer| {
            let at: Vec<_> = peer.addresses().iter().map(ToString::to_string).collect();
            let draining = if peer.state() == Some(NodeState::Draining) { "!" } else { "" };
            format!("{}{draining}@{}", peer.id().map_or("", |id| id.as_str()), at.join("+"))
        };
        (merged.peers.iter().map(show).collect(), merged.gone.iter().map(ToString::to_string).collect())
    }

    fn listed(objects: impl IntoIterator<Item = Object>) -> Table {
        let mut table = Table::new(1);
        table.list(0, objects.into_iter().collect());
        table
    }

    /// Checks that the slices of two address families are one peer with two addresses, that a pod in two slices is one
    /// peer, and that a pod is gone only when it is in no slice.
    #[test]
    fn slices_of_one_pod_merge_into_one_peer() {
        let mut table = listed([
            object("v4-a", [record("p", "1", "10.0.0.1:1"), record("q", "2", "10.0.0.2:1")]),
            object("v4-b", [record("q", "2", "10.0.0.2:1")]),
            object("v6", [record("p", "1", "[fd00::1]:1")]),
        ]);
        assert_eq!(seen(&mut table).0, ["p@10.0.0.1:1+[fd00::1]:1", "q@10.0.0.2:1"]);
        // `q` moves: one slice no longer has it, the other still does.
        table.put(0, object("v4-a", [record("p", "1", "10.0.0.1:1")]));
        assert_eq!(seen(&mut table), (vec!["p@10.0.0.1:1+[fd00::1]:1".into(), "q@10.0.0.2:1".into()], vec![]));
        table.remove(0, "v4-b");
        assert_eq!(seen(&mut table), (vec!["p@10.0.0.1:1+[fd00::1]:1".into()], vec!["q".into()]));
        assert_eq!(seen(&mut table).1, Vec::<String>::new(), "a gone peer is reported once");
    }

    /// Checks that a terminating pod gives way to a new pod of the same name, in either order.
    #[test]
    fn staying_pod_replaces_terminating_pod_of_same_name() {
        let old = Record { grace: Some(30), ..record("p", "1", "10.0.0.1:1") };
        let new = record("p", "2", "10.0.0.2:1");
        for pair in [[old.clone(), new.clone()], [new, old]] {
            assert_eq!(seen(&mut listed([object("s", pair)])).0, ["p@10.0.0.2:1"]);
        }
    }

    /// Checks that a pod is Draining if one slice has it as terminating.
    #[test]
    fn peer_drains_if_one_slice_terminates_it() {
        let v6 = Record { grace: Some(30), ..record("p", "1", "[fd00::1]:1") };
        let mut table = listed([object("v4", [record("p", "1", "10.0.0.1:1")]), object("v6", [v6])]);
        assert_eq!(seen(&mut table).0, ["p!@10.0.0.1:1+[fd00::1]:1"]);
    }

    /// Checks that a set is complete once all namespaces are listed, and that the first namespace has a shared name.
    #[test]
    fn set_is_complete_once_all_namespaces_are_listed() {
        let mut table = Table::new(2);
        table.list(1, vec![pod("p", "10.0.1.1:1"), pod("q", "10.0.1.2:1")]);
        assert!(!table.merge().is_complete);
        table.list(0, vec![pod("p", "10.0.0.1:1")]);
        let merged = table.merge();
        assert!(merged.is_complete && merged.conflicts.len() == 1, "{merged:?}");
        assert_eq!(seen(&mut table).0, ["p@10.0.0.1:1", "q@10.0.1.2:1"]);
        table.remove(0, "p");
        assert_eq!(seen(&mut table), (vec!["p@10.0.1.1:1".into(), "q@10.0.1.2:1".into()], vec![]));
    }

    /// Checks that an unreadable object keeps its last known records, and that an unknown one stays unknown.
    #[test]
    fn unreadable_object_keeps_last_records() {
        let garbage = |name: &str| Object { content: Content::Garbage, ..pod(name, "10.9.9.9:1") };
        let mut table = listed([pod("p", "10.0.0.1:1"), pod("q", "10.0.0.2:1")]);
        assert!(table.put(0, garbage("p")));
        assert_eq!(table.list(0, vec![garbage("p"), garbage("r")]), 0);
        assert_eq!(seen(&mut table).0, ["p@10.0.0.1:1"], "q is not in the list, r has never been readable");
    }

    /// Checks that a pod without an address is counted and not published, and that objects have a limit.
    #[test]
    fn pod_without_address_is_counted_and_objects_are_limited() {
        let mut table = listed([pod("p", "none"), pod("q", "10.0.0.2:1")]);
        let merged = table.merge();
        assert_eq!((merged.waiting, merged.peers.len()), (1, 1));
        let many = (0..MAX_OBJECTS + 3).map(|n| pod(&format!("p{n:05}"), "10.0.0.1:1"));
        assert_eq!(table.list(0, many.collect()), 3);
        assert!(!table.put(0, pod("x", "10.0.0.1:1")) && table.put(0, pod("p00000", "10.0.0.2:1")));
    }
}
