//! View: the members and the owners of all keys at one moment. Plain data without connections, which a get reads once.

use std::sync::OnceLock;

use crate::{
    membership::stabilizer::{Member, MemberSet},
    ring::Ring,
};

/// The members and their rings at one moment. A change of members makes a new view.
#[derive(Debug)]
pub(crate) struct View {
    /// Number of the view, counted by each node for itself.
    pub(crate) epoch: u64,
    members: MemberSet,
    cluster: Placement,
    /// The placement of groups with owners in each zone, made on first use because few groups need it.
    zone: OnceLock<Placement>,
    /// Part of all keys that the local node owns, made on first use.
    local_share: OnceLock<f64>,
}

/// The members among which the keys of a group are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All members.
    Cluster,
    /// The members of the local node's zone, or all members if none of the zone owns keys.
    Zone,
}

/// The owners among some members, with their ring.
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
    /// Creates a view and builds its ring. The ring takes some milliseconds for 1,000 members, so do not call this in a
    /// request.
    pub(crate) fn new(epoch: u64, members: MemberSet) -> Self {
        let cluster = Placement::new(&members, |_| true);
        Self { epoch, members, cluster, zone: OnceLock::new(), local_share: OnceLock::new() }
    }

    /// Returns the view in which the local node owns no keys, as peers see it that do not know the local node.
    pub(crate) fn without_me(&self, epoch: u64) -> Self {
        let share = |member: &Member| if member.dial.is_none() { 0 } else { member.share };
        let members = self.members.members.iter().map(|member| Member { share: share(member), ..member.clone() });
        Self::new(epoch, MemberSet { members: members.collect() })
    }

    /// Builds the ring of a scope before its first use.
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

    /// Returns the number of members that own keys.
    pub(crate) fn owners(&self, scope: Scope) -> usize {
        self.placement(scope).owners.len()
    }

    /// Returns the owner of the key with this hash. `None` only before the first members are installed.
    pub(crate) fn owner(&self, scope: Scope, key: u64) -> Option<&Member> {
        let placement = self.placement(scope);
        self.member_in_slot(placement, placement.ring.owner(key)?)
    }

    /// Returns the owner of a key and its successors, in the order in which they own the key when earlier ones are
    /// gone.
    pub(crate) fn candidates(&self, scope: Scope, key: u64) -> impl Iterator<Item = &Member> {
        let placement = self.placement(scope);
        placement.ring.successors(key).filter_map(|slot| self.member_in_slot(placement, slot))
    }

    /// Returns the places of the first `most` candidates among the members, in the order of
    /// [`candidates`](Self::candidates).
    pub(crate) fn candidate_places(&self, scope: Scope, key: u64, most: usize) -> Vec<usize> {
        let placement = self.placement(scope);
        let places = placement.ring.successors(key).filter_map(|slot| placement.owners.get(slot as usize));
        places.copied().take(most).collect()
    }

    fn member_in_slot(&self, placement: &Placement, slot: u32) -> Option<&Member> {
        // Members and slots are both in the order of their ids.
        self.members.members.get(*placement.owners.get(slot as usize)?)
    }

    /// Returns the number of points of all rings of the view, which are most of its memory.
    pub(crate) fn points(&self) -> usize {
        self.cluster.ring.points() + self.zone.get().map_or(0, |zone| zone.ring.points())
    }

    /// Returns all members, including the local node.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members.members
    }

    /// Returns the fingerprint of the ring of all owners. The owners in each zone follow from that ring and from the
    /// zones.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.cluster.ring.fingerprint()
    }

    /// Returns the part of all keys that the local node owns among all members, from 0 to 1.
    pub(crate) fn local_share(&self) -> f64 {
        let Placement { ring, owners } = &self.cluster;
        let is_local = |at: &usize| self.members.members.get(*at).is_some_and(Member::is_local);
        let slot = || owners.iter().position(is_local).and_then(|slot| u32::try_from(slot).ok());
        *self.local_share.get_or_init(|| slot().map_or(0.0, |slot| ring.share(slot)))
    }

    /// Returns the fingerprint of the ring of a scope.
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

    /// Checks that members without a share are neither owners nor candidates.
    #[test]
    fn slots_are_the_members_with_a_share() {
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

    /// Checks that a zone has its own owners, and that a zone without owners uses the owners of all zones.
    #[test]
    fn zone_without_owners_uses_the_owners_of_all_zones() {
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
            assert_eq!(of(&neither, key).len(), 2, "b and d, in the other zone");
        }
    }
}
