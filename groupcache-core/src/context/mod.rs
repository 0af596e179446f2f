//! State that a node and its groups share: the view, the links to peers, the registry, limits and permits.
//!
//! The context knows neither [`Node`](crate::Node) nor the engine of a group, so that both can depend on it. The node's
//! tasks install views and links, and the engines read them. User code never runs under a lock of the context.

mod fallback_budget;
pub(crate) mod tasks;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::DashMap;
use tokio::time::Instant;

use self::{
    fallback_budget::FallbackBudget,
    tasks::{Runtimes, Tasks},
};

use crate::{
    cache::revalidation::{Change, ChangeLog},
    flight::{InvalidationStripes, permits::Permits},
    handover::{NextView, PreviousViews},
    identity::{NodeState, PeerId},
    limits::{FALLBACK_CAP_MAX, FALLBACK_CAP_MIN, Limits},
    membership::{
        stabilizer::{DialId, DiscoveryReport, Member, MemberSet},
        view::{Scope, View},
    },
    peer::{client::link::Link, group_service::Registry, local::LocalNode},
    ring::POINTS_PER_WEIGHT,
    runtime::{
        off_thread::off_thread,
        sync::{ArcSwap, Guard, Keyed, Mutex, sharded},
        timers::Timers,
    },
};

/// Number of ring points from which a view is made on a thread of its own: some milliseconds of work.
const MANY_POINTS: usize = 1 << 16;

/// State that a node and its groups share.
pub(crate) struct NodeContext {
    pub(crate) local: Arc<LocalNode>,
    view: ArcSwap<View>,
    /// Coarse time at which the view was installed.
    view_since_ms: AtomicU64,
    pub(crate) changes: ChangeLog,
    pub(crate) handover: PreviousViews,
    /// Whether a group has one owner per zone, so that each new view needs the ring of the zone.
    has_zones: AtomicBool,
    links: DashMap<DialId, Arc<Link>, Keyed>,
    /// Link on which each peer sent its last Hello. The map is ahead of the view while a peer moves to another link.
    links_by_id: DashMap<PeerId, Arc<Link>, Keyed>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) permits: Permits,
    pub(crate) stripes: Arc<InvalidationStripes>,
    budget: FallbackBudget,
    pub(crate) tasks: Tasks,
    pub(crate) timers: Timers,
    /// Counts and findings of the stabilizer.
    pub(crate) membership: Mutex<DiscoveryReport>,
    /// Whether local gets are refused.
    is_closed: AtomicBool,
    rng: Mutex<fastrand::Rng>,
}

impl NodeContext {
    pub(crate) fn new(
        local: Arc<LocalNode>,
        view: View,
        runtimes: Runtimes,
        is_handover_on: bool,
        mut rng: fastrand::Rng,
    ) -> Self {
        let Limits { max_loads, max_queued_loads, handover_bytes_per_second, .. } = local.limits;
        let hasher = Keyed(rng.u64(..));
        Self {
            view_since_ms: AtomicU64::new(local.clock.now_ms()),
            local,
            view: ArcSwap::from_pointee(view),
            changes: ChangeLog::default(),
            handover: PreviousViews::new(is_handover_on, handover_bytes_per_second),
            has_zones: AtomicBool::new(false),
            links: sharded(hasher),
            links_by_id: sharded(hasher),
            registry: Arc::new(Registry::new(hasher)),
            permits: Permits::new(max_loads, max_queued_loads),
            stripes: Arc::new(InvalidationStripes::new()),
            budget: FallbackBudget::default(),
            timers: Timers::of(&runtimes.serving, runtimes.has_own_threads()),
            tasks: Tasks::new(runtimes),
            membership: Mutex::default(),
            is_closed: AtomicBool::new(false),
            rng: Mutex::new(rng),
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.local.clock.now_ms()
    }

    pub(crate) fn random(&self) -> u64 {
        self.rng.lock().u64(..)
    }

    /// Returns a random number from 0 to 1.
    pub(crate) fn random_share(&self) -> f64 {
        (self.random() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns the current view. A caller takes the view once and keeps it, so that each of its steps sees the same
    /// owners.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Returns the time since the view was installed.
    pub(crate) fn view_age(&self) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(self.view_since_ms.load(Relaxed)))
    }

    pub(crate) fn view_ref(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Makes the ring of a scope that a group uses, for the current view and for each later one.
    pub(crate) fn prepare(&self, scope: Scope) {
        if scope == Scope::Zone {
            self.has_zones.store(true, Relaxed);
        }
        self.view_ref().prepare(scope);
    }

    /// Returns the scope for which the rings of a view are made.
    fn widest_scope(&self) -> Scope {
        if self.has_zones.load(Relaxed) { Scope::Zone } else { Scope::Cluster }
    }

    /// Makes the view that replaces the present one. Large rings are built on a thread of their own, because gets would
    /// otherwise wait for a thread of the runtime. Only one task may make and install views.
    pub(crate) async fn next_view(&self, epoch: u64, members: MemberSet) -> NextView {
        let (before, scope) = (self.view(), self.widest_scope());
        let weight: usize = members.members.iter().map(|member| usize::from(member.share)).sum();
        let make = move || NextView::new(Arc::clone(&before), epoch, members.clone(), scope);
        if weight * (POINTS_PER_WEIGHT as usize) < MANY_POINTS { make() } else { off_thread(make).await }
    }

    /// Replaces the view, and reports the change to the hand-over and the change log.
    pub(crate) fn install(&self, next: NextView) {
        let now_ms = self.local.clock.read_ms();
        let scope = self.widest_scope();
        next.view.prepare(scope); // a group with zones may have come meanwhile
        self.handover.on_next_view(&next, scope, now_ms);
        self.view.store(next.view);
        self.view_since_ms.store(now_ms, Relaxed);
        self.changes.record(Change::View, now_ms);
        self.local.counters.views.up();
    }

    /// Replaces the view by one of a test.
    #[cfg(test)]
    pub(crate) fn install_view(&self, view: View) {
        self.install(NextView::of(self.view(), view));
    }

    /// Returns the link to a member; `None` for the local node, and for a member without a link at this moment.
    pub(crate) fn link(&self, member: &Member) -> Option<Arc<Link>> {
        let dial = member.dial?;
        let by_id = || self.links_by_id.get(&member.id).map(|link| Arc::clone(&link));
        self.link_of(dial).or_else(by_id)
    }

    /// Records that a peer has sent its Hello on a link.
    pub(crate) fn now_at(&self, id: &PeerId, link: &Arc<Link>) {
        self.links_by_id.insert(id.clone(), Arc::clone(link));
    }

    /// Returns whether the link to a peer takes requests.
    pub(crate) fn reaches(&self, id: &PeerId) -> bool {
        self.links_by_id.get(id).is_some_and(|link| link.admits())
    }

    /// Returns the link to each connected peer, in the order of their ids.
    pub(crate) fn connected_links(&self) -> Vec<(PeerId, Arc<Link>)> {
        // Not `links_by_id`, which lacks a peer when the last of its several links was closed.
        let mut by_id = BTreeMap::new();
        for link in self.links().into_iter().filter(|link| link.admits()) {
            if let Some(peer) = link.instance() {
                let known = by_id.entry(peer.id).or_insert_with(|| Arc::clone(&link));
                if known.dial > link.dial {
                    *known = link;
                }
            }
        }
        by_id.into_iter().collect()
    }

    /// Returns the link to a peer that takes requests.
    pub(crate) fn link_by_id(&self, id: &PeerId) -> Option<Arc<Link>> {
        let by_id = self.links_by_id.get(id).map(|link| Arc::clone(&link)).filter(|link| link.admits());
        by_id.or_else(|| self.connected_links().into_iter().find(|(peer, _)| peer == id).map(|(_, link)| link))
    }

    /// Forgets a link that was closed.
    pub(crate) fn no_longer_at(&self, link: &Arc<Link>) {
        self.links_by_id.retain(|_, known| !Arc::ptr_eq(known, link));
    }

    pub(crate) fn link_of(&self, dial: DialId) -> Option<Arc<Link>> {
        self.links.get(&dial).map(|link| Arc::clone(&link))
    }

    pub(crate) fn add_link(&self, dial: DialId, link: Arc<Link>) {
        self.links.insert(dial, link);
    }

    pub(crate) fn remove_link(&self, dial: DialId) -> Option<Arc<Link>> {
        self.links.remove(&dial).map(|(_, link)| link)
    }

    /// Returns all links, in an order that depends on the seed alone.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.links.iter().map(|link| Arc::clone(&link)).collect()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.local.hello().state == NodeState::Draining
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Relaxed)
    }

    pub(crate) fn close(&self) {
        self.is_closed.store(true, Relaxed);
    }

    /// Takes a second attempt within a get from the budget, counts it, and returns whether it is allowed.
    pub(crate) fn may_ask_again(&self) -> bool {
        let counters = &self.local.counters;
        let allowed = self.budget.take(Instant::now(), counters.requests_sent.get()) || mutant!(UnboundedFallback);
        if allowed {
            counters.fallback_attempts.up()
        } else {
            counters.fallback_refused.up()
        }
        allowed
    }

    /// Returns how long this node may keep a value that `owner` should hold. The limit is the time for which the owner
    /// has been unreachable. Range: 5 s to 60 s.
    pub(crate) fn fallback_cap(&self, owner: &Member) -> Duration {
        let open_ms = self.link(owner).and_then(|link| link.open_for(self.now_ms())).unwrap_or(0);
        Duration::from_millis(open_ms).clamp(FALLBACK_CAP_MIN, FALLBACK_CAP_MAX)
    }
}
