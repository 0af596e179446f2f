//! The member list that a view is made of, and who in it owns keys.

use std::sync::Arc;

use crate::identity::{Address, Incarnation, NodeState, PeerId};
use crate::membership::stabilizer::events::{DialId, HelloFacts};

/// One member, as the view should have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) state: NodeState,
    /// What the member says of itself.
    pub(crate) weight: u8,
    /// What the ring gives it; 0 = owns nothing.
    pub(crate) share: u8,
    pub(crate) zone: Arc<str>,
    pub(crate) addresses: Vec<Address>,
    /// The connection to it; `None` is this node.
    pub(crate) dial: Option<DialId>,
}

/// All members, this node among them, sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberSet {
    pub(crate) members: Vec<Member>,
}

impl Member {
    /// Whether this is the local node.
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
        // The first rule that finds an owner decides, so that a key always has one. Every node applies the same
        // rules to the same states; only the last, when all members drain, looks at who is asking.
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

    /// Who owns keys, with its share of them; sorted by id, never empty in an installed set.
    #[cfg(test)]
    pub(crate) fn owners(&self) -> impl Iterator<Item = (&PeerId, u8)> {
        self.members.iter().filter(|m| m.share > 0).map(|m| (&m.id, m.share))
    }
}
