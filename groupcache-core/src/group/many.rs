//! Gets of many keys at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Flying, Group, Inner,
    fetch::{Seen, Turn, ask_together},
    load::Loading,
    miss::{Miss, Span},
};
use crate::{
    chain::Lineage, error::Result, loader::LoadReason, membership::stabilizer::DialId, peer::link::Link, value::Value,
};

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
            if left.is_zero() {
                // Nothing is begun that nobody waits for.
                some.iter_mut()
                    .for_each(|(outcome, _)| **outcome = Some(Err(self.inner.timed_out(self.deadline, None))));
                continue;
            }
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
            let mut together = Together::new(group, deadline);
            keys.map(|key| (key, together.enter(key))).collect()
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

/// Gets that begin in one moment: what they have in common is looked at once, and each owner is asked when this is dropped.
struct Together<'a, V: Value> {
    group: &'a Arc<Inner<V>>,
    span: Span,
    seen: Seen,
    asker: Option<Arc<Lineage>>,
    /// Their order does not change from run to run.
    by_owner: BTreeMap<DialId, OfOwner<V>>,
}

/// Fetches that are to begin with this owner; without a link they have begun with others.
struct OfOwner<V: Value> {
    link: Option<Arc<Link>>,
    flights: Vec<Flying<V>>,
}

impl<'a, V: Value> Together<'a, V> {
    fn new(group: &'a Arc<Inner<V>>, deadline: Duration) -> Self {
        let (span, seen) = (group.span(deadline), Seen::now(&group.shared));
        Self { group, span, seen, asker: Lineage::current(), by_owner: BTreeMap::new() }
    }

    /// Steps 2 to 4 of a get, as far as it can be said without waiting.
    fn enter(&mut self, key: &str) -> Result<(Loading<V>, Miss)> {
        let (group, view) = (self.group, Arc::clone(&self.seen.view));
        let miss = group.begin_miss(key, self.span, self.asker.as_ref())?;
        let owner = view.owner(group.settings.scope, miss.hash).and_then(|owner| Some((owner, owner.dial?)));
        let Some((owner, dial)) = owner else {
            return Ok((group.join_load(key, miss.hash, &miss.chain, LoadReason::Owner)?, miss));
        };
        let begin = |turn: Turn<'_, V>| {
            let found = || OfOwner { link: turn.link(owner), flights: Vec::new() };
            let of_owner = self.by_owner.entry(dial).or_insert_with(found);
            match of_owner.link {
                Some(_) => of_owner.flights.push(Arc::clone(turn.flight)),
                None => turn.advance(),
            }
        };
        let entered = group.join_fetch(key, &miss, self.seen.clone(), self.span.begun, begin);
        Ok((entered, miss))
    }
}

impl<V: Value> Drop for Together<'_, V> {
    fn drop(&mut self) {
        for OfOwner { link, flights } in self.by_owner.values() {
            if let Some(owner) = link {
                ask_together(self.group, owner, flights);
            }
        }
    }
}
