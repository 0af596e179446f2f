//! The immutable view of the cluster that a get takes once: plain data, without connections.

use std::sync::OnceLock;

use crate::{
    membership::stabilizer::{Member, MemberSet},
    ring::Ring,
};

/// Who is there and who owns what, as of one moment.
#[derive(Debug)]
pub(crate) struct View {
    /// Counts the views of this node; another node's numbers mean nothing here.
    pub(crate) epoch: u64,
    members: MemberSet,
    cluster: Placement,
    /// Made when it is first asked for: few groups want it.
    zone: OnceLock<Placement>,
}

/// Among whom the keys of a group are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Cluster,
    /// The members of this node's own zone; all, when none of those owns anything.
    Zone,
}

/// Who of some members owns what.
#[derive(Debug)]
struct Placement {
    ring: Ring,
    /// Index of the member in each slot of the ring.
    owners: Vec<usize>,
}

impl Placement {
    fn new(members: &MemberSet, takes_part: impl Fn(&Member) -> bool) -> Self {
        let owners = members.members.iter().enumerate().filter(|(_, member)| member.share > 0 && takes_part(member));
        let ring = Ring::new(owners.clone().map(|(_, member)| (member.id.as_str(), member.share)));
        Self { ring, owners: owners.map(|(at, _)| at).collect() }
    }
}

impl View {
    /// Builds the ring; some milliseconds for a thousand peers, so not within a request.
    pub(crate) fn new(epoch: u64, members: MemberSet) -> Self {
        let cluster = Placement::new(&members, |_| true);
        Self { epoch, members, cluster, zone: OnceLock::new() }
    }

    /// The same without what this node owns: as those see it who have not heard of it.
    pub(crate) fn without_me(&self, epoch: u64) -> Self {
        let share = |member: &Member| if member.dial.is_none() { 0 } else { member.share };
        let members = self.members.members.iter().map(|member| Member { share: share(member), ..member.clone() });
        Self::new(epoch, MemberSet { members: members.collect() })
    }

    /// Makes what is made when it is first asked for.
    pub(crate) fn prepare(&self, scope: Scope) {
        self.placement(scope);
    }

    fn placement(&self, scope: Scope) -> &Placement {
        if scope == Scope::Cluster {
            return &self.cluster;
        }
        let zone = self.zone.get_or_init(|| {
            let me = self.members.members.iter().find(|member| member.dial.is_none());
            Placement::new(&self.members, |member| me.is_some_and(|me| me.zone == member.zone))
        });
        if zone.owners.is_empty() { &self.cluster } else { zone }
    }

    /// How many members own keys.
    pub(crate) fn owners(&self, scope: Scope) -> usize {
        self.placement(scope).owners.len()
    }

    /// The owner of a key; `None` only before the first view is made.
    pub(crate) fn owner(&self, scope: Scope, key: u64) -> Option<&Member> {
        let placement = self.placement(scope);
        self.in_slot(placement, placement.ring.owner(key)?)
    }

    /// The owner and then its successors: who takes over when those before are gone.
    pub(crate) fn candidates(&self, scope: Scope, key: u64) -> impl Iterator<Item = &Member> {
        let placement = self.placement(scope);
        placement.ring.successors(key).filter_map(|slot| self.in_slot(placement, slot))
    }

    fn in_slot(&self, placement: &Placement, slot: u32) -> Option<&Member> {
        // Members and slots are both in the order of their ids.
        self.members.members.get(*placement.owners.get(slot as usize)?)
    }

    /// Everyone, this node included.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members.members
    }

    /// Of the ring of all owners: that of groups that are shared out in each zone follows from it, and from the zones.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.cluster.ring.fingerprint()
    }

    /// The fingerprint of the ring that has such a group's keys.
    pub(crate) fn ring_of(&self, scope: Scope) -> u64 {
        self.placement(scope).ring.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Incarnation, NodeState, PeerId},
        membership::stabilizer::DialId,
    };

    fn member(id: &str, share: u8, dial: Option<u64>) -> Member {
        Member {
            id: PeerId::new(id).unwrap(),
            incarnation: Incarnation(1),
            state: NodeState::Ready,
            weight: share,
            share,
            zone: "".into(),
            addresses: Vec::new(),
            dial: dial.map(DialId),
        }
    }

    #[test]
    fn slots_are_the_members_that_own() {
        let members =
            vec![member("a", 0, None), member("b", 1, Some(1)), member("c", 0, Some(2)), member("d", 1, Some(3))];
        let view = View::new(1, MemberSet { members });
        for key in 0..64_u64 {
            let all: Vec<_> = view.candidates(Scope::Cluster, key << 58).map(|m| m.id.as_str()).collect();
            assert_eq!(all.len(), 2);
            assert_eq!(view.owner(Scope::Cluster, key << 58).unwrap().id.as_str(), all[0]);
            assert!(all.contains(&"b") && all.contains(&"d"));
        }
    }

    #[test]
    fn a_zone_has_owners_of_its_own_and_one_without_any_asks_the_others() {
        let in_zone = |mut member: Member, zone: &str| {
            member.zone = zone.into();
            member
        };
        let members = |my_share| {
            let me = in_zone(member("a", my_share, None), "x");
            let others = [("b", "y"), ("c", "x"), ("d", "y")];
            let others = others.iter().zip(1..).map(|((id, zone), n)| {
                let share = if *id == "c" { my_share } else { 1 };
                in_zone(member(id, share, Some(n)), zone)
            });
            MemberSet { members: std::iter::once(me).chain(others).collect() }
        };
        let of = |view: &View, key: u64| -> Vec<String> {
            view.candidates(Scope::Zone, key << 58).map(|m| m.id.to_string()).collect()
        };
        let (both, neither) = (View::new(1, members(1)), View::new(2, members(0)));
        assert_eq!((both.owners(Scope::Zone), both.owners(Scope::Cluster)), (2, 4));
        for key in 0..64 {
            let mut all = of(&both, key);
            assert_eq!(both.owner(Scope::Zone, key << 58).unwrap().id.as_str(), all[0]);
            all.sort();
            assert_eq!(all, ["a", "c"]);
            assert_eq!(of(&neither, key).len(), 2, "b and d, of the other zone");
        }
    }
}
