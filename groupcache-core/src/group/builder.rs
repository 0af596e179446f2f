//! Builder of a group: the name, the budget and the loader are required, and every other setting has a default.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

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

/// Default of the maximum number of keys of one call of a batch loader, which a query with a list of keys bears easily.
const MAX_BATCH: usize = 100;

/// Minimum of a bound on the staleness: two pings, one lost, and the time to ask for what is lacking.
const MIN_STALENESS: Duration = Duration::from_secs(3);

/// Builder of a group, made by [`Node::group`](crate::Node::group).
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
            max_staleness_ms: None,
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

    /// Bounds the staleness of values: no get on any node returns a value that lacks a write made more than `bound`
    /// before the get began, whether the node is cut off, paused or suspended. Default: none. Minimum: 3 s.
    ///
    /// Without the bound, a node that cannot be reached serves what it has for at most its
    /// [`time_to_live`](Self::time_to_live). With the bound, such a node loads each key again after `bound`, and every
    /// write settles within `bound`. The bound suits permissions, prices and feature switches: with a time to live of an
    /// hour, a revocation holds everywhere within seconds. While a listed member cannot be heard, the group behaves as
    /// if its time to live were `bound`. See [`Node::horizon`](crate::Node::horizon).
    ///
    /// All nodes must give the group the same bound. The clocks of two nodes may run at rates that differ by one
    /// fiftieth.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn f(node: &groupcache_core::Node) -> Result<(), groupcache_core::Error> {
    /// # let load = async |id: &str| Ok::<_, std::io::Error>(format!("permissions of {id}"));
    /// let permissions = node.group::<String>("permissions")
    ///     .capacity_bytes(64 << 20)
    ///     .time_to_live(Duration::from_secs(3600))
    ///     .max_staleness(Duration::from_secs(10))
    ///     .loader(load)
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn max_staleness(mut self, bound: Duration) -> Self {
        self.settings.max_staleness_ms = Some(u64::try_from(bound.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Sets the bytes that the entries may take on this node: keys, encoded and decoded values, and overhead. Required.
    pub fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.capacity_bytes = Some(bytes);
        self
    }

    /// Sets the time for which values are fresh. Default: until they are evicted. A loader may return another time for
    /// one value; a longer one is cut to the [maximum](Self::max_time_to_live).
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.time_to_live = Some(time_to_live);
        self
    }

    /// Sets the maximum of every time to live, including the times that a loader returns. Default: the group's
    /// [`time_to_live`](Self::time_to_live), or no maximum if the group has none.
    pub fn max_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.max_time_to_live = Some(time_to_live);
        self
    }

    /// Sets the maximum share of a time to live that is taken off at random, so that values that were loaded together
    /// do not expire together. Default: 0.1. Range: 0 to 1.
    pub fn jitter(mut self, share: f64) -> Self {
        self.settings.freshness.jitter = share;
        self
    }

    /// Sets the time for which memory keeps that the loader found nothing. Default: not at all. A loader may return
    /// another time for one key.
    pub fn negative_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.negative = Some(time_to_live);
        self
    }

    /// Sets the time after its time to live for which a value is still served at once, while one load in the whole
    /// cluster refreshes it (stale-while-revalidate of RFC 5861). Default: not at all.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.settings.freshness.stale_while_revalidate = window;
        self
    }

    /// Sets the time before the end of its time to live in which a hit begins a refresh of the value in the background.
    /// At most half of the time to live counts. Default: no refresh ahead.
    pub fn refresh_ahead(mut self, window: Duration) -> Self {
        self.settings.freshness.refresh_ahead = window;
        self
    }

    /// Sets the time after its time to live for which a value is still served if the loader fails (stale-if-error of
    /// RFC 5861). Default: not at all, so that callers get the error. "Not found" is no failure.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.settings.freshness.stale_if_error = window;
        self
    }

    /// Sets whether this node keeps replicas of values that other nodes own while their keys are hot. All
    /// replicas together take an eighth of the budget at most, which owned entries use while there are none. Default:
    /// true.
    ///
    /// A write drops a replica as it drops the owner's entry. A key is hot if it is read often, and far more often than
    /// most keys: if thousands of keys are read equally often, none of them has replicas.
    pub fn replicas(mut self, keep: bool) -> Self {
        self.settings.has_replicas = keep;
        self
    }

    /// Sets the maximum time for which a replica is served, and an entry after its key has moved to another owner.
    /// Default: 10 s.
    ///
    /// A replica is served no longer than the owner may serve the value. For replicas and moved entries, the time bounds how
    /// long a node that a write does not reach serves an older value.
    pub fn replica_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.settings.freshness.replica_time_to_live = time_to_live;
        self
    }

    /// Gives each key one owner per zone. Each zone loads a key once and answers its own nodes, so that values do not
    /// cross zones. Default: one owner in the whole cluster.
    ///
    /// Writes go to all nodes of all zones. A [`set`](Group::set) stores the value at the owner in the writer's zone,
    /// and the other zones drop theirs. All nodes must build the group per zone and have a zone
    /// ([`Identity::with_zone`](crate::Identity::with_zone)). A zone in which no node owns keys uses the owners of the
    /// whole cluster.
    pub fn per_zone(mut self) -> Self {
        self.settings.scope = Scope::Zone;
        self
    }

    /// Sets the time after which a load is aborted, with the wait for a permit and all attempts. Default: the node's
    /// [`load_deadline`](crate::Limits::load_deadline), 30 s.
    pub fn load_deadline(mut self, deadline: Duration) -> Self {
        self.settings.load_deadline = deadline;
        self
    }

    /// Sets the maximum number of concurrent loads of this group on this node, for each depth of nesting, such as the
    /// number of connections of a pool. Default: the node's [`max_loads`](crate::Limits::max_loads), which always
    /// applies too.
    pub fn max_loads(mut self, at_once: usize) -> Self {
        self.settings.load_policy.max_loads = Some(at_once);
        self
    }

    /// Sets the maximum number of further attempts after an attempt that failed with a transient error
    /// ([`LoadError::transient`](crate::LoadError::transient)). Default: 0.
    ///
    /// The first pause is 25 to 50 ms, chosen at random. The bounds double with each attempt, up to 1 and 2 s. All
    /// attempts stay within the load's deadline, and all waiters share them.
    pub fn retries(mut self, attempts: u32) -> Self {
        self.settings.load_policy.retries = attempts;
        self
    }

    /// Stops loads for `open_for` once `failures` loads in a row have failed. Default: never.
    ///
    /// Meanwhile gets that need a load fail at once, unless [`stale_if_error`](Self::stale_if_error) allows a stale
    /// value. Afterwards one load at a time tests the source, and the first success ends the stop.
    pub fn breaker(mut self, failures: u32, open_for: Duration) -> Self {
        self.settings.load_policy.breaker = Some((failures, open_for));
        self
    }

    /// Sets the version of the encoding of the values. Default: 0.
    ///
    /// Raise the version with a deploy that changes the meaning of the bytes. Nodes with different formats do not
    /// exchange values, and each still drops the values that the other one writes.
    pub fn format(mut self, format: u32) -> Self {
        self.settings.format = format;
        self
    }

    /// Sets the loader: an async closure without captures, a function, or a type that implements [`Loader`]. Required,
    /// unless [`loader_with`](Self::loader_with) or [`batch_loader`](Self::batch_loader) is used.
    pub fn loader(mut self, loader: impl Loader<V>) -> Self {
        self.loader = Some(Arc::new(Typed(loader)));
        self
    }

    /// Sets a loader of many keys at a time, instead of [`loader`](Self::loader).
    pub fn batch_loader(mut self, loader: impl BatchLoader<V>) -> Self {
        self.batch_loader = Some(Arc::new(loader));
        self
    }

    /// Sets the maximum number of keys of one call of a batch loader. Default: 100.
    pub fn max_batch(mut self, keys: usize) -> Self {
        self.max_batch = keys;
        self
    }

    /// Sets a loader with a state that is passed to each call, such as a pool, a client or a configuration.
    ///
    /// A state that holds the [`Node`](crate::Node) keeps the node alive until it is shut down. Hold the groups
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
    /// [`is_config`](Error::is_config) if the loader or the capacity is missing, there are two loaders, the name is not
    /// allowed (empty, too long, with white space or control characters), a time or a limit is zero, the jitter is not
    /// from 0 to 1, the group is per zone and the node has no zone, the node has a group of this name already, or it
    /// has 1,000 groups. [`is_closed`](Error::is_closed) if the node was shut down.
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
            // The node was closed meanwhile, perhaps after it removed all groups, so that nothing else removes this
            // one.
            context.registry.remove(&name);
            return Err(engine.errors.closed());
        }
        context.local.change(|hello| hello.groups = context.registry.names());
        if engine.settings.max_staleness_ms.is_some() {
            context.local.writes.has_bounds.store(true, Relaxed);
        }
        context.handover.group_added(context.now_ms());
        Ok(group)
    }

    /// Returns an error that names the setting to change, if the group cannot be built.
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
            return refused("keeps nothing, because a time to live is zero; give it at least 1 ms".to_owned());
        }
        if self.settings.max_staleness_ms.is_some_and(|bound_ms| bound_ms < MIN_STALENESS.as_millis() as u64) {
            return refused(format!(
                "bounds its staleness to less than {MIN_STALENESS:?}; give .max_staleness(...) at least that, because \
                 nodes hear of each other once a second"
            ));
        }
        if !(0.0..=1.0).contains(&freshness.jitter) {
            let text = format!("the jitter of group {name:?} is {}; give it a share from 0 to 1", freshness.jitter);
            return Err(Error::config(text));
        }
        if load_policy.max_loads == Some(0) || load_policy.breaker.is_some_and(|(n, open)| n == 0 || open.is_zero()) {
            return refused(
                "can load nothing, because .max_loads(...) or a number of .breaker(...) is 0; give it at least 1"
                    .to_owned(),
            );
        }
        if self.settings.load_deadline.is_zero() {
            return refused(
                "can load nothing, because its .load_deadline(...) is zero; give it at least 1 ms".to_owned(),
            );
        }
        if self.settings.scope == Scope::Zone && self.context.local.hello().zone.is_empty() {
            return refused(
                "is per zone and this node has no zone; start the node with identity.with_zone(...)".to_owned(),
            );
        }
        Ok(())
    }
}

impl<V: Value> fmt::Debug for GroupBuilder<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
