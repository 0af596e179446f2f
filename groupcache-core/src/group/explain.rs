//! Who owns a key, and why.

use std::fmt;

use super::Group;
use crate::{
    identity::{NodeState, PeerId},
    value::Value,
};

/// Candidates that are told: nobody asks further than the first few.
const TOLD: usize = 8;

/// Who owns a key and why, as one node sees it; made by [`Group::explain`]. Its `Display` is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explained {
    /// Where the key is on the ring. Group and key decide it, on every node alike.
    pub point: u64,
    /// The ring that was asked; nodes whose rings differ may give a key different owners.
    pub fingerprint: u64,
    /// Which view of this node that is.
    pub epoch: u64,
    /// How many members own keys of this group.
    pub owners: usize,
    /// The owner and then its successors, in the order in which they are asked; at most eight.
    pub candidates: Vec<Candidate>,
}

/// A node that may answer for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// Its id.
    pub id: PeerId,
    /// What it says of itself.
    pub state: NodeState,
    /// Whether it is this node.
    pub is_me: bool,
    /// Whether requests can be sent to it now.
    pub is_reachable: bool,
    /// Whether it has the group, in our format.
    pub has_group: bool,
}

impl Explained {
    /// Whom a get that misses here asks first; `None` when all candidates are passed over, and it is loaded here.
    pub fn asked(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.is_reachable && candidate.has_group)
    }
}

impl<V: Value> Group<V> {
    /// Who owns a key, who would answer for it, and why. Nothing is sent.
    ///
    /// ```
    /// # fn f(users: groupcache_core::Group<String>) {
    /// println!("{}", users.explain("12345"));
    /// // n2 owns it: the first of 3 owners from point 9d2c55f6e1a0b437 of ring 51ff0e0a9c6d1b22 on (view 4); a get that misses asks n2; then n3, n1 (here)
    /// # }
    /// ```
    pub fn explain(&self, key: &str) -> Explained {
        let (group, shared) = (&self.inner, &self.inner.shared);
        let point = group.place.hash(key.as_bytes());
        let view = shared.view();
        let candidate = |member: &crate::membership::stabilizer::Member| {
            let link = shared.link(member);
            let offers = |link: &crate::peer::link::Link| link.offers(&group.settings.name, group.settings.format);
            let is_me = member.dial.is_none();
            Candidate {
                id: member.id.clone(),
                state: member.state,
                is_me,
                is_reachable: is_me || link.as_ref().is_some_and(|link| link.admits()),
                has_group: is_me || link.is_some_and(|link| offers(&link)),
            }
        };
        Explained {
            point,
            fingerprint: view.ring_of(group.settings.scope),
            epoch: view.epoch,
            owners: view.owners(group.settings.scope),
            candidates: view.candidates(group.settings.scope, point).take(TOLD).map(candidate).collect(),
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, fingerprint, epoch, owners, candidates } = self;
        let Some((owner, successors)) = candidates.split_first() else { return f.write_str("nobody owns it yet") };
        write!(f, "{owner} owns it: the first of {owners} owners from point {point:016x} ")?;
        write!(f, "of ring {fingerprint:016x} on (view {epoch}); ")?;
        match self.asked() {
            Some(asked) if asked.is_me => f.write_str("a get that misses loads it here")?,
            Some(asked) => write!(f, "a get that misses asks {}", asked.id)?,
            None => f.write_str("no candidate can be asked, a get that misses loads it here")?,
        }
        for (n, successor) in successors.iter().enumerate() {
            write!(f, "{} {successor}", if n == 0 { "; then" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        match self {
            Self { is_me: true, .. } => f.write_str(" (here)"),
            Self { is_reachable: false, .. } => f.write_str(" (unreachable)"),
            Self { has_group: false, .. } => f.write_str(" (without the group)"),
            _ => Ok(()),
        }
    }
}
