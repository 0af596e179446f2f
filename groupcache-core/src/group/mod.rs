//! Group: the handle of the user's code to the values of one kind and their loader.

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

/// Named set of values of one type, shared by all nodes that have a group of the same name.
///
/// Clones are handles of the same group. The group works as long as its [`Node`](crate::Node) runs. While the node
/// shuts down, gets that memory answers still succeed, and other gets, peeks and writes are errors with
/// [`is_closed`](crate::Error::is_closed). Once the node says goodbye to its peers all of them are. After
/// [`Node::remove_group`](crate::Node::remove_group) all gets, peeks and writes are errors with
/// [`is_unknown_group`](crate::Error::is_unknown_group).
///
/// Any thread and any executor may poll the calls, also one without a runtime. Loads run on the runtime of the node, and
/// the deadline of a call from elsewhere holds while that runtime is blocked.
pub struct Group<V: Value> {
    pub(crate) engine: Arc<Engine<V>>,
    deadline: Duration,
}

impl<V: Value> Group<V> {
    /// Returns the value of a key: from memory, from the node that owns the key, or from the loader.
    ///
    /// Keys are 1 to 1,024 bytes. While the nodes agree about the owners, one load of a key runs in the whole cluster,
    /// however many callers on however many nodes get the key. A get that begins after a write does not share a load
    /// with earlier gets. The future ends within the handle's deadline (default: 10 s). Dropping it is safe at any
    /// time, and a load goes on if its callers give up.
    ///
    /// # Errors
    /// The predicates distinguish the errors: [`is_not_found`](crate::Error::is_not_found),
    /// [`is_load_failed`](crate::Error::is_load_failed), [`is_timeout`](crate::Error::is_timeout),
    /// [`is_overloaded`](crate::Error::is_overloaded), [`is_too_large`](crate::Error::is_too_large),
    /// [`is_bad_key`](crate::Error::is_bad_key), [`is_closed`](crate::Error::is_closed),
    /// [`is_unknown_group`](crate::Error::is_unknown_group), [`is_quarantined`](crate::Error::is_quarantined). An
    /// unreachable peer is no error, because its successor is asked for the key or the key is loaded on this node.
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
            Some(outcome) => outcome,
            // Boxed, so that a hit has no room for the state of a miss.
            None => Box::pin(self.engine.miss(key, self.deadline)).await,
        }
    }

    /// Returns the value of a key as [`get`](Self::get) does, and `None` if the loader finds nothing.
    ///
    /// # Errors
    /// The errors of `get`, except "not found".
    pub async fn get_opt(&self, key: &str) -> Result<Option<V>> {
        match self.get(key).await {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the values of many keys, in their order, each with its own outcome.
    ///
    /// The call gets all keys at the same time, as [`get`](Self::get) does, and shares loads with other callers. Each
    /// owner receives the requests for its keys together, for 1,000 keys at a time. The call ends within the handle's
    /// deadline. A key that fails or is late does not affect the outcomes of the others. Dropping the future is safe.
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

    /// Returns the value of a key if it is in the memory of this node or of its owner. Loads nothing.
    ///
    /// Returns `None` also if the owner cannot be reached or does not answer within the handle's deadline. The call
    /// takes at most one exchange with the owner.
    ///
    /// # Errors
    /// [`is_bad_key`](crate::Error::is_bad_key), [`is_closed`](crate::Error::is_closed),
    /// [`is_unknown_group`](crate::Error::is_unknown_group).
    pub async fn peek(&self, key: &str) -> Result<Option<V>> {
        // A value that does not decode counts as missing.
        Ok(peek::peek(&self.engine, key, self.deadline).await?.and_then(|slot| slot.payload.value().ok()))
    }

    /// Returns whether a key's value is in the memory of this node or of its owner. Otherwise as [`peek`](Self::peek).
    ///
    /// # Errors
    /// The errors of `peek`.
    pub async fn contains(&self, key: &str) -> Result<bool> {
        let slot = peek::peek(&self.engine, key, self.deadline).await?;
        Ok(slot.is_some_and(|slot| slot.payload.encoded().is_some()))
    }

    /// Returns a handle of the same group with another deadline for its gets and writes. Default:
    /// [`Limits::get_deadline`](crate::Limits::get_deadline), 10 s.
    ///
    /// The deadline bounds how long a caller of *this handle* waits. Loads and requests keep their own deadlines,
    /// because other callers may wait for them too.
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

    /// Returns the inspection of the group on this node: owners of keys, entries, evictions, latencies and sizes.
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

    /// Returns the milliseconds for which a key is still served on this node.
    #[cfg(test)]
    pub(crate) fn kept_for_ms(&self, key: &str) -> Option<u64> {
        let now_ms = self.engine.context.now_ms();
        self.engine.cache.owned.peek(key).map(|slot| slot.hit_until_ms().saturating_sub(now_ms))
    }

    /// Makes the handle of an engine, with the node's deadline for gets.
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
