//! The writes of a group: set, remove and clear.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};

use crate::{
    engine::write,
    error::{Error, Result},
    group::Group,
    value::Value,
    write::outcome::{RemoveOptions, WriteOutcome},
};

/// Removes of one call that are under way at once; they share frames.
const AT_ONCE: usize = 256;

impl<V: Value> Group<V> {
    /// Fills the cache with a value after its source has changed: the owner stores it, all other nodes drop theirs.
    ///
    /// A set is not a database write: the value may be evicted at any time, and the loader is the truth. Loads that run
    /// meanwhile are answered to their waiters and not cached. Once begun the write is carried out, even if the future
    /// is dropped or the deadline passes. The write takes one exchange with the owner, and then one with every other
    /// node at the same time.
    ///
    /// # Errors
    /// [`is_unreachable`](Error::is_unreachable) when neither the owner nor any successor could be reached,
    /// [`is_too_large`](Error::is_too_large), [`is_bad_key`](Error::is_bad_key), [`is_closed`](Error::is_closed).
    pub async fn set(&self, key: &str, value: impl Into<V>) -> Result<WriteOutcome> {
        write::set(&self.engine, key, value.into(), self.deadline).await
    }

    /// Drops a value everywhere, so that the next get loads it anew. Otherwise as [`set`](Self::set).
    ///
    /// # Errors
    /// Those of [`set`](Self::set).
    pub async fn remove(&self, key: &str) -> Result<WriteOutcome> {
        write::remove(&self.engine, key, Duration::ZERO, self.deadline).await
    }

    /// Drops a value with options: a delete hold, or at its owner only. Otherwise as [`remove`](Self::remove).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use groupcache_core::RemoveOptions;
    /// # async fn f(users: groupcache_core::Group<String>) -> Result<(), groupcache_core::Error> {
    /// // The loader reads a replica of the database that lags behind by less than 2 s.
    /// let hold = RemoveOptions::new().hold(Duration::from_secs(2));
    /// users.remove_with("12345", hold).await?.log_pending();
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`set`](Self::set).
    pub async fn remove_with(&self, key: &str, options: RemoveOptions) -> Result<WriteOutcome> {
        match options.is_owner_only {
            true => write::remove_at_owner(&self.engine, key, options.hold, self.deadline).await,
            false => write::remove(&self.engine, key, options.hold, self.deadline).await,
        }
    }

    /// Drops values everywhere, as [`remove`](Self::remove) for each key, side by side.
    ///
    /// The outcomes are put together: a node is unreached when it has missed one of the writes.
    ///
    /// # Errors
    /// Those of `remove`: the first of them, once all have been tried.
    pub async fn remove_many<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Result<WriteOutcome> {
        let keys: BTreeSet<String> = keys.into_iter().map(|key| key.as_ref().to_owned()).collect();
        keys.iter().try_for_each(|key| self.engine.check(key))?;
        let removes = stream::iter(keys).map(|key| {
            let group = self.clone();
            async move { group.remove(&key).await }
        });
        let mut outcomes = removes.buffer_unordered(AT_ONCE);
        let (mut all, mut failed): (_, Option<Error>) = (WriteOutcome::nobody(), None);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(outcome) => all.add(outcome),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// Drops all values of the group everywhere. Otherwise as [`remove`](Self::remove).
    ///
    /// The call takes one exchange with every other node, side by side, however many values there are.
    ///
    /// # Errors
    /// [`is_closed`](Error::is_closed), [`is_timeout`](Error::is_timeout).
    pub async fn clear(&self) -> Result<WriteOutcome> {
        write::clear(&self.engine, self.deadline).await
    }
}
