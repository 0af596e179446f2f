//! Builds a group: name, budget, loader; everything else has a default.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use crate::{
    cache::freshness::FreshnessPolicy,
    context::NodeContext,
    engine::{Engine, LoadPolicy, Loaders, Settings},
    error::{Error, Result},
    group::Group,
    identity::check_name,
    loader::{BatchLoader, LoadFnWith, Loader, NoLoader, SharedBatchLoader, SharedLoader, Typed, WithState},
    membership::view::Scope,
    value::Value,
};

/// Keys of one call of a batch loader: what a query with a list of keys takes in its stride.
const MAX_BATCH: usize = 100;

/// Collects what a group needs; made by [`Node::group`](crate::Node::group).
#[must_use = "a group exists once build() is called"]
pub struct GroupBuilder<V: Value> {
    context: Arc<NodeContext>,
    settings: Settings,
    capacity_bytes: Option<u64>,
    loader: Option<SharedLoader<V>>,
    batch_loader: Option<SharedBatchLoader<V>>,
    max_batch: usize,
    values: PhantomData<V>,
}

impl<V: Value> GroupBuilder<V> {
    pub(crate) fn new(context: Arc<NodeContext>, name: &str) -> Self {
        let load_deadline = context.local.limits.load_deadline;
        let settings = Settings {
            name: name.into(),
            format: 0,
            freshness: FreshnessPolicy::default(),
            load_deadline,
            has_replicas: true,
            scope: Scope::Cluster,
            load_policy: LoadPolicy::default(),
        };
        Self {
            context,
            settings,
            capacity_bytes: None,
            loader: None,
            batch_loader: None,
            max_batch: MAX_BATCH,
            values: PhantomData,
        }
    }

    /// How many bytes its entries may take on this node: keys, encoded and decoded values, and overhead. Required.
    pub fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.capacity_bytes = Some(bytes);
        self
    }

    /// How long values are kept. Default: until they are evicted. A loader may say otherwise for one value.
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.time_to_live = Some(time_to_live);
        self
    }

    /// The longest that any value is kept, whatever its loader says. Default: as long as that.
    pub fn max_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.max_time_to_live = Some(time_to_live);
        self
    }

    /// How much of a time to live may be taken off at random, from 0 to 1, so that values that were loaded together do
    /// not expire together. Default 0.1: up to a tenth.
    pub fn jitter(mut self, share: f64) -> Self {
        self.settings.freshness.jitter = share;
        self
    }

    /// How long it is remembered that the loader found nothing. Default: not at all. A loader may say otherwise for one
    /// key.
    pub fn negative_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.negative = Some(time_to_live);
        self
    }

    /// How long after its time to live a value is still served, at once, while one load in the whole cluster brings a
    /// younger one (stale-while-revalidate of RFC 5861). Default: not at all.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.settings.freshness.stale_while_revalidate = window;
        self
    }

    /// How long before the end of its time to live a value that is asked for is loaded anew, in the background, at most
    /// half of that time. Default: not at all.
    pub fn refresh_ahead(mut self, window: Duration) -> Self {
        self.settings.freshness.refresh_ahead = window;
        self
    }

    /// How long after its time to live a value is still handed out when the loader fails (stale-if-error of RFC 5861).
    /// Default: not at all; the error is. What the loader does not find is no failure.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.settings.freshness.stale_if_error = window;
        self
    }

    /// Whether copies of values that other nodes own are kept here while their keys are hot, in an eighth of the budget.
    /// Default true. A write drops them as it drops the originals. Hot is a key that is asked for often and far more than
    /// most: where thousands of keys are asked for alike, each stays at its owner.
    pub fn replicas(mut self, keep: bool) -> Self {
        self.settings.has_replicas = keep;
        self
    }

    /// How long a copy of a hot value is served, and a value whose key has gone to another owner. Default 10 s; never
    /// longer than the value itself. It bounds how old a value can be that a write could not reach.
    pub fn replica_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.replica_time_to_live = time_to_live;
        self
    }

    /// Shares the keys out among the nodes of each zone by itself: every zone has its own owner of a key, loads it once, and
    /// answers its own nodes, so that values do not cross zones. Default: one owner in the whole cluster.
    ///
    /// Writes go to all nodes of all zones as ever; what is `set` is stored at the owner in the writer's zone and dropped
    /// in the others. All nodes must build the group so, and have a zone
    /// ([`Identity::with_zone`](crate::Identity::with_zone)). A zone of which no node owns keys asks the others.
    pub fn per_zone(mut self) -> Self {
        self.settings.scope = Scope::Zone;
        self
    }

    /// How long one load may take before it is aborted. Default: the node's
    /// [`load_deadline`](crate::Limits::load_deadline), 30 s.
    pub fn load_deadline(mut self, deadline: Duration) -> Self {
        self.settings.load_deadline = deadline;
        self
    }

    /// How many loads of this group may run at once on this node, for each depth of nesting. Default: as many as the
    /// node's [`max_loads`](crate::Limits::max_loads). As many as the source bears, such as connections of a pool.
    pub fn max_loads(mut self, at_once: usize) -> Self {
        self.settings.load_policy.max_loads = Some(at_once);
        self
    }

    /// How often a load that failed is tried again, when its loader says that the error is transient
    /// ([`LoadError::transient`](crate::LoadError::transient)). Default 0.
    ///
    /// Between attempts it waits 50 ms, then twice as long each time up to 2 s, half of it at random, and it stays
    /// within the load's deadline. Those who wait share the attempts too.
    pub fn retries(mut self, attempts: u32) -> Self {
        self.settings.load_policy.retries = attempts;
        self
    }

    /// Stops calling the loader for `open_for` once `failures` loads in a row have failed; gets that need it fail at
    /// once, or are served what [`stale_if_error`](Self::stale_if_error) allows. Then one load at a time asks whether
    /// the source is back. Default: never.
    pub fn breaker(mut self, failures: u32, open_for: Duration) -> Self {
        self.settings.load_policy.breaker = Some((failures, open_for));
        self
    }

    /// Version of the encoding of the values. Default 0.
    ///
    /// Bump it when a deploy changes what the bytes mean: nodes of two formats do not share values, and each
    /// still drops what the other changes.
    pub fn format(mut self, format: u32) -> Self {
        self.settings.format = format;
        self
    }

    /// Where values come from: an async closure without captures, a function, or a type that implements
    /// [`Loader`]. Required, unless [`loader_with`](Self::loader_with) is used.
    pub fn loader(mut self, loader: impl Loader<V>) -> Self {
        self.loader = Some(Arc::new(Typed(loader)));
        self
    }

    /// Where values come from, many keys at a time; instead of [`loader`](Self::loader).
    pub fn batch_loader(mut self, loader: impl BatchLoader<V>) -> Self {
        self.batch_loader = Some(Arc::new(loader));
        self
    }

    /// Keys that a batch loader is given at once, at most. Default 100.
    pub fn max_batch(mut self, keys: usize) -> Self {
        self.max_batch = keys;
        self
    }

    /// Where values come from, with a state that is handed to each call: a pool, a client, a configuration.
    ///
    /// A state that holds the [`Node`](crate::Node) itself keeps it alive until it is shut down: hold the groups
    /// instead.
    ///
    /// ```
    /// # use groupcache_core::{BoxError, Node};
    /// # #[derive(Clone)] struct Pool;
    /// # impl Pool { async fn name(&self, key: &str) -> Result<Option<String>, BoxError> { Ok(Some(key.into())) } }
    /// # async fn f(node: &Node, pool: Pool) -> Result<(), groupcache_core::Error> {
    /// let names = node
    ///     .group::<String>("names")
    ///     .capacity_bytes(1 << 20)
    ///     .loader_with(pool, async |pool: &Pool, key: &str| pool.name(key).await)
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn loader_with<S, F>(mut self, state: S, loader: F) -> Self
    where
        S: Send + Sync + 'static,
        F: for<'a> LoadFnWith<'a, S, V> + 'static,
    {
        self.loader = Some(Arc::new(WithState(state, loader)));
        self
    }

    /// Builds the group and announces it to the peers.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when there is no loader or no capacity, the name is empty or too long, a
    /// time is zero, or the node has a group of this name already;
    /// [`is_closed`](Error::is_closed) when the node was shut down.
    pub fn build(self) -> Result<Group<V>> {
        self.check()?;
        let Self { context, settings, capacity_bytes, loader, batch_loader, max_batch, .. } = self;
        let name = Arc::clone(&settings.name);
        if settings.scope == Scope::Zone {
            context.prepare(Scope::Zone);
        }
        if context.is_closed() {
            return Err(Error::new(crate::error::Kind::Closed, "the node was shut down; start another one"));
        }
        let single = loader.unwrap_or_else(|| Arc::new(NoLoader));
        let loaders = Loaders { single, batch: batch_loader.map(|loader| (loader, max_batch)) };
        let engine = Engine::new(Arc::clone(&context), settings, capacity_bytes.unwrap_or(0), loaders);
        let group = Group::of(Arc::clone(&engine));
        engine.set_index(context.registry.add(&name, group.service())?);
        if context.is_closed() {
            // The node was closed meanwhile, perhaps after it took all groups out: nobody else would take this one out.
            context.registry.remove(&name);
            return Err(engine.errors.closed());
        }
        context.local.change(|hello| hello.groups = context.registry.names());
        context.handover.group_added(context.now_ms());
        Ok(group)
    }

    /// Returns an error that says what to change if the group cannot be built.
    fn check(&self) -> Result<()> {
        let Settings { name, freshness, load_policy, .. } = &self.settings;
        check_name("group name", name)?;
        let missing = |what: &str| Err(Error::config(format!("group {name:?} has no {what}")));
        let refused = |why: String| Err(Error::config(format!("group {name:?} {why}")));
        match (&self.loader, &self.batch_loader) {
            (Some(_), Some(_)) => {
                return refused("has two loaders; keep .loader(...) or .batch_loader(...)".to_owned());
            }
            (None, None) => {
                return missing("loader: add .loader(...), .loader_with(state, ...) or .batch_loader(...)");
            }
            (None, Some(_)) if self.max_batch == 0 => {
                return refused("loads batches of no keys; give .max_batch(...) at least 1".to_owned());
            }
            _ => {}
        }
        if self.capacity_bytes.is_none_or(|bytes| bytes == 0) {
            return missing("capacity: add .capacity_bytes(64 << 20)");
        }
        if [freshness.time_to_live, freshness.max_time_to_live, freshness.negative].contains(&Some(Duration::ZERO)) {
            return refused("keeps nothing: its time to live is zero".to_owned());
        }
        if !(0.0..=1.0).contains(&freshness.jitter) {
            let text = format!("the jitter of group {name:?} is {}; give it a share from 0 to 1", freshness.jitter);
            return Err(Error::config(text));
        }
        if load_policy.max_loads == Some(0) || load_policy.breaker.is_some_and(|(n, open)| n == 0 || open.is_zero()) {
            return refused("can load nothing: a limit of its loads is 0".to_owned());
        }
        if self.settings.load_deadline.is_zero() {
            return refused("can load nothing: its load deadline is zero".to_owned());
        }
        if self.settings.scope == Scope::Zone && self.context.local.hello().zone.is_empty() {
            return refused("is per zone and this node has none: start it with an identity.with_zone(...)".to_owned());
        }
        Ok(())
    }
}

impl<V: Value> fmt::Debug for GroupBuilder<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
