//! Peers as the writes see them: the company of this node, what each peer has acknowledged, and the closure.
//!
//! The company are the members, and each node that is connected, listed or not, each in one incarnation. A node leaves
//! the company by its goodbye, or when discovery has removed it and it has no connection; a node that discovery never
//! listed leaves [`UNLISTED_STAYS`] after its connection ends.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    identity::{Incarnation, Instance, PeerId},
    protocol::message::{Bounds, Company},
    write::index::Positions,
};

/// Time after the end of its connection for which a node that discovery never listed stays in the company.
const UNLISTED_STAYS: Duration = Duration::from_secs(60);

/// Time of absence after which other nodes may have forgotten writes: less than logs reach back, because a value may
/// have been loaded a while before it was stored.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(50 * 60);

/// Maximum number of peers that are neither connected nor listed. Beyond it the one that was heard first is forgotten.
const MAX_ABSENT: usize = 2_000;

/// Pong that waits until this node has applied what the pong has shown.
#[derive(Debug)]
pub(super) struct Pong {
    /// Time at which the ping left.
    pub(super) left_ms: u64,
    /// Positions that this node lacks.
    pub(super) lacking: Vec<(Instance, u64)>,
}

/// Peer in its present incarnation.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    /// Whether the peer keeps logs, by its Hello. A peer of an earlier release does not.
    pub(super) has_log: bool,
    connections: usize,
    is_listed: bool,
    was_listed: bool,
    has_left: bool,
    /// Whether the peer was ever connected. Another node's company may name a peer that this node has not met.
    is_met: bool,
    /// Time at which a connection began or ended last.
    gone_ms: u64,
    /// Positions that the peer has shown.
    pub(super) positions: Positions,
    /// Number of the own log up to which the peer has acknowledged every write.
    pub(super) acknowledged: u64,
    /// Numbers after a gap that a peer of an earlier release has acknowledged one by one.
    ahead: BTreeSet<u64>,
    /// Number up to which the peer had acknowledged every write when this node looked last.
    pub(super) unacknowledged_after: Option<u64>,
    /// Company that the peer has shown last.
    pub(super) company: Option<Arc<Company>>,
    /// Whether the discovery of the peer listed this node when the peer was last heard.
    pub(super) lists_us: bool,
    /// Bounds of the peer's groups, by its Hello.
    pub(super) bounds: BTreeMap<Arc<str>, Bounds>,
    /// Pongs that wait, the first one at the front.
    pub(super) pongs: VecDeque<Pong>,
    /// Time by which this node has applied everything that the peer had written or heard; the `c` of the peer.
    pub(super) applied_ms: Option<u64>,
    /// Wide changes of the own logs, all of which the peer has said to have.
    pub(super) wide_said: Option<u64>,
}

impl Peer {
    fn is_in_company(&self, now_ms: u64) -> bool {
        let stays_unlisted =
            || !self.was_listed && now_ms.saturating_sub(self.gone_ms) < UNLISTED_STAYS.as_millis() as u64;
        self.is_met && !self.has_left && (self.connections > 0 || self.is_listed || stays_unlisted())
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connections > 0
    }

    pub(super) fn is_listed(&self) -> bool {
        self.is_listed
    }
}

/// Change of the company.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CompanyChange {
    pub(super) has_changed: bool,
    /// Whether a node left, or returned in another incarnation.
    pub(super) has_lost: bool,
    /// Whether a node entered.
    pub(super) has_gained: bool,
}

/// The peers and the company.
#[derive(Debug)]
pub(super) struct Peers {
    own: Instance,
    pub(super) by_id: BTreeMap<PeerId, Peer>,
    company: Arc<Company>,
    /// Nodes that must acknowledge a write: the company, their companies, and so on.
    closure: Option<Vec<Instance>>,
    /// Number up to which every node of the closure has acknowledged, and how many of them no further.
    progress: Option<(u64, usize)>,
    /// Time since which the company has no member.
    alone_since_ms: Option<u64>,
}

impl Peers {
    pub(super) fn new(own: Instance, now_ms: u64) -> Self {
        let company = Arc::new(Company { version: 1, members: Vec::new() });
        Self { own, by_id: BTreeMap::new(), company, closure: None, progress: None, alone_since_ms: Some(now_ms) }
    }

    pub(super) fn company(&self) -> &Arc<Company> {
        &self.company
    }

    /// Records a Hello. `is_new` is set for the first Hello of a connection, after which the peer is the process of this
    /// connection: the numbers of incarnations do not order processes, because a clock may have been set back.
    pub(super) fn greeted(&mut self, instance: &Instance, has_log: bool, is_new: bool, now_ms: u64) {
        if instance.id == self.own.id {
            return;
        }
        let is_known = self.by_id.get(&instance.id).is_some_and(|peer| peer.incarnation == instance.incarnation);
        if is_new && !is_known {
            self.replace(instance);
        }
        if let Some(peer) = self.of(instance) {
            peer.has_log = has_log;
            peer.connections += usize::from(is_new);
            peer.is_met = true;
            peer.gone_ms = now_ms;
        }
        if is_new {
            self.closure_changed();
        }
    }

    /// Returns whether a node that connects now was away for nearly as long as logs reach back, or whether this node
    /// was alone for so long. Writes may be forgotten by then.
    pub(super) fn was_away(&self, instance: &Instance, now_ms: u64) -> bool {
        let is_long = |since_ms: u64| now_ms.saturating_sub(since_ms) > REMEMBERED.as_millis() as u64;
        let peer = self.by_id.get(&instance.id);
        let was_gone = peer.is_some_and(|peer| peer.connections == 0 && peer.is_met && is_long(peer.gone_ms));
        was_gone || self.alone_since_ms.is_some_and(is_long)
    }

    /// Records the end of a connection.
    pub(super) fn disconnected(&mut self, instance: &Instance, now_ms: u64) {
        if let Some(peer) = self.of(instance) {
            peer.connections = peer.connections.saturating_sub(1);
            peer.gone_ms = now_ms;
            self.closure_changed();
        }
    }

    pub(super) fn said_goodbye(&mut self, instance: &Instance) {
        if let Some(peer) = self.of(instance) {
            peer.has_left = true;
        }
    }

    /// Records the peers that discovery lists.
    pub(super) fn listed(&mut self, ids: &BTreeSet<PeerId>) {
        for (id, peer) in &mut self.by_id {
            peer.is_listed = ids.contains(id);
            peer.was_listed |= peer.is_listed;
        }
    }

    /// Returns a peer, unless the known one has another incarnation.
    pub(super) fn of(&mut self, instance: &Instance) -> Option<&mut Peer> {
        self.by_id.get_mut(&instance.id).filter(|peer| peer.incarnation == instance.incarnation)
    }

    /// Computes the company again, and forgets peers that are gone.
    pub(super) fn refresh(&mut self, now_ms: u64) -> CompanyChange {
        let in_company = self.by_id.iter().filter(|(_, peer)| peer.is_in_company(now_ms));
        let members: Vec<Instance> =
            in_company.map(|(id, peer)| Instance { id: id.clone(), incarnation: peer.incarnation }).collect();
        if members == self.company.members {
            return CompanyChange::default();
        }
        let has_lost = self.company.members.iter().any(|member| !members.contains(member));
        let has_gained = members.iter().any(|member| !self.company.members.contains(member));
        self.company = Arc::new(Company { version: self.company.version + 1, members });
        self.alone_since_ms = self.company.members.is_empty().then_some(now_ms);
        self.closure_changed();
        self.forget_absent(now_ms);
        CompanyChange { has_changed: true, has_lost, has_gained }
    }

    fn forget_absent(&mut self, now_ms: u64) {
        let absent = |peer: &Peer| peer.connections == 0 && !peer.is_in_company(now_ms);
        // A node keeps no position of peers that are gone.
        self.by_id.values_mut().filter(|peer| absent(peer)).for_each(|peer| peer.positions.clear());
        let count = self.by_id.values().filter(|peer| absent(peer)).count();
        for _ in MAX_ABSENT..count {
            let absent = self.by_id.iter().filter(|(_, peer)| absent(peer));
            let Some(first) = absent.min_by_key(|(_, peer)| peer.gone_ms).map(|(id, _)| id.clone()) else { return };
            self.by_id.remove(&first);
        }
    }

    /// Records the company of a node, which it has shown itself, or which another node passes on.
    pub(super) fn showed_company(&mut self, instance: &Instance, company: Company) {
        if instance.id == self.own.id {
            return;
        }
        // A node that is connected to the peer knows better than this node, unless this node is connected too.
        let is_stale = |peer: &Peer| peer.incarnation != instance.incarnation && peer.connections == 0;
        if self.by_id.get(&instance.id).is_none_or(is_stale) {
            self.replace(instance);
        }
        let Some(peer) = self.of(instance) else { return };
        if peer.company.as_ref().is_none_or(|known| known.version < company.version) {
            peer.company = Some(Arc::new(company));
            self.closure_changed();
        }
    }

    /// Makes a peer in a new incarnation, of which only the listing of the earlier one is kept.
    fn replace(&mut self, instance: &Instance) {
        let before = self.by_id.remove(&instance.id);
        let (is_listed, was_listed) = before.map_or((false, false), |peer| (peer.is_listed, peer.was_listed));
        let peer = Peer { incarnation: instance.incarnation, is_listed, was_listed, ..Peer::default() };
        self.by_id.insert(instance.id.clone(), peer);
        self.closure_changed();
    }

    fn closure_changed(&mut self) {
        self.closure = None;
        self.progress = None;
    }

    /// Records that a node has applied every write of the own log up to `number`.
    pub(super) fn acknowledged(&mut self, instance: &Instance, number: u64) {
        let Some(peer) = self.of(instance) else { return };
        let before = peer.acknowledged;
        peer.acknowledged = before.max(number);
        let has_moved = peer.acknowledged > before;
        self.has_moved(before, has_moved);
    }

    /// Computes the progress again once the last node that held it has moved on.
    fn has_moved(&mut self, before: u64, has_moved: bool) {
        if let Some((slowest, count)) = &mut self.progress
            && has_moved
            && *slowest == before
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.progress = None;
            }
        }
    }

    /// Records that a peer of an earlier release has dropped the value of a write.
    pub(super) fn acknowledged_one(&mut self, instance: &Instance, number: u64) {
        let Some(peer) = self.of(instance) else { return };
        let before = peer.acknowledged;
        peer.ahead.insert(number);
        while peer.ahead.remove(&(peer.acknowledged + 1)) {
            peer.acknowledged += 1;
        }
        peer.ahead = peer.ahead.split_off(&peer.acknowledged);
        let has_moved = peer.acknowledged > before;
        self.has_moved(before, has_moved);
    }

    /// Returns the nodes that must acknowledge a write: those of the company, of the companies that they have shown,
    /// and so on, without this node.
    ///
    /// The company of a node that has not acknowledged counts too. A write waits for that node anyway, and its
    /// acknowledgement shows its company of that moment or later.
    pub(super) fn closure(&mut self) -> &[Instance] {
        if self.closure.is_none() {
            let mut found: BTreeSet<Instance> = self.company.members.iter().cloned().collect();
            let mut to_visit: Vec<Instance> = self.company.members.clone();
            while let Some(node) = to_visit.pop() {
                let company = self.known(&node).and_then(|peer| peer.company.as_ref());
                for member in company.iter().flat_map(|company| &company.members) {
                    let member = self.present(member);
                    let is_left = self.known(&member).is_some_and(|peer| peer.has_left);
                    if mutant!(ClosureLeftOut) || member.id == self.own.id || is_left {
                        continue;
                    }
                    if found.insert(member.clone()) {
                        to_visit.push(member);
                    }
                }
            }
            self.closure = Some(found.into_iter().collect());
        }
        self.closure.as_deref().unwrap_or_default()
    }

    fn known(&self, instance: &Instance) -> Option<&Peer> {
        self.by_id.get(&instance.id).filter(|peer| peer.incarnation == instance.incarnation)
    }

    /// Returns the present incarnation of a node: the one of a connection, if there is one.
    fn present(&self, instance: &Instance) -> Instance {
        let connected = self.by_id.get(&instance.id).filter(|peer| peer.is_connected());
        let incarnation = connected.map_or(instance.incarnation, |peer| peer.incarnation);
        Instance { id: instance.id.clone(), incarnation }
    }

    /// Returns the number up to which a node has acknowledged every write.
    pub(super) fn acknowledged_by(&self, node: &Instance) -> u64 {
        self.known(node).map_or(0, |peer| peer.acknowledged)
    }

    /// Returns the number up to which every node of the closure has acknowledged; `u64::MAX` for an empty closure.
    pub(super) fn acknowledged_by_all(&mut self) -> u64 {
        if let Some((slowest, _)) = self.progress {
            return slowest;
        }
        self.closure();
        let (mut slowest, mut count) = (u64::MAX, 0);
        for node in self.closure.iter().flatten() {
            let acknowledged = self.acknowledged_by(node);
            if acknowledged < slowest {
                (slowest, count) = (acknowledged, 0);
            }
            count += usize::from(acknowledged == slowest);
        }
        self.progress = Some((slowest, count));
        slowest
    }

    /// Returns whether the company that a peer has shown, with the peer itself, is the company of this node, with this
    /// node itself.
    pub(super) fn has_same_company(&self, instance: &Instance) -> bool {
        let Some(shown) = self.by_id.get(&instance.id).and_then(|peer| peer.company.as_ref()) else { return false };
        let theirs: BTreeSet<&Instance> = shown.members.iter().chain([instance]).collect();
        let ours: BTreeSet<&Instance> = self.company.members.iter().chain([&self.own]).collect();
        theirs == ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, incarnation: u64) -> Instance {
        Instance { id: PeerId::new(id).unwrap(), incarnation: Incarnation(incarnation) }
    }

    fn peers() -> Peers {
        Peers::new(instance("me", 1), 0)
    }

    fn ids(peers: &Peers) -> Vec<&str> {
        peers.company().members.iter().map(|member| member.id.as_str()).collect()
    }

    fn list(peers: &mut Peers, names: &[&str]) {
        peers.listed(&names.iter().map(|name| PeerId::new(name).unwrap()).collect());
    }

    /// Checks when a node is in the company: while it is connected or listed, and an unlisted node for a minute longer.
    #[test]
    fn node_leaves_company_unlisted_and_unconnected() {
        let mut peers = peers();
        list(&mut peers, &["a", "never-met"]);
        for id in ["a", "unlisted"] {
            peers.greeted(&instance(id, 7), true, true, 0);
        }
        list(&mut peers, &["a", "never-met"]);
        assert_eq!(peers.refresh(0), CompanyChange { has_changed: true, has_lost: false, has_gained: true });
        assert_eq!(ids(&peers), ["a", "unlisted"], "a target that never answered is no node");
        for id in ["a", "unlisted"] {
            peers.disconnected(&instance(id, 7), 1000);
        }
        assert_eq!(peers.refresh(60_999), CompanyChange::default());
        assert_eq!(peers.refresh(61_000), CompanyChange { has_changed: true, has_lost: true, has_gained: false });
        assert_eq!(ids(&peers), ["a"]);
        list(&mut peers, &[]);
        peers.refresh(61_000);
        assert!(ids(&peers).is_empty());
    }

    /// Checks that a goodbye ends the membership of one incarnation, and that the next one is a node of its own.
    #[test]
    fn restarted_node_is_another_instance() {
        let mut peers = peers();
        peers.greeted(&instance("a", 7), true, true, 0);
        peers.refresh(0);
        peers.acknowledged(&instance("a", 7), 5);
        peers.said_goodbye(&instance("a", 7));
        assert!(peers.refresh(0).has_lost && ids(&peers).is_empty());
        peers.greeted(&instance("a", 8), true, false, 0);
        assert!(!peers.refresh(0).has_changed, "a later Hello of an earlier connection");
        peers.greeted(&instance("a", 8), true, true, 0);
        assert!(peers.refresh(0).has_changed);
        assert_eq!(peers.company().members, [instance("a", 8)]);
        peers.acknowledged(&instance("a", 7), 6);
        peers.said_goodbye(&instance("a", 7));
        assert_eq!((peers.acknowledged_by(&instance("a", 8)), peers.refresh(0).has_changed), (0, false));
        peers.greeted(&instance("a", 3), true, true, 0);
        assert!(peers.refresh(0).has_lost, "a node that returns in another incarnation has lost what it held");
    }

    /// Checks that the nodes in the companies of others must acknowledge too, however far away they are.
    #[test]
    fn closure_has_companies_of_companies() {
        let mut peers = peers();
        peers.greeted(&instance("a", 1), true, true, 0);
        peers.refresh(0);
        let company = |version, names: &[&str]| Company {
            version,
            members: names.iter().map(|name| instance(name, 1)).collect(),
        };
        peers.acknowledged(&instance("a", 1), 5);
        assert_eq!(peers.acknowledged_by_all(), 5);
        peers.showed_company(&instance("a", 1), company(2, &["b", "me"]));
        assert_eq!(peers.acknowledged_by_all(), 0);
        peers.showed_company(&instance("b", 1), company(1, &["a", "c"]));
        peers.acknowledged(&instance("b", 1), 7);
        assert_eq!((peers.acknowledged_by_all(), peers.closure().len()), (0, 3), "c is known from b only");
        peers.showed_company(&instance("c", 1), company(1, &["b"]));
        peers.acknowledged(&instance("c", 1), 6);
        assert_eq!(peers.acknowledged_by_all(), 5);
        peers.showed_company(&instance("a", 1), company(1, &["d"]));
        assert_eq!(peers.acknowledged_by_all(), 5, "an earlier version says nothing");
    }

    /// Checks that a peer of an earlier release has acknowledged the writes before the first one that it lacks.
    #[test]
    fn single_acknowledgements_count_without_gaps() {
        let (mut peers, old) = (peers(), instance("old", 0));
        peers.greeted(&old, false, true, 0);
        for (number, acknowledged) in [(2, 0), (1, 2), (4, 2), (5, 2), (3, 5), (3, 5)] {
            peers.acknowledged_one(&old, number);
            assert_eq!(peers.acknowledged_by(&old), acknowledged, "after {number}");
        }
    }

    /// Checks that a pong counts for the horizon only if its sender has the same company.
    #[test]
    fn same_company_includes_both_nodes() {
        let (mut peers, a) = (peers(), instance("a", 1));
        peers.greeted(&a, true, true, 0);
        peers.greeted(&instance("b", 1), true, true, 0);
        peers.refresh(0);
        let mut show = |version, names: &[&str]| {
            let members = names.iter().map(|name| instance(name, 1)).collect();
            peers.showed_company(&a, Company { version, members });
            peers.has_same_company(&a)
        };
        assert!(!show(1, &["me"]) && show(2, &["b", "me"]) && !show(3, &["b", "c", "me"]));
    }
}
