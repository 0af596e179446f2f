//! What the node and its groups both hold, knowing neither: the view, the links to peers, limits and permits.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::DashMap;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cache::revalidation::{Change, ChangeLog},
    flight::{InvalidationStripes, permits::Permits},
    handover::PreviousViews,
    identity::{NodeState, PeerId},
    limits::{FALLBACK_CAP_MAX, FALLBACK_CAP_MIN, FALLBACK_PER_SECOND, FALLBACK_SHARE, Limits},
    membership::{
        stabilizer::{Counters, DialId, Member},
        view::{Scope, View},
    },
    peer::{client::link::Link, group_service::Registry, local::LocalNode},
    runtime::sync::{ArcSwap, Guard, Keyed, Mutex, sharded},
    write::missed::MissedWrites,
};

pub(crate) struct NodeContext {
    pub(crate) local: Arc<LocalNode>,
    view: ArcSwap<View>,
    pub(crate) changes: ChangeLog,
    pub(crate) handover: PreviousViews,
    /// What peers have missed while they could not be reached.
    pub(crate) undelivered: MissedWrites,
    has_zones: AtomicBool,
    links: DashMap<DialId, Arc<Link>, Keyed>,
    /// The link on which each peer said Hello last: ahead of the view while a peer moves from one to another.
    links_by_id: DashMap<PeerId, Arc<Link>, Keyed>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) permits: Permits,
    pub(crate) stripes: Arc<InvalidationStripes>,
    budget: FallbackBudget,
    pub(crate) tasks: Tasks,
    /// What the stabilizer has counted.
    pub(crate) membership: Mutex<Counters>,
    /// All peers are lost: writes pass this node by until one is back.
    pub(crate) is_cut_off: AtomicBool,
    /// Local gets are refused from now on.
    is_closed: AtomicBool,
    rng: Mutex<fastrand::Rng>,
}

/// The tasks of a node, by how long they live.
pub(crate) struct Tasks {
    runtime: Handle,
    /// Loads: nothing waits for them by itself, and shutdown lets them finish until its deadline.
    pub(crate) loads: TaskTracker,
    /// Everything else: ends when `closing` is cancelled.
    pub(crate) others: TaskTracker,
    pub(crate) closing: CancellationToken,
    /// The same, for those who ask at each get: the token takes a lock.
    is_closing: AtomicBool,
}

impl Tasks {
    /// Starts a load.
    pub(crate) fn load(&self, future: impl Future<Output = ()> + Send + 'static) {
        #[cfg(shuttle)]
        shuttle::future::spawn(self.loads.track_future(future));
        #[cfg(not(shuttle))]
        self.loads.spawn_on(future, &self.runtime);
    }

    /// Ends what ends with the node.
    pub(crate) fn close(&self) {
        self.is_closing.store(true, Relaxed);
        self.closing.cancel();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Relaxed)
    }

    /// Starts a task that ends with the node.
    pub(crate) fn run(&self, future: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.others.spawn_on(async move { closing.run_until_cancelled(future).await.unwrap_or(()) }, &self.runtime);
    }
}

impl NodeContext {
    pub(crate) fn new(
        local: Arc<LocalNode>,
        view: View,
        runtime: Handle,
        hands_over: bool,
        mut rng: fastrand::Rng,
    ) -> Self {
        let Limits { max_loads, max_queued_loads, hand_over_bytes_per_second, .. } = local.limits;
        let hasher = Keyed(rng.u64(..));
        Self {
            local,
            view: ArcSwap::from_pointee(view),
            changes: ChangeLog::default(),
            handover: PreviousViews::new(hands_over, hand_over_bytes_per_second),
            has_zones: AtomicBool::new(false),
            undelivered: MissedWrites::default(),
            links: sharded(hasher),
            links_by_id: sharded(hasher),
            registry: Arc::new(Registry::new(hasher)),
            permits: Permits::new(max_loads, max_queued_loads),
            stripes: Arc::new(InvalidationStripes::new()),
            budget: FallbackBudget::default(),
            tasks: Tasks {
                runtime,
                loads: TaskTracker::new(),
                others: TaskTracker::new(),
                closing: CancellationToken::new(),
                is_closing: AtomicBool::new(false),
            },
            membership: Mutex::default(),
            is_cut_off: AtomicBool::new(false),
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

    /// The view as it is now; taken once per get.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn view_ref(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Some group shares its keys out so: from now on views are made with it.
    pub(crate) fn prepare(&self, scope: Scope) {
        if scope == Scope::Zone {
            self.has_zones.store(true, Relaxed);
        }
        self.view_ref().prepare(scope);
    }

    pub(crate) fn install(&self, view: View) {
        let now_ms = self.local.clock.read_ms();
        let mut scope = Scope::Cluster;
        if self.has_zones.load(Relaxed) {
            scope = Scope::Zone;
            view.prepare(scope);
        }
        self.handover.changes(self.view(), &view, scope, now_ms);
        let before = self.view.swap(Arc::new(view));
        self.changes.happened(Change::View, now_ms);
        let view = self.view();
        let here: BTreeSet<_> = view.members().iter().map(|member| member.id.clone()).collect();
        let gone: Vec<_> = before.members().iter().map(|member| &member.id).filter(|id| !here.contains(*id)).collect();
        self.undelivered.view_changed(gone.into_iter(), here, now_ms);
        self.local.counters.views.up();
    }

    /// The link to a member; `None` for this node itself, and for one that has just been given up.
    pub(crate) fn link(&self, member: &Member) -> Option<Arc<Link>> {
        let dial = member.dial?;
        let by_id = || self.links_by_id.get(&member.id).map(|link| Arc::clone(&link));
        self.link_of(dial).or_else(by_id)
    }

    /// A peer has said Hello on this link.
    pub(crate) fn now_at(&self, id: &PeerId, link: &Arc<Link>) {
        self.links_by_id.insert(id.clone(), Arc::clone(link));
    }

    /// Whether there is a connection to a peer.
    pub(crate) fn reaches(&self, id: &PeerId) -> bool {
        self.links_by_id.get(id).is_some_and(|link| link.admits())
    }

    /// Peers that discovery names and that have not answered yet, by their ids or addresses, unless they are in the view.
    pub(crate) fn strangers(&self, view: &View) -> impl Iterator<Item = PeerId> {
        let targets = self.undelivered.strangers().into_iter().filter_map(|dial| self.link_of(dial));
        targets.filter_map(|link| {
            let target = link.target();
            match &target.expected {
                Some(id) => (!view.members().iter().any(|member| member.id == *id)).then(|| id.clone()),
                None => PeerId::new(target.addresses.first()?.as_str()).ok(),
            }
        })
    }

    /// A link was given up.
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

    /// All links. Their order depends on the seed alone.
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

    /// Whether one more second attempt within a get is allowed.
    pub(crate) fn may_ask_again(&self) -> bool {
        let counters = &self.local.counters;
        let allowed = self.budget.take(self.now_ms(), counters.requests_sent.get()) || mutant!(UnboundedFallback);
        if allowed {
            counters.fallback_attempts.up()
        } else {
            counters.fallback_refused.up()
        }
        allowed
    }

    /// How long a value that `owner` should have may be kept here: the longer it is away, the longer.
    pub(crate) fn fallback_cap(&self, owner: &Member) -> Duration {
        let away = self.link(owner).and_then(|link| link.open_for(self.now_ms())).unwrap_or(0);
        Duration::from_millis(away).clamp(FALLBACK_CAP_MIN, FALLBACK_CAP_MAX)
    }
}

/// Second attempts, of which there are some per second and some per hundred requests: a fault that makes every
/// request fail must not double the load on those who are left.
#[derive(Debug, Default)]
struct FallbackBudget(Mutex<Budget>);

#[derive(Debug, Default)]
struct Budget {
    /// In thousandths.
    tokens: u64,
    at_ms: u64,
    requests: u64,
    is_begun: bool,
}

impl FallbackBudget {
    /// What may be saved up: the attempts of one second.
    const MAX_TOKENS: u64 = 1000 * FALLBACK_PER_SECOND as u64;

    fn take(&self, now_ms: u64, requests: u64) -> bool {
        let mut budget = self.0.lock();
        let new_requests = requests.saturating_sub(budget.requests);
        let by_time = now_ms.saturating_sub(budget.at_ms) * u64::from(FALLBACK_PER_SECOND);
        let by_requests = new_requests * 1000 / u64::from(FALLBACK_SHARE);
        let saved = if budget.is_begun { budget.tokens + by_time + by_requests } else { Self::MAX_TOKENS };
        // What the requests of a busy second earned is not cut: it is their share.
        budget.tokens = saved.min(Self::MAX_TOKENS.max(by_requests));
        budget.at_ms = now_ms;
        budget.requests = budget.requests.max(requests); // a sum of cells, read while others add, may step back
        budget.is_begun = true;
        let allowed = budget.tokens >= 1000;
        if allowed {
            budget.tokens -= 1000;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_attempts_are_a_tenth_and_ten_a_second() {
        let budget = FallbackBudget::default();
        let mut taken = (0..100).filter(|_| budget.take(0, 0)).count();
        assert_eq!(taken, 10);
        taken = (0..100).filter(|_| budget.take(500, 0)).count();
        assert_eq!(taken, 5);
        taken = (0..10_000).filter(|n| budget.take(500, n * 2)).count();
        assert!((1900..=2100).contains(&taken), "{taken} of 20,000 requests");
    }
}
