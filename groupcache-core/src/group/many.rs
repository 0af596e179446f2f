//! Gets of many keys at once.

use std::future::poll_fn;

use futures_util::future::join_all;

use super::Group;
use crate::{error::Result, peer::link::Cork, value::Value};

impl<V: Value> Group<V> {
    /// The values of many keys, in their order, each with its own outcome.
    ///
    /// It is a [`get`](Self::get) of each key at the same time, and shares loads with those of others; what is not in
    /// memory here is asked of each owner in one exchange for up to 1,024 keys. It ends within the group's deadline,
    /// and one key that fails or is late spoils none of the rest. Dropping the future is safe.
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
        let mut outcomes: Vec<_> = keys.iter().map(|key| self.hit(key.as_ref())).collect();
        let missing = outcomes.iter().zip(&keys).filter(|(outcome, _)| outcome.is_none());
        let misses = missing.map(|(_, key)| self.inner.miss(key.as_ref(), self.deadline));
        // Each asks its owner when it is polled first: all of them together, before any of it is sent.
        let mut all = Box::pin(join_all(misses));
        let mut is_begun = false;
        let found = poll_fn(|cx| {
            let _corks: Vec<Cork> = match std::mem::replace(&mut is_begun, true) {
                false => self.inner.shared.links().into_iter().map(|link| link.cork()).collect(),
                true => Vec::new(),
            };
            all.as_mut().poll(cx)
        });
        let mut found = found.await.into_iter();
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
            *outcome = found.next();
        }
        outcomes.into_iter().flatten().collect()
    }
}
