//! Gets of many keys at once.

use std::time::Duration;

use tokio::time::Instant;

use super::Group;
use crate::{error::Result, peer::link::Cork, value::Value};

/// Keys that are asked for at once: one frame to each owner, and no more loads than may wait here.
const AT_ONCE: usize = 1000;

impl<V: Value> Group<V> {
    /// The values of many keys, in their order, each with its own outcome.
    ///
    /// It is a [`get`](Self::get) of each key at the same time, and shares loads with those of others; what is not in
    /// memory here is asked of each owner in one exchange, a thousand keys at a time. It ends within the group's deadline,
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
        let begun = Instant::now();
        let mut outcomes: Vec<_> = keys.iter().map(|key| self.hit(key.as_ref())).collect();
        let mut missing: Vec<_> = outcomes.iter_mut().zip(&keys).filter(|(outcome, _)| outcome.is_none()).collect();
        for some in missing.chunks_mut(AT_ONCE) {
            let left = self.deadline.saturating_sub(begun.elapsed());
            let found = self.miss_many(some.iter().map(|(_, key)| key.as_ref()), left).await;
            for ((outcome, _), found) in some.iter_mut().zip(found) {
                **outcome = Some(found);
            }
        }
        outcomes.into_iter().flatten().collect()
    }

    /// Asks for all of these at the same time.
    async fn miss_many<'a>(&self, keys: impl Iterator<Item = &'a str>, deadline: Duration) -> Vec<Result<V>> {
        let group = &self.inner;
        let asked: Vec<_> = {
            let _taking = group.shared.registry.takes_many();
            let _corks: Vec<Cork> = group.shared.links().into_iter().map(|link| link.cork()).collect();
            keys.map(|key| (key, group.begin_miss(key, deadline).and_then(|miss| Ok((group.enter(key, &miss)?, miss)))))
                .collect()
        };
        let mut outcomes = Vec::with_capacity(asked.len());
        // All of them are under way: who waits for one after the other has the last as soon as it is there.
        for (key, entered) in asked {
            outcomes.push(match entered {
                Ok((entered, miss)) => group.finish(key, &miss, entered).await,
                Err(error) => Err(error),
            });
        }
        outcomes
    }
}
