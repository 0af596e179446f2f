//! Previous views: the views that a node remembers for the hand-over, and the peers that it receives values from.
//!
//! A view is remembered when the next view has other owners, for 10 minutes at most. The previous view of a joining
//! node is its first view without the node itself, because the other members owned its keys. Previous-owner reads
//! (`engine/previous_owner.rs`) ask the owners of these views for one key. Transfers (`node/handover.rs`) receive pages
//! from the peers of [`PreviousViews::sources`], and from all members once the ring is quiet.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    identity::{NodeState, PeerId},
    membership::{
        stabilizer::MemberSet,
        view::{Scope, View},
    },
    ring::POINTS_PER_WEIGHT,
    runtime::{clock::later, sync::Mutex, token_bucket::TokenBucket},
};

/// Maximum time for which the owners of a previous view are asked. Valuable entries are received within seconds, and
/// the remaining ones are requested seldom.
const WINDOW: Duration = Duration::from_secs(600);

/// Maximum number of previous views. A key that has moved more often within [`WINDOW`] is loaded.
const REMEMBERED: usize = 64;
/// Maximum number of ring points of all previous views together, which are 60 MiB: eight views of 1,000 nodes of weight
/// 1, or one of 500 nodes of weight 16. The newest view is remembered whatever its size.
const REMEMBERED_POINTS: usize = 8 * 1024 * POINTS_PER_WEIGHT as usize;

/// Time for which the ring must be unchanged before a joining node receives cold entries too, and not only the recently
/// used ones. During a rolling deploy, entries that move earlier would have to move again with the next node that
/// leaves.
const QUIET: Duration = Duration::from_secs(30);

/// Time after joining during which a node treats peers that it sees for the first time as previous owners. Peers that
/// it sees first after that have joined themselves or were away. Their earlier values are requested once the
/// ring is quiet.
const NEW_HERE: Duration = Duration::from_secs(60);

/// Maximum time by which a transfer may be ahead of its rate.
const SLACK: Duration = Duration::from_millis(10);

/// The previous views of a node, and its sources of values.
#[derive(Debug)]
pub(crate) struct PreviousViews {
    /// Whether the hand-over is enabled.
    pub(crate) is_on: bool,
    /// Previous views, the newest first.
    views: ArcSwap<Vec<PreviousView>>,
    /// Coarse time until which the newest previous view is read; 0 if there is none. In a quiet cluster a load reads
    /// nothing else.
    open_until_ms: AtomicU64,
    /// Coarse time until which views that the budget has no room for would be read; 0 if there is none.
    forgotten_until_ms: AtomicU64,
    /// Number of the newest previous view.
    number: AtomicU64,
    /// Coarse time at which this node began to own keys; 0 before that.
    joined_at_ms: AtomicU64,
    /// Peers that may hold values for keys that this node owns now, and that were not taken out yet.
    sources: Mutex<BTreeSet<PeerId>>,
    /// All sources of the last change, whether they were taken out or not.
    last_sources: Mutex<BTreeSet<PeerId>>,
    /// Signal that sources were added.
    updates: watch::Sender<()>,
    /// Rate limit of the bytes that this node sends.
    pub(crate) send_rate: ByteRate,
    /// Rate limit of the bytes that this node receives.
    pub(crate) receive_rate: ByteRate,
}

/// Byte-rate limiter of one direction of the hand-over.
#[derive(Debug)]
pub(crate) struct ByteRate(Mutex<TokenBucket>);

impl ByteRate {
    fn new(bytes_per_second: u64) -> Self {
        Self(Mutex::new(TokenBucket::new(bytes_per_second as f64, 0.0)))
    }

    /// Spends bytes after all earlier spending fits the rate.
    pub(crate) async fn spend(&self, bytes: u64) {
        let wait = self.0.lock().spend(bytes as f64, Instant::now());
        // A shorter wait is skipped: a timer may be a millisecond late, which is more than a page takes.
        if wait >= SLACK {
            sleep(wait).await;
        }
    }
}

/// A view that was replaced by one with other owners.
#[derive(Clone, Debug)]
pub(crate) struct PreviousView {
    /// Number of the view, which grows with each previous view.
    pub(crate) number: u64,
    pub(crate) view: Arc<View>,
    /// Coarse time at which the view was replaced.
    pub(crate) since_ms: u64,
}

impl PreviousView {
    /// Returns whether the owners of this view may still hold values that live for `longest` at most.
    pub(crate) fn is_open(&self, now_ms: u64, longest: Option<Duration>) -> bool {
        now_ms < later(self.since_ms, longest.map_or(WINDOW, |longest| longest.min(WINDOW)))
    }
}

impl PreviousViews {
    pub(crate) fn new(is_on: bool, bytes_per_second: u64) -> Self {
        Self {
            is_on,
            views: ArcSwap::default(),
            open_until_ms: AtomicU64::new(0),
            forgotten_until_ms: AtomicU64::new(0),
            number: AtomicU64::new(0),
            joined_at_ms: AtomicU64::new(0),
            sources: Mutex::default(),
            last_sources: Mutex::default(),
            updates: watch::Sender::new(()),
            send_rate: ByteRate::new(bytes_per_second),
            receive_rate: ByteRate::new(bytes_per_second),
        }
    }

    /// Returns a receiver that is notified when sources were added.
    pub(crate) fn updates(&self) -> watch::Receiver<()> {
        self.updates.subscribe()
    }

    /// Takes out the peers that may hold values for keys that this node owns now.
    pub(crate) fn sources(&self) -> BTreeSet<PeerId> {
        std::mem::take(&mut *self.sources.lock())
    }

    /// Does the same as [`on_next_view`](Self::on_next_view) with a view that nothing was prepared for.
    #[cfg(test)]
    pub(crate) fn on_view_change(&self, before: Arc<View>, now: &View, scope: Scope, now_ms: u64) {
        let without_me = NextView::without_me(&before, now);
        self.record(before, without_me, now, scope, now_ms);
    }

    /// Records that a view replaces another one, if their owners differ. The call comes before the new view is installed,
    /// so that every reader of the new view finds the previous one.
    ///
    /// A peer that begins to drain is a source whatever this node has seen of it. The peer may have become ready and
    /// begun to drain between two views of this node, and holds values of the keys that it owned by its own view.
    pub(crate) fn on_next_view(&self, next: &NextView, scope: Scope, now_ms: u64) {
        self.record(Arc::clone(&next.before), next.without_me.clone(), &next.view, scope, now_ms);
    }

    fn record(&self, before: Arc<View>, without_me: Option<Arc<View>>, now: &View, scope: Scope, now_ms: u64) {
        let draining = newly_draining(&before, now);
        let before = match without_me {
            Some(without_me) => {
                self.joined_at_ms.store(now_ms.max(1), Relaxed);
                without_me
            }
            None => before,
        };
        let is_same = before.fingerprint() == now.fingerprint() && before.ring_of(scope) == now.ring_of(scope);
        if !self.is_on {
            return;
        }
        if is_same || before.owners(Scope::Cluster) == 0 {
            return self.add_sources(draining);
        }
        let is_new_here = now_ms < later(self.joined_at_ms.load(Relaxed), NEW_HERE);
        let mut sources = sources(&before, now, is_new_here);
        sources.extend(draining);
        let number = self.number() + 1;
        let mut all = vec![PreviousView { number, view: before, since_ms: now_ms }];
        let others = self.views.load_full();
        let mut points = all.iter().map(|previous| previous.view.points()).sum::<usize>();
        let is_remembered = |(at, previous): &(usize, &PreviousView)| {
            points += previous.view.points();
            at + 1 < REMEMBERED && points <= REMEMBERED_POINTS
        };
        let open = || others.iter().filter(|previous| previous.is_open(now_ms, None)).enumerate();
        all.extend(open().take_while(is_remembered).map(|(_, previous)| previous.clone()));
        if let Some((_, forgotten)) = open().nth(all.len() - 1) {
            self.forgotten_until_ms.fetch_max(later(forgotten.since_ms, WINDOW), Release);
        }
        self.views.store(Arc::new(all));
        self.number.store(number, Release);
        self.open_until_ms.store(later(now_ms, WINDOW), Release);
        self.last_sources.lock().clone_from(&sources);
        self.sources.lock().extend(sources);
        self.updates.send_replace(());
    }

    /// Adds sources that are no previous owners.
    fn add_sources(&self, sources: BTreeSet<PeerId>) {
        if !sources.is_empty() {
            self.sources.lock().extend(sources);
            self.updates.send_replace(());
        }
    }

    /// Returns whether there is a previous view to read.
    pub(crate) fn is_open(&self, now_ms: u64) -> bool {
        now_ms < self.open_until_ms.load(Acquire)
    }

    /// Returns whether a view that would be read is forgotten for want of room, so that not all previous owners are known.
    pub(crate) fn has_forgotten(&self, now_ms: u64) -> bool {
        now_ms < self.forgotten_until_ms.load(Acquire)
    }

    /// Returns whether the ring has been unchanged for [`QUIET`].
    pub(crate) fn is_quiet(&self, now_ms: u64) -> bool {
        self.views.load().first().is_none_or(|newest| now_ms >= later(newest.since_ms, QUIET))
    }

    /// Returns the number of the newest previous view.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Acquire)
    }

    /// Adds the sources of the last change again for a new group, which was not here when its keys moved to this node.
    pub(crate) fn group_added(&self, now_ms: u64) {
        if self.is_open(now_ms) {
            let sources = self.last_sources.lock().clone();
            self.sources.lock().extend(sources);
            self.updates.send_replace(());
        }
    }

    /// Returns the previous views, the newest first.
    pub(crate) fn previous_views(&self) -> Arc<Vec<PreviousView>> {
        self.views.load_full()
    }

    /// Forgets all previous views once none is read any more.
    pub(crate) fn sweep(&self, now_ms: u64) {
        if !self.is_open(now_ms) && self.open_until_ms.load(Relaxed) > 0 {
            self.views.store(Arc::default());
        }
    }
}

/// View that is to replace another one, with all of its rings.
pub(crate) struct NextView {
    pub(crate) view: Arc<View>,
    before: Arc<View>,
    /// Previous view of a node that has just joined.
    without_me: Option<Arc<View>>,
}

impl NextView {
    /// Makes the view, with the rings of the scope. The time grows with the points of the ring.
    pub(crate) fn new(before: Arc<View>, epoch: u64, members: MemberSet, scope: Scope) -> Self {
        let next = Self::of(before, View::new(epoch, members));
        std::iter::once(&next.view).chain(&next.without_me).for_each(|view| view.prepare(scope));
        next
    }

    /// Makes the next view of a view.
    pub(crate) fn of(before: Arc<View>, view: View) -> Self {
        let without_me = Self::without_me(&before, &view);
        Self { view: Arc::new(view), before, without_me }
    }

    /// Returns the previous view of a node that has just joined. Such a node has seen only itself before, so that its
    /// previous view is the new one without this node, because the other members owned its keys.
    fn without_me(before: &View, now: &View) -> Option<Arc<View>> {
        let knew_others = before.members().iter().any(|member| member.dial.is_some() && member.share > 0);
        let has_joined = local_share(now) > 0 && (local_share(before) == 0 || !knew_others);
        has_joined.then(|| Arc::new(now.without_me(before.epoch)))
    }
}

/// Returns the share of the local node.
fn local_share(view: &View) -> u8 {
    view.members().iter().find(|member| member.dial.is_none()).map_or(0, |member| member.share)
}

/// Returns the peers that may hold values for keys that this node owns now.
///
/// If the share of this node grew, these are all previous owners, and draining peers, because their hand-over may be
/// incomplete. Otherwise they are the peers with a smaller share than before. A node that has joined lately
/// (`is_new_here`) also asks the owners that it sees for the first time.
fn sources(before: &View, now: &View, is_new_here: bool) -> BTreeSet<PeerId> {
    if local_share(now) == 0 {
        return BTreeSet::new();
    }
    let owns_more = local_share(now) > local_share(before);
    let previous = before.members().iter().filter(|member| match owns_more {
        true => member.share > 0 || member.state == NodeState::Draining,
        false => share_of(now, &member.id) < member.share,
    });
    let first_seen = now.members().iter().filter(|member| member.share > 0 && share_of(before, &member.id) == 0);
    let others = previous.chain(first_seen.filter(|_| is_new_here)).filter(|member| member.dial.is_some());
    others.map(|member| member.id.clone()).collect()
}

/// Returns the peers that drain now and did not drain before. A node that owns nothing receives from none.
fn newly_draining(before: &View, now: &View) -> BTreeSet<PeerId> {
    if local_share(now) == 0 {
        return BTreeSet::new();
    }
    let drains = |view: &View, id: &PeerId| {
        view.members().iter().any(|member| member.id == *id && member.state == NodeState::Draining)
    };
    let peers = now.members().iter().filter(|member| member.dial.is_some() && member.state == NodeState::Draining);
    peers.filter(|peer| !drains(before, &peer.id)).map(|peer| peer.id.clone()).collect()
}

/// Returns the share of a member; 0 if it is not in the view.
fn share_of(view: &View, id: &PeerId) -> u8 {
    view.members().iter().find(|member| member.id == *id).map_or(0, |member| member.share)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        identity::Incarnation,
        membership::stabilizer::{DialId, Member, MemberSet},
    };

    /// Makes a view of the local node `a` and of others, with these shares.
    pub(crate) fn view(epoch: u64, shares: &[(&str, u8)]) -> View {
        let member = |(at, (id, share)): (usize, &(&str, u8))| Member {
            id: PeerId::new(id).unwrap(),
            incarnation: Incarnation(1),
            state: if *share > 0 { NodeState::Ready } else { NodeState::Draining },
            weight: 1,
            share: *share,
            zone: "".into(),
            addresses: Vec::new(),
            dial: (*id != "a").then_some(DialId(at as u64)),
        };
        View::new(epoch, MemberSet { members: shares.iter().enumerate().map(member).collect() })
    }

    /// Checks that a node with a larger share receives from all previous owners, and otherwise from the peers that lost
    /// keys.
    #[test]
    fn sources_are_all_owners_after_a_join_or_the_leavers() {
        let of = |before: &[(&str, u8)], now: &[(&str, u8)]| {
            let sources = sources(&view(1, before), &view(2, now), false);
            sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let all = [("a", 1), ("b", 1), ("c", 1)];
        assert_eq!(of(&[("a", 0), ("b", 1), ("c", 1)], &all), "b c", "a has joined");
        assert_eq!(of(&all, &[("a", 1), ("b", 0), ("c", 1)]), "b", "b drains");
        assert_eq!(of(&all, &[("a", 1), ("c", 1)]), "b", "b has left");
        assert_eq!(
            of(&[("a", 0), ("b", 0), ("c", 1)], &[("a", 1), ("b", 0), ("c", 1)]),
            "b c",
            "a has joined while b drains"
        );
        assert_eq!(of(&[("a", 1), ("b", 1)], &all), "", "c has joined");
        assert_eq!(of(&all, &[("a", 0), ("b", 1), ("c", 1)]), "", "a drains");
        assert_eq!(of(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 1)]), "b", "b owns less");
    }

    /// Checks that views with other owners are remembered for [`WINDOW`], and that a view with the same owners is not.
    #[test]
    fn views_with_other_owners_are_remembered_for_a_time() {
        let handover = PreviousViews::new(true, 1);
        let all = [("a", 1), ("b", 1)];
        let mut now_ms = 1000;
        let on_view_change = |before: &[(&str, u8)], now: &[(&str, u8)], epoch, now_ms| {
            handover.on_view_change(Arc::new(view(epoch, before)), &view(epoch + 1, now), Scope::Cluster, now_ms);
        };
        on_view_change(&[], &all, 1, now_ms);
        assert_eq!(handover.sources().into_iter().map(|id| id.to_string()).collect::<Vec<_>>(), ["b"], "a has joined");
        assert!(
            handover.previous_views()[0]
                .view
                .members()
                .iter()
                .all(|member| (member.share > 0) == (member.id.as_str() == "b"))
        );
        on_view_change(&all, &all, 2, now_ms);
        assert_eq!(handover.previous_views().len(), 1);
        for epoch in 3..20 {
            now_ms += 1000;
            on_view_change(&all[1..], &all, epoch, now_ms);
        }
        on_view_change(&all[..1], &all, 19, now_ms);
        assert_eq!(handover.sources().len(), 1, "a has seen only itself before");
        let epochs: Vec<_> = handover.previous_views().iter().map(|previous| previous.view.epoch).collect();
        assert_eq!(epochs, [&[19][..], &(3..20).rev().collect::<Vec<_>>(), &[1]].concat());
        assert_eq!(
            (handover.number(), handover.previous_views()[0].number, handover.previous_views()[7].number),
            (19, 19, 12)
        );
        let end_ms = now_ms + WINDOW.as_millis() as u64;
        assert!(handover.is_open(end_ms - 1) && !handover.is_open(end_ms));
        let newest = &handover.previous_views()[0];
        assert!(newest.is_open(now_ms + 999, Some(Duration::from_secs(1))));
        assert!(!newest.is_open(now_ms + 1000, Some(Duration::from_secs(1))), "the values have expired by then");
        handover.sweep(end_ms);
        assert!(handover.previous_views().is_empty());
        on_view_change(&all[1..], &all, 30, end_ms);
        assert_eq!(handover.previous_views().len(), 1);
    }

    /// Checks that a node receives from a peer that it sees for the first time, for a minute after it has joined
    /// itself.
    #[test]
    fn late_seen_peer_is_a_source_only_after_a_join() {
        for (met_ms, sources) in [(59_999, "c"), (61_000, "")] {
            let handover = PreviousViews::new(true, 1);
            let change = |before: &[(&str, u8)], now: &[(&str, u8)], at_ms| {
                handover.on_view_change(Arc::new(view(1, before)), &view(2, now), Scope::Cluster, at_ms);
                handover.sources().iter().map(ToString::to_string).collect::<String>()
            };
            assert_eq!(change(&[("a", 0), ("b", 1)], &[("a", 1), ("b", 1)], 1000), "b");
            assert_eq!(change(&[("a", 1), ("b", 1)], &[("a", 1), ("b", 1), ("c", 1)], met_ms), sources);
        }
    }

    /// Checks that a peer is a source once it drains, although no view of this node has it as an owner.
    #[test]
    fn peer_that_was_no_owner_is_a_source_once_it_drains() {
        let handover = PreviousViews::new(true, 1);
        let change = |before: &[(&str, u8)], now: &[(&str, u8)]| {
            handover.on_view_change(Arc::new(view(1, before)), &view(2, now), Scope::Cluster, 1000);
            handover.sources().iter().map(ToString::to_string).collect::<String>()
        };
        let mut updates = handover.updates();
        assert_eq!(change(&[("a", 1), ("b", 1)], &[("a", 1), ("b", 1), ("c", 0)]), "c", "the ring has not changed");
        assert!(updates.has_changed().unwrap());
        updates.mark_unchanged();
        assert_eq!(change(&[("a", 1), ("b", 1), ("c", 0)], &[("a", 1), ("b", 1), ("c", 0)]), "", "c drains as before");
        assert_eq!(change(&[("a", 0), ("b", 1)], &[("a", 0), ("b", 1), ("c", 0)]), "", "a owns nothing");
        assert!(!updates.has_changed().unwrap() && handover.previous_views().is_empty());
        assert_eq!(change(&[("a", 1), ("b", 1)], &[("a", 1), ("b", 2), ("c", 0)]), "c", "the ring has changed");
    }

    /// Checks that of 70 views 64 are remembered with 2 other nodes, and of 10 views all with 100, 8 with 1,000, 5 with 100
    /// nodes of weight 16, and one with 500 nodes of weight 16.
    #[test]
    fn remembered_views_are_bounded_by_ring_points() {
        let remembered = |(changes, others, weight): (usize, usize, u8)| {
            let (handover, ids) =
                (PreviousViews::new(true, 1), (0..others).map(|n| format!("n{n}")).collect::<Vec<_>>());
            let all: Vec<_> = [("a", 1)].into_iter().chain(ids.iter().map(|id| (id.as_str(), weight))).collect();
            let views = [Arc::new(view(1, &all)), Arc::new(view(2, &all[..others]))];
            for n in 0..changes {
                handover.on_view_change(Arc::clone(&views[n % 2]), &views[(n + 1) % 2], Scope::Cluster, 1000);
            }
            assert_eq!(handover.has_forgotten(1000), handover.previous_views().len() < changes);
            assert!(!handover.has_forgotten(1000 + WINDOW.as_millis() as u64));
            handover.previous_views().len()
        };
        let clusters = [(70, 2, 1), (10, 100, 1), (10, 1000, 1), (10, 100, 16), (4, 500, 16)];
        assert_eq!(clusters.map(remembered), [64, 10, 8, 5, 1]);
    }

    /// Checks that the ring is quiet at the start, and otherwise 30 s after its last change.
    #[test]
    fn ring_is_quiet_30_s_after_its_last_change() {
        let handover = PreviousViews::new(true, 1);
        assert!(handover.is_quiet(0), "no key has moved");
        for at_ms in [1000, 5000] {
            let all = [("a", 1), ("b", 1)];
            handover.on_view_change(Arc::new(view(1, &all[1..])), &view(2, &all), Scope::Cluster, at_ms);
        }
        assert!(!handover.is_quiet(34_999) && handover.is_quiet(35_000));
    }

    /// Checks that no view is remembered while the hand-over is disabled.
    #[test]
    fn disabled_handover_remembers_no_view() {
        let handover = PreviousViews::new(false, 1);
        handover.on_view_change(Arc::new(view(1, &[("a", 1)])), &view(2, &[("a", 1), ("b", 1)]), Scope::Cluster, 1000);
        assert!(!handover.is_open(1000) && handover.sources().is_empty());
    }

    /// Checks that spending waits until all earlier spending fits the rate.
    #[tokio::test(start_paused = true)]
    async fn spending_waits_for_earlier_spending() {
        let (rate, begun) = (ByteRate::new(1000), Instant::now());
        // The last wait is shorter than a timer may be late, and is skipped.
        for (bytes, at_ms) in [(500, 0), (20, 500), (5, 520), (0, 520)] {
            rate.spend(bytes).await;
            assert_eq!(begun.elapsed().as_millis(), at_ms);
        }
    }
}
