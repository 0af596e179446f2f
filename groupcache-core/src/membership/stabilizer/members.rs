//! Member list of a view, and the share of the keys of each member.

use std::sync::Arc;

use crate::identity::{Address, Incarnation, MAX_ADDRESSES, MAX_WEIGHT, NodeState, PeerId};

/// The number of a target. The node keeps one connection to it, and dials again with a backoff until
/// [`Action::Hangup`](crate::membership::stabilizer::Action::Hangup).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DialId(pub(crate) u64);

/// The part of a Hello that membership needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HelloFacts {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    pub(crate) weight: u8,
    pub(crate) zone: Arc<str>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) fingerprint: u64,
}

impl HelloFacts {
    /// Returns the facts cut to the limits of this version, because a peer of another version may have larger ones.
    pub(super) fn within_limits(mut self) -> Self {
        self.weight = self.weight.min(MAX_WEIGHT);
        self.addresses.truncate(MAX_ADDRESSES);
        self
    }
}

/// A member of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    /// Weight in the member's Hello.
    pub(crate) weight: u8,
    /// Weight on the ring. A member with a share of 0 owns no keys.
    pub(crate) share: u8,
    pub(crate) zone: Arc<str>,
    pub(crate) addresses: Vec<Address>,
    /// Target of the connection to the member. `None` for the local node.
    pub(crate) dial: Option<DialId>,
}

/// All members including the local node, sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberSet {
    pub(crate) members: Vec<Member>,
}

impl Member {
    /// Returns whether the member is the local node.
    #[inline]
    pub(crate) fn is_local(&self) -> bool {
        self.dial.is_none()
    }

    pub(super) fn new(facts: &HelloFacts, dial: Option<DialId>) -> Self {
        Self {
            id: facts.id.clone(),
            incarnation: facts.incarnation,
            state: facts.state,
            weight: facts.weight,
            share: 0,
            zone: Arc::clone(&facts.zone),
            addresses: facts.addresses.clone(),
            dial,
        }
    }

    fn serves(&self) -> bool {
        self.state != NodeState::Draining
    }
}

impl MemberSet {
    /// Sorts the members and gives each its share.
    pub(super) fn new(mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.id.cmp(&b.id));
        // The first rule that finds an owner decides, so that a key always has an owner. Every node applies the same
        // rules to the same states. Only the last rule, for the case that all members drain, depends on the local node.
        let rules: [fn(&Member) -> u8; 4] = [
            |m| if m.state == NodeState::Ready { m.weight } else { 0 },
            |m| if m.serves() { m.weight } else { 0 },
            |m| u8::from(m.serves()),
            |m| u8::from(m.dial.is_none()),
        ];
        let rule = rules.iter().find(|rule| members.iter().any(|m| rule(m) > 0));
        for member in &mut members {
            member.share = rule.map_or(0, |rule| rule(member));
        }
        Self { members }
    }

    /// Returns the members that own keys with their shares, sorted by id. Never empty in an installed set.
    #[cfg(test)]
    pub(crate) fn owners(&self) -> impl Iterator<Item = (&PeerId, u8)> {
        self.members.iter().filter(|m| m.share > 0).map(|m| (&m.id, m.share))
    }
}
