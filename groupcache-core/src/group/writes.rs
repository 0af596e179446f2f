//! Writes of a group: set, remove and clear.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};

use crate::{
    engine::{owner_only, write},
    error::{Error, Result},
    group::Group,
    value::Value,
    write::outcome::{RemoveOptions, WriteOutcome},
};

/// Maximum number of concurrent removes of one call, which share frames.
const AT_ONCE: usize = 256;

impl<V: Value> Group<V> {
    /// Sets the value of a key after its source has changed: the owner stores the value, and all other nodes drop
    /// theirs.
    ///
    /// A set is not a database write, because the value may be evicted at any time and the loader is the truth. Loads
    /// that run meanwhile answer their waiters and are not cached. Once begun, the write is carried out even if the
    /// future is dropped or the deadline passes. The write takes one exchange with the owner, and then one with every
    /// other node at the same time.
    ///
    /// The outcome names the nodes that may still have the old value; see [`WriteOutcome`].
    ///
    /// # Errors
    /// [`is_unreachable`](Error::is_unreachable) if no candidate took the write and one of them could not be reached,
    /// [`is_timeout`](Error::is_timeout) after the handle's deadline, [`is_too_large`](Error::is_too_large),
    /// [`is_load_failed`](Error::is_load_failed) if the value cannot be encoded, [`is_bad_key`](Error::is_bad_key),
    /// [`is_closed`](Error::is_closed), [`is_unknown_group`](Error::is_unknown_group).
    pub async fn set(&self, key: &str, value: impl Into<V>) -> Result<WriteOutcome> {
        write::set(&self.engine, key, value.into(), self.deadline).await
    }

    /// Drops the value of a key on all nodes, so that the next get loads it again. Otherwise as [`set`](Self::set).
    ///
    /// # Errors
    /// The errors of [`set`](Self::set) that do not concern the value.
    pub async fn remove(&self, key: &str) -> Result<WriteOutcome> {
        write::remove(&self.engine, key, Duration::ZERO, self.deadline).await
    }

    /// Drops the value of a key with options: a delete hold, or at its owner only. Otherwise as
    /// [`remove`](Self::remove).
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
    /// The errors of [`remove`](Self::remove).
    pub async fn remove_with(&self, key: &str, options: RemoveOptions) -> Result<WriteOutcome> {
        match options.is_owner_only {
            true => owner_only::remove(&self.engine, key, options.hold, self.deadline).await,
            false => write::remove(&self.engine, key, options.hold, self.deadline).await,
        }
    }

    /// Drops the values of many keys on all nodes, as [`remove`](Self::remove) does, at the same time.
    ///
    /// A node is pending in the outcome if it is pending for one of the keys.
    ///
    /// # Errors
    /// The first error of a `remove`, after all removes have ended. A key that is not allowed is an error before the
    /// first remove begins.
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

    /// Drops all values of the group on all nodes. Otherwise as [`remove`](Self::remove).
    ///
    /// The call takes one exchange with every other node, at the same time, however many values the group has.
    ///
    /// # Errors
    /// [`is_closed`](Error::is_closed), [`is_unknown_group`](Error::is_unknown_group),
    /// [`is_timeout`](Error::is_timeout).
    pub async fn clear(&self) -> Result<WriteOutcome> {
        write::clear(&self.engine, self.deadline).await
    }
}
