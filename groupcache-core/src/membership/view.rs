//! The immutable view of the cluster that a get takes once: plain data, without connections.

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
    ring: Ring,
    /// Index of the member in each slot of the ring.
    owners: Vec<usize>,
}

impl View {
    /// Builds the ring; some milliseconds for a thousand peers, so not within a request.
    pub(crate) fn new(epoch: u64, members: MemberSet) -> Self {
        let ring = Ring::new(members.owners().map(|(id, share)| (id.as_str(), share)));
        let owners = members.members.iter().enumerate().filter(|(_, m)| m.share > 0).map(|(at, _)| at).collect();
        Self { epoch, members, ring, owners }
    }

    /// The owner of a key; `None` only before the first view is made.
    pub(crate) fn owner(&self, key: u64) -> Option<&Member> {
        self.in_slot(self.ring.owner(key)?)
    }

    /// The owner and then its successors: who takes over when those before are gone.
    pub(crate) fn candidates(&self, key: u64) -> impl Iterator<Item = &Member> {
        self.ring.successors(key).filter_map(|slot| self.in_slot(slot))
    }

    fn in_slot(&self, slot: u32) -> Option<&Member> {
        // Members and slots are both in the order of their ids.
        self.members.members.get(*self.owners.get(slot as usize)?)
    }

    /// Everyone, this node included.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members.members
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.ring.fingerprint()
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
            let all: Vec<_> = view.candidates(key << 58).map(|m| m.id.as_str()).collect();
            assert_eq!(all.len(), 2);
            assert_eq!(view.owner(key << 58).unwrap().id.as_str(), all[0]);
            assert!(all.contains(&"b") && all.contains(&"d"));
        }
    }
}
