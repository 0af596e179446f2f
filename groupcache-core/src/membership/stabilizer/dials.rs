//! Table of targets: the purpose of each, the state of its connection, and the addresses that the node dials.

use std::{collections::BTreeMap, time::Duration};

use crate::identity::{Address, PeerId};
use crate::membership::stabilizer::{events::Refusal, members::DialId};

/// Maximum number of peers from one set, and from a complete set together with all partial sets after it. Each peer
/// costs a connection, and a ring of 2,000 members is still rebuilt in milliseconds.
pub(super) const MAX_PEERS: usize = 2_000;

/// Maximum number of targets: room for the peers of a full set, and for those of another full set in their grace time.
pub(super) const MAX_DIALS: usize = 2 * MAX_PEERS;

/// The purpose of a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DialPurpose {
    /// A peer that discovery lists by id and that has not answered yet.
    Named(PeerId),
    /// An address from discovery without an id. Any peer may answer there.
    Hint(Address),
    /// The connection of this member.
    Member(PeerId),
}

/// The state of the connection of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Neither answered nor failed yet.
    Dialling,
    /// Connected, with a Hello received.
    Live,
    /// Failed, refused or lost. The node dials again.
    Down,
}

/// An address, or a peer with all of its addresses, that the node dials.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) purpose: DialPurpose,
    pub(super) link: Link,
    /// Expected peer in the last [`Action::Dial`](super::Action::Dial).
    pub(super) expected: Option<PeerId>,
    /// Addresses in the last [`Action::Dial`](super::Action::Dial).
    pub(super) addresses: Vec<Address>,
    /// Last refusal since the last accepted Hello, so that the warning is written once and not at every redial.
    pub(super) refusal: Option<Refusal>,
    /// Whether the target is the port of this node at an address of its machine, without an answer so far. The target is
    /// probably the node itself, and another node may answer there later.
    pub(super) is_own_port: bool,
    /// Time since which discovery does not list the target. Unused for a member, which has a
    /// [`ListingStatus`](super::ListingStatus).
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
    /// Adds a target. Returns `None` if [`MAX_DIALS`] is reached.
    pub(super) fn open(&mut self, purpose: DialPurpose, addresses: Vec<Address>) -> Option<DialId> {
        if self.targets.len() >= MAX_DIALS {
            return None;
        }
        self.last += 1;
        let expected = purpose.id().cloned();
        let target = Target {
            purpose,
            link: Link::Dialling,
            expected,
            addresses,
            refusal: None,
            is_own_port: false,
            unlisted_since: None,
        };
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

    /// Returns the targets for which `is_chosen` holds, as a list, so that the caller can change the table meanwhile.
    pub(super) fn select(&self, is_chosen: impl Fn(&Target) -> bool) -> Vec<DialId> {
        self.iter().filter(|(_, target)| is_chosen(target)).map(|(dial, _)| dial).collect()
    }
}
