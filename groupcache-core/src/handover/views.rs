//! Values change hands when keys do: what a node remembers of the views before this one.
//!
//! A value is only ever handed out to who asks for it. A node that owns a key now asks who owned it before: for one
//! key before it is loaded (`group/previous_views.rs`), and for all of them, a page at a time, in the background
//! (`node/handover.rs`).

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
    membership::view::{Scope, View},
    runtime::{clock::later, sync::Mutex, token_bucket::TokenBucket},
};

/// How long the owners of a former view are asked, at most: what is worth much is pulled within seconds, and what is left
/// is asked for now and then.
const WINDOW: Duration = Duration::from_secs(600);

/// Views that are remembered, as long as they have so many members in all: a key that has moved more often within the
/// window is loaded. A view of a thousand nodes takes some megabytes; of that size so many are remembered at least.
const REMEMBERED: usize = 64;
/// See [`REMEMBERED`].
const REMEMBERED_MEMBERS: usize = 4096;
/// See [`REMEMBERED`].
const REMEMBERED_AT_LEAST: usize = 8;

/// For so long a ring must have been the same before those who have come are handed everything, and not only what was used
/// lately: in a deploy what they get now would move once more in a moment, with those that leave.
const QUIET: Duration = Duration::from_secs(30);

/// For so long after it has come a node takes those it meets for the first time for former owners that it should have met
/// before. Later they are new, or were cut off: what they have of then is asked for when the ring is quiet, once they
/// have heard of the writes that they have missed.
const NEW_HERE: Duration = Duration::from_secs(60);

/// How far whoever spends may be ahead of its pace.
const SLACK: Duration = Duration::from_millis(10);

/// What a node remembers of the views before this one.
#[derive(Debug)]
pub(crate) struct PreviousViews {
    /// Values change hands at all.
    pub(crate) is_on: bool,
    /// The newest first.
    previous_views: ArcSwap<Vec<PreviousView>>,
    /// Until then the newest of them counts: all that a load looks at in quiet times. 0 = there is none.
    open_until_ms: AtomicU64,
    /// The number of the newest.
    number: AtomicU64,
    /// When this node came to own something; 0 = it has not yet.
    joined_at_ms: AtomicU64,
    /// Who may have what is this node's now.
    sources: Mutex<BTreeSet<PeerId>>,
    /// The same of the last change, whether it was taken out or not.
    last: Mutex<BTreeSet<PeerId>>,
    updates: watch::Sender<()>,
    /// What this node hands over, and what it takes over.
    pub(crate) send_rate: Pace,
    pub(crate) receive_rate: Pace,
}

/// A byte-rate limiter of one direction of the hand-over.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<TokenBucket>);

impl Pace {
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

/// A view that was followed by one with other owners.
#[derive(Clone, Debug)]
pub(crate) struct PreviousView {
    /// Grows with each of them.
    pub(crate) number: u64,
    pub(crate) view: Arc<View>,
    /// When it was followed.
    pub(crate) since_ms: u64,
}

impl PreviousView {
    /// Whether its owners are asked for values that live no longer than this.
    pub(crate) fn is_open(&self, now_ms: u64, longest: Option<Duration>) -> bool {
        now_ms < later(self.since_ms, longest.map_or(WINDOW, |longest| longest.min(WINDOW)))
    }
}

impl PreviousViews {
    pub(crate) fn new(is_on: bool, bytes_per_second: u64) -> Self {
        Self {
            is_on,
            previous_views: ArcSwap::default(),
            open_until_ms: AtomicU64::new(0),
            number: AtomicU64::new(0),
            joined_at_ms: AtomicU64::new(0),
            sources: Mutex::default(),
            last: Mutex::default(),
            updates: watch::Sender::new(()),
            send_rate: Pace::new(bytes_per_second),
            receive_rate: Pace::new(bytes_per_second),
        }
    }

    /// Tells when there may be something to take over.
    pub(crate) fn updates(&self) -> watch::Receiver<()> {
        self.updates.subscribe()
    }

    /// Takes out who may have what is this node's now.
    pub(crate) fn sources(&self) -> BTreeSet<PeerId> {
        std::mem::take(&mut *self.sources.lock())
    }

    /// A view is about to follow another. Told before it does: who looks at the new one must find the former.
    pub(crate) fn on_view_change(&self, before: Arc<View>, now: &View, scope: Scope, now_ms: u64) {
        // Who comes has been alone, in its own eyes, and sees everyone else for the first time in the view in which it owns
        // its share: they had its keys.
        let knew_others = before.members().iter().any(|member| member.dial.is_some() && member.share > 0);
        let before = if share_of_me(now) > 0 && (share_of_me(&before) == 0 || !knew_others) {
            self.joined_at_ms.store(now_ms.max(1), Relaxed);
            Arc::new(now.without_me(before.epoch))
        } else {
            before
        };
        let is_same = before.fingerprint() == now.fingerprint() && before.ring_of(scope) == now.ring_of(scope);
        if !self.is_on || is_same || before.owners(Scope::Cluster) == 0 {
            return;
        }
        let is_new_here = now_ms < later(self.joined_at_ms.load(Relaxed), NEW_HERE);
        let sources = sources(&before, now, is_new_here);
        let number = self.number() + 1;
        let mut all = vec![PreviousView { number, view: before, since_ms: now_ms }];
        let others = self.previous_views.load_full();
        let mut members = now.members().len();
        let is_remembered = |(at, previous_views): &(usize, &PreviousView)| {
            members += previous_views.view.members().len();
            at + 1 < REMEMBERED_AT_LEAST || at + 1 < REMEMBERED && members <= REMEMBERED_MEMBERS
        };
        let open = others.iter().filter(|previous_views| previous_views.is_open(now_ms, None)).enumerate();
        all.extend(open.take_while(is_remembered).map(|(_, previous_views)| previous_views.clone()));
        self.previous_views.store(Arc::new(all));
        self.number.store(number, Release);
        self.open_until_ms.store(later(now_ms, WINDOW), Release);
        self.last.lock().clone_from(&sources);
        self.sources.lock().extend(sources);
        self.updates.send_replace(());
    }

    /// Whether there is a former view to look at.
    pub(crate) fn is_open(&self, now_ms: u64) -> bool {
        now_ms < self.open_until_ms.load(Acquire)
    }

    /// Whether the ring has been the same for a while.
    pub(crate) fn is_quiet(&self, now_ms: u64) -> bool {
        self.previous_views.load().first().is_none_or(|newest| now_ms >= later(newest.since_ms, QUIET))
    }

    /// The number of the newest former view.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Acquire)
    }

    /// There is another group: it was not here when its keys moved here.
    pub(crate) fn group_added(&self, now_ms: u64) {
        if self.is_open(now_ms) {
            let last = self.last.lock().clone();
            self.sources.lock().extend(last);
            self.updates.send_replace(());
        }
    }

    /// The former views, the newest first.
    pub(crate) fn previous_views(&self) -> Arc<Vec<PreviousView>> {
        self.previous_views.load_full()
    }

    /// Forgets what is not looked at any more.
    pub(crate) fn sweep(&self, now_ms: u64) {
        if !self.is_open(now_ms) && self.open_until_ms.load(Relaxed) > 0 {
            self.previous_views.store(Arc::default());
        }
    }
}

fn share_of_me(view: &View) -> u8 {
    view.members().iter().find(|member| member.dial.is_none()).map_or(0, |member| member.share)
}

/// Who may have what this node owns now: everyone, when it owns more than before, and else who owns less, or was met late by
/// a node that is new here. One that drains has not handed over everything yet.
fn sources(before: &View, now: &View, is_new_here: bool) -> BTreeSet<PeerId> {
    if share_of_me(now) == 0 {
        return BTreeSet::new();
    }
    let owns_more = share_of_me(now) > share_of_me(before);
    let owned = before.members().iter().filter(|member| match owns_more {
        true => member.share > 0 || member.state == NodeState::Draining,
        false => share_of(now, &member.id) < member.share,
    });
    let met = now.members().iter().filter(|member| member.share > 0 && share_of(before, &member.id) == 0);
    let others = owned.chain(met.filter(|_| is_new_here)).filter(|member| member.dial.is_some());
    others.map(|member| member.id.clone()).collect()
}

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

    /// Node `a` and others, with their shares.
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

    #[test]
    fn what_is_mine_now_was_everyones_when_i_came_and_the_leavers_when_others_left() {
        let of = |before: &[(&str, u8)], now: &[(&str, u8)]| {
            let sources = sources(&view(1, before), &view(2, now), false);
            sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let all = [("a", 1), ("b", 1), ("c", 1)];
        assert_eq!(of(&[("a", 0), ("b", 1), ("c", 1)], &all), "b c", "it has come");
        assert_eq!(of(&all, &[("a", 1), ("b", 0), ("c", 1)]), "b", "b drains");
        assert_eq!(of(&all, &[("a", 1), ("c", 1)]), "b", "b is gone");
        assert_eq!(of(&[("a", 0), ("b", 0), ("c", 1)], &[("a", 1), ("b", 0), ("c", 1)]), "b c", "and b drains");
        assert_eq!(of(&[("a", 1), ("b", 1)], &all), "", "c has come");
        assert_eq!(of(&all, &[("a", 0), ("b", 1), ("c", 1)]), "", "it drains itself");
        assert_eq!(of(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 1)]), "b", "b owns less");
    }

    #[test]
    fn views_are_remembered_for_a_while_and_only_where_owners_have_changed() {
        let handover = PreviousViews::new(true, 1);
        let all = [("a", 1), ("b", 1)];
        let mut now_ms = 1000;
        let on_view_change = |before: &[(&str, u8)], now: &[(&str, u8)], epoch, now_ms| {
            handover.on_view_change(Arc::new(view(epoch, before)), &view(epoch + 1, now), Scope::Cluster, now_ms);
        };
        on_view_change(&[], &all, 1, now_ms);
        assert_eq!(handover.sources().into_iter().map(|id| id.to_string()).collect::<Vec<_>>(), ["b"], "it has come");
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
        assert_eq!(handover.sources().len(), 1, "it was alone in its own eyes");
        let epochs: Vec<_> = handover.previous_views().iter().map(|previous_views| previous_views.view.epoch).collect();
        assert_eq!(epochs, [&[19][..], &(3..20).rev().collect::<Vec<_>>(), &[1]].concat());
        assert_eq!(
            (handover.number(), handover.previous_views()[0].number, handover.previous_views()[7].number),
            (19, 19, 12)
        );
        let end_ms = now_ms + WINDOW.as_millis() as u64;
        assert!(handover.is_open(end_ms - 1) && !handover.is_open(end_ms));
        let newest = &handover.previous_views()[0];
        assert!(newest.is_open(now_ms + 999, Some(Duration::from_secs(1))));
        assert!(!newest.is_open(now_ms + 1000, Some(Duration::from_secs(1))), "what lives no longer is gone");
        handover.sweep(end_ms);
        assert!(handover.previous_views().is_empty());
        on_view_change(&all[1..], &all, 30, end_ms);
        assert_eq!(handover.previous_views().len(), 1);
    }

    #[test]
    fn whom_a_node_meets_late_it_takes_over_from_too_as_long_as_it_is_new_itself() {
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

    #[test]
    fn a_hundred_changes_of_a_small_cluster_are_remembered_in_part_and_those_of_a_large_one_less() {
        let remembered = |others: usize| {
            let (handover, ids) =
                (PreviousViews::new(true, 1), (0..others).map(|n| format!("n{n}")).collect::<Vec<_>>());
            let all: Vec<_> = [("a", 1)].into_iter().chain(ids.iter().map(|id| (id.as_str(), 1))).collect();
            let views = [Arc::new(view(1, &all)), Arc::new(view(2, &all[..others]))];
            for n in 0..100 {
                handover.on_view_change(Arc::clone(&views[n % 2]), &views[(n + 1) % 2], Scope::Cluster, 1000);
            }
            handover.previous_views().len()
        };
        assert_eq!([2, 100, 1000].map(remembered), [64, 40, 8]);
    }

    #[test]
    fn a_ring_is_quiet_half_a_minute_after_its_last_change() {
        let handover = PreviousViews::new(true, 1);
        assert!(handover.is_quiet(0), "nothing has moved");
        for at_ms in [1000, 5000] {
            let all = [("a", 1), ("b", 1)];
            handover.on_view_change(Arc::new(view(1, &all[1..])), &view(2, &all), Scope::Cluster, at_ms);
        }
        assert!(!handover.is_quiet(34_999) && handover.is_quiet(35_000));
    }

    #[test]
    fn one_that_is_told_not_to_remembers_nothing() {
        let handover = PreviousViews::new(false, 1);
        handover.on_view_change(Arc::new(view(1, &[("a", 1)])), &view(2, &[("a", 1), ("b", 1)]), Scope::Cluster, 1000);
        assert!(!handover.is_open(1000) && handover.sources().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spent_is_paid_for_before_more_is_spent() {
        let (pace, begun) = (Pace::new(1000), Instant::now());
        // The last one is ahead by no more than a timer may be late.
        for (bytes, at_ms) in [(500, 0), (20, 500), (5, 520), (0, 520)] {
            pace.spend(bytes).await;
            assert_eq!(begun.elapsed().as_millis(), at_ms);
        }
    }
}
