//! A group: the values of one kind, with their loader, as the user's code holds it.

mod builder;
pub(crate) mod inspect;
mod writes;

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    engine::{Engine, get_many, peek},
    error::Result,
    peer::group_service::GroupService,
    runtime::stats::GroupStats,
    value::Value,
};

pub use self::builder::GroupBuilder;
use self::inspect::Inspect;

/// A named set of values of one type, shared by all nodes that have a group of the same name.
///
/// A cheap handle: clones are the same group. The group works as long as its [`Node`](crate::Node) runs; afterwards
/// everything but a hit is an error with [`is_closed`](Error::is_closed).
pub struct Group<V: Value> {
    pub(crate) engine: Arc<Engine<V>>,
    deadline: Duration,
}

impl<V: Value> Group<V> {
    /// Returns the value of a key: from memory, from the node that owns the key, or from the loader.
    ///
    /// Keys are 1 to 1,024 bytes. At most one load of a key runs in the whole cluster, however many callers on
    /// however many nodes ask for it, and the load goes on when a caller gives up: dropping the future is safe at any
    /// time. The future ends within the group's deadline. Default: 10 s.
    ///
    /// # Errors
    /// The predicates tell the error: [`is_not_found`](Error::is_not_found),
    /// [`is_load_failed`](Error::is_load_failed), [`is_timeout`](Error::is_timeout),
    /// [`is_overloaded`](Error::is_overloaded), [`is_too_large`](Error::is_too_large),
    /// [`is_bad_key`](Error::is_bad_key), [`is_closed`](Error::is_closed). An unreachable peer is no error: its
    /// successor is asked for the key, or the key is loaded here.
    ///
    /// ```
    /// # use groupcache_core::Node;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
    /// let node = Node::builder().start().await?;
    /// let names = node
    ///     .group::<String>("names")
    ///     .capacity_bytes(1 << 20)
    ///     .loader(async |key: &str| Ok::<_, std::io::Error>(format!("name of {key}")))
    ///     .build()?;
    /// assert_eq!(names.get("12345").await?, "name of 12345");
    /// # node.shutdown().await?; Ok(()) }
    /// ```
    pub async fn get(&self, key: &str) -> Result<V> {
        match self.engine.hit(key) {
            Some(known) => known,
            // Boxed, so that a hit does not pay for the state of a miss.
            None => Box::pin(self.engine.miss(key, self.deadline)).await,
        }
    }

    /// Returns the value of a key as [`get`](Self::get) does, and `None` when the loader finds nothing.
    ///
    /// # Errors
    /// Those of `get`, except not found.
    pub async fn get_opt(&self, key: &str) -> Result<Option<V>> {
        match self.get(key).await {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the values of many keys, in their order, each with its own outcome.
    ///
    /// The call is a [`get`](Self::get) of each key at the same time, and shares loads with other callers. Keys that are
    /// not in memory here are asked of each owner in one exchange, 1,000 keys at a time. The call ends within the group's
    /// deadline, and a key that fails or is late spoils none of the others. Dropping the future is safe.
    ///
    /// ```
    /// # async fn f(users: groupcache_core::Group<String>) {
    /// for (id, user) in ["1", "2"].iter().zip(users.get_many(["1", "2"]).await) {
    ///     match user {
    ///         Ok(user) => println!("{id}: {user}"),
    ///         Err(e) => println!("{id}: {e}"),
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn get_many<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Vec<Result<V>> {
        let keys: Vec<K> = keys.into_iter().collect();
        get_many::get_many(&self.engine, &keys, self.deadline).await
    }

    /// Returns the value of a key if it is in memory, here or at its owner; loads nothing.
    ///
    /// `None` also when the owner cannot be reached. The call takes at most one exchange with the owner.
    ///
    /// # Errors
    /// [`is_bad_key`](crate::Error::is_bad_key), [`is_closed`](crate::Error::is_closed).
    pub async fn peek(&self, key: &str) -> Result<Option<V>> {
        // A value that does not decode here is not there for this node.
        Ok(peek::peek(&self.engine, key, self.deadline).await?.and_then(|slot| slot.payload.value().ok()))
    }

    /// Returns whether a key's value is in memory, here or at its owner. Otherwise as [`peek`](Self::peek).
    ///
    /// # Errors
    /// Those of `peek`.
    pub async fn contains(&self, key: &str) -> Result<bool> {
        let slot = peek::peek(&self.engine, key, self.deadline).await?;
        Ok(slot.is_some_and(|slot| slot.payload.encoded().is_some()))
    }

    /// Returns the same group with another deadline for its gets and writes.
    ///
    /// The deadline bounds how long *this* caller waits. Loads and requests keep the node's own deadlines, because other
    /// callers may wait for them too.
    ///
    /// ```
    /// # fn f(users: groupcache_core::Group<String>) {
    /// let quick = users.with_deadline(std::time::Duration::from_millis(200));
    /// # }
    /// ```
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { engine: Arc::clone(&self.engine), deadline }
    }

    /// Returns the name of the group.
    pub fn name(&self) -> &str {
        &self.engine.settings.name
    }

    /// Returns a look into the group on this node: owners of keys, entries, evictions, latencies, sizes.
    ///
    /// ```
    /// # fn f(users: groupcache_core::Group<String>) {
    /// println!("{} entries, {} bytes", users.inspect().entries(), users.inspect().bytes());
    /// # }
    /// ```
    pub fn inspect(&self) -> Inspect<V> {
        Inspect(Arc::clone(&self.engine))
    }

    /// Returns the counters of the group on this node, since it was built.
    pub fn stats(&self) -> GroupStats {
        self.engine.counters.snapshot()
    }

    /// Returns how many milliseconds longer a key is kept here.
    #[cfg(test)]
    pub(crate) fn kept_for_ms(&self, key: &str) -> Option<u64> {
        let now_ms = self.engine.context.now_ms();
        self.engine.cache.owned.peek(key).map(|slot| slot.hit_until_ms().saturating_sub(now_ms))
    }

    pub(crate) fn of(engine: Arc<Engine<V>>) -> Self {
        let deadline = engine.context.local.limits.get_deadline;
        Self { engine, deadline }
    }

    pub(crate) fn service(&self) -> Arc<dyn GroupService> {
        Arc::clone(&self.engine) as Arc<dyn GroupService>
    }
}

impl<V: Value> Clone for Group<V> {
    fn clone(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), deadline: self.deadline }
    }
}

impl<V: Value> fmt::Debug for Group<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.engine.cache.len();
        f.debug_struct("Group").field("name", &self.name()).field("entries", &entries).finish_non_exhaustive()
    }
}
