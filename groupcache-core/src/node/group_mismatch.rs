//! Comparison of the groups of connected peers with those of the local node, so that a peer of another service and a
//! group with two formats are said in the log.

use std::collections::{BTreeMap, BTreeSet};

use crate::{context::NodeContext, identity::PeerId, membership::stabilizer::DialId, protocol::message::GroupName};

/// Number of ticks of the membership between two comparisons: 5 s.
const TICKS: u32 = 100;

/// Maximum number of differences that are remembered, so that each is said once.
const MAX_KNOWN: usize = 1_000;

/// A difference between the groups of a peer and those of the local node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mismatch {
    /// No group in common.
    NoCommonGroup(PeerId),
    /// A group with another format.
    OtherFormat(PeerId, String),
}

/// The differences of the last comparison.
#[derive(Debug, Default)]
pub(super) struct GroupMismatches {
    ticks: u32,
    /// Differences of the last comparison. A difference is said when two comparisons find it, because nodes build their
    /// groups one after the other.
    found: BTreeSet<Mismatch>,
    said: BTreeSet<Mismatch>,
}

impl GroupMismatches {
    /// Compares the groups at every 100th call, and writes a line for each kind of difference that is new.
    pub(super) fn check(&mut self, context: &NodeContext, peers: &BTreeMap<DialId, PeerId>) {
        self.ticks += 1;
        if !self.ticks.is_multiple_of(TICKS) {
            return;
        }
        let ours = context.registry.names();
        let links = peers.iter().filter_map(|(dial, peer)| Some((peer, context.link_of(*dial)?)));
        let found = links.filter(|(_, link)| link.admits()).flat_map(|(peer, link)| {
            let theirs = link.offers.load();
            mismatches(&ours, peer, |name| theirs.get(name).copied(), theirs.is_empty())
        });
        for mismatch in self.confirmed(found.collect()) {
            say(&mismatch, &ours);
        }
    }

    /// Returns one new difference of each kind that two comparisons have found.
    fn confirmed(&mut self, found: BTreeSet<Mismatch>) -> Vec<Mismatch> {
        let before = std::mem::replace(&mut self.found, found);
        self.said.retain(|mismatch| self.found.contains(mismatch));
        let mut new = Vec::new();
        for mismatch in before.intersection(&self.found) {
            if self.said.len() < MAX_KNOWN && self.said.insert(mismatch.clone()) {
                new.push(mismatch.clone());
            }
        }
        new.dedup_by_key(|mismatch| std::mem::discriminant(mismatch));
        new
    }
}

/// Returns the differences between the groups of this node and those of a peer, with its formats by name.
fn mismatches(
    ours: &[GroupName],
    peer: &PeerId,
    format_of: impl Fn(&str) -> Option<u32>,
    has_no_groups: bool,
) -> Vec<Mismatch> {
    if ours.is_empty() || has_no_groups {
        return Vec::new();
    }
    let common: Vec<_> = ours.iter().filter_map(|group| Some((group, format_of(&group.name)?))).collect();
    if common.is_empty() {
        return vec![Mismatch::NoCommonGroup(peer.clone())];
    }
    let other = common.into_iter().filter(|(group, format)| group.format != *format);
    other.map(|(group, _)| Mismatch::OtherFormat(peer.clone(), group.name.to_string())).collect()
}

fn say(mismatch: &Mismatch, ours: &[GroupName]) {
    match mismatch {
        Mismatch::NoCommonGroup(peer) => {
            let groups: Vec<_> = ours.iter().map(|group| &*group.name).collect();
            tracing::warn!(
                %peer,
                ?groups,
                "a peer shares no group with this node; give each service its own GROUPCACHE_CLUSTER"
            );
        }
        Mismatch::OtherFormat(peer, group) => tracing::warn!(
            %peer,
            group,
            "a peer has a group of this name in another format, so that neither node asks the other; give one type of \
             values one format, or end the rolling update"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::Bounds;

    fn groups(names: &[(&str, u32)]) -> Vec<GroupName> {
        let group = |(index, (name, format)): (usize, &(&str, u32))| GroupName {
            index: index as u32,
            name: (*name).into(),
            format: *format,
            bounds: Bounds::default(),
        };
        names.iter().enumerate().map(group).collect()
    }

    fn found(ours: &[(&str, u32)], theirs: &[(&str, u32)]) -> BTreeSet<Mismatch> {
        let peer = PeerId::new("b").unwrap();
        let format_of = |name: &str| theirs.iter().find(|(known, _)| *known == name).map(|(_, format)| *format);
        mismatches(&groups(ours), &peer, format_of, theirs.is_empty()).into_iter().collect()
    }

    /// Checks the differences of peers without a common group, and of peers with another format of one.
    #[test]
    fn peers_with_other_groups_or_formats_are_found() {
        let peer = || PeerId::new("b").unwrap();
        assert_eq!(found(&[("users", 1)], &[("orders", 1)]), BTreeSet::from([Mismatch::NoCommonGroup(peer())]));
        let other = BTreeSet::from([Mismatch::OtherFormat(peer(), "users".into())]);
        assert_eq!(found(&[("users", 1), ("orders", 1)], &[("users", 2), ("orders", 1)]), other);
        assert!(found(&[("users", 1)], &[("users", 1), ("orders", 2)]).is_empty());
        assert!(found(&[], &[("users", 1)]).is_empty() && found(&[("users", 1)], &[]).is_empty());
    }

    /// Checks that a difference is said when a second comparison confirms it, and once.
    #[test]
    fn difference_is_said_once_after_two_comparisons() {
        let mut known = GroupMismatches::default();
        let none = || found(&[("users", 1)], &[("orders", 1)]);
        assert!(known.confirmed(none()).is_empty());
        assert_eq!(known.confirmed(none()).len(), 1);
        assert!(known.confirmed(none()).is_empty());
        known.confirmed(BTreeSet::new());
        assert!(known.confirmed(none()).is_empty());
        assert_eq!(known.confirmed(none()).len(), 1, "the difference is new again");
    }
}
