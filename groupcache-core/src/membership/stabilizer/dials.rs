//! The table of dial targets: why each exists, how its connection does, and what the node was told to dial.

use std::{collections::BTreeMap, time::Duration};

use crate::identity::{Address, PeerId};
use crate::membership::stabilizer::{
    events::{DialId, Refusal},
    listing::MAX_PEERS,
};

/// Most targets at a time. A set that replaces everybody needs room for the old and the new ones while the old
/// are in their grace.
pub(super) const MAX_DIALS: usize = 2 * MAX_PEERS;

/// Why a target is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DialPurpose {
    /// Discovery named this peer; it has not answered yet.
    Named(PeerId),
    /// Discovery gave an address; whoever answers is welcome.
    Hint(Address),
    /// It is the connection of this member.
    Member(PeerId),
}

/// How the connection of a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Neither answered nor failed yet.
    Dialling,
    /// The last Hello came on it.
    Live,
    /// Failed, refused or lost; the node is redialling.
    Down,
}

/// One thing that the node dials.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) aim: DialPurpose,
    pub(super) link: Link,
    /// What the node was told last.
    pub(super) expected: Option<PeerId>,
    pub(super) addresses: Vec<Address>,
    /// The last refusal, until the target answers well: it is told once, not at every redial.
    pub(super) refusal: Option<Refusal>,
    /// Since when nothing lists it. A member's is kept with the member.
    pub(super) unlisted_since: Option<Duration>,
}

/// All targets.
#[derive(Debug, Default)]
pub(super) struct Dials {
    targets: BTreeMap<DialId, Target>,
    last: u64,
}

impl DialPurpose {
    pub(super) fn id(&self) -> Option<&PeerId> {
        match self {
            Self::Named(id) | Self::Member(id) => Some(id),
            Self::Hint(_) => None,
        }
    }
}

impl Dials {
    /// A new target; `None` when there are too many.
    pub(super) fn open(&mut self, aim: DialPurpose, addresses: Vec<Address>) -> Option<DialId> {
        if self.targets.len() >= MAX_DIALS {
            return None;
        }
        self.last += 1;
        let expected = aim.id().cloned();
        let target = Target { aim, link: Link::Dialling, expected, addresses, refusal: None, unlisted_since: None };
        self.targets.insert(DialId(self.last), target);
        Some(DialId(self.last))
    }

    pub(super) fn get(&self, dial: DialId) -> Option<&Target> {
        self.targets.get(&dial)
    }

    pub(super) fn get_mut(&mut self, dial: DialId) -> Option<&mut Target> {
        self.targets.get_mut(&dial)
    }

    pub(super) fn remove(&mut self, dial: DialId) -> Option<Target> {
        self.targets.remove(&dial)
    }

    pub(super) fn is_live(&self, dial: DialId) -> bool {
        self.get(dial).is_some_and(|t| t.link == Link::Live)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (DialId, &Target)> {
        self.targets.iter().map(|(dial, target)| (*dial, target))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Target> {
        self.targets.values_mut()
    }

    /// The targets that `is_chosen`; a list of its own, so that the table can change meanwhile.
    pub(super) fn which(&self, is_chosen: impl Fn(&Target) -> bool) -> Vec<DialId> {
        self.iter().filter(|(_, target)| is_chosen(target)).map(|(dial, _)| dial).collect()
    }
}
