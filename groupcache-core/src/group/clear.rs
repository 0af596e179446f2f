//! Writes of many keys, and those that tell fewer nodes.

use std::{collections::BTreeSet, sync::Arc, thread, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{runtime::Handle, time::timeout};

use super::{
    Group, Inner,
    held::release_all,
    write::{AtOwner, Change, Invalidated},
};
use crate::{
    error::{Error, Result},
    message::Op,
    value::Value,
};

/// Removes of one call that are under way at once; they share frames.
const AT_ONCE: usize = 256;

/// Values that are let go of where they were dropped: a millisecond or two.
const LET_GO: usize = 8192;

impl<V: Value> Group<V> {
    /// Drops all values of the group everywhere. Otherwise as [`remove`](Self::remove).
    ///
    /// It takes one exchange with every other node, side by side, however many values there are.
    ///
    /// # Errors
    /// [`is_closed`](Error::is_closed), [`is_timeout`](Error::is_timeout).
    pub async fn clear(&self) -> Result<Invalidated> {
        self.inner.check_open()?;
        let group = Arc::clone(&self.inner);
        self.inner.carry_on(self.deadline, async move { Ok(group.clear_everywhere().await) }).await
    }

    /// Drops values everywhere, as [`remove`](Self::remove) for each key, side by side.
    ///
    /// The outcomes are put together: a node is unreached when it did not hear of one of them.
    ///
    /// # Errors
    /// Those of `remove`: the first of them, once all have been tried.
    pub async fn remove_many<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Invalidated> {
        let keys: BTreeSet<String> = keys.into_iter().map(|key| key.as_ref().to_owned()).collect();
        keys.iter().try_for_each(|key| self.inner.check(key))?;
        let removes = stream::iter(keys).map(|key| {
            let group = self.clone();
            async move { group.remove(&key).await }
        });
        let mut outcomes = removes.buffer_unordered(AT_ONCE);
        let (mut all, mut failed) = (Invalidated::nobody(), None);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(outcome) => all.add(outcome),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// Drops a value at its owner and here, and tells nobody else: one message, and copies of a hot value on other nodes
    /// are served until they end, at most [`borrowed_time_to_live`](crate::GroupBuilder::borrowed_time_to_live).
    ///
    /// Those who owned the key before, as far as that is ten minutes ago at most, are told as well: the next owner might
    /// take the old value over from them.
    ///
    /// # Errors
    /// Those of [`remove`](Self::remove).
    pub async fn remove_lazy(&self, key: &str) -> Result<()> {
        self.inner.check(key)?;
        self.inner.counters.writes.up();
        let (group, key): (_, Arc<str>) = (Arc::clone(&self.inner), key.into());
        let remove = async move {
            let view = group.shared.view();
            let AtOwner { acting, .. } =
                group.write_at_owner(&view, &key, Change::Remove { hold: Duration::ZERO }).await?;
            if acting.is_some() {
                group.drop_written(&key);
            }
            let former = group.owned_before(&key);
            let former = view
                .members()
                .iter()
                .filter(|member| former.contains(&member.id) && Some(&member.id) != acting.as_ref());
            let remove = || Op::Remove { hold: Duration::ZERO };
            let told: Vec<_> = former.filter_map(|member| group.tell(member, &key, remove(), 0)).collect();
            for answer in told {
                let _ = answer.await; // who cannot be reached hands nothing over either
            }
            Ok(())
        };
        self.inner.carry_on(self.deadline, remove).await
    }
}

impl<V: Value> Inner<V> {
    /// In a task of its own: a caller that gives up must not leave half of the nodes with the old value.
    pub(super) async fn carry_on<T: Send + 'static>(
        &self,
        wait: Duration,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = tokio::sync::oneshot::channel();
        self.shared.tasks.load(async move {
            let _ = done.send(work.await);
        });
        match timeout(wait, outcome).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(self.closed())),
            Err(_) => Err(self.timed_out(wait, None)),
        }
    }

    async fn clear_everywhere(self: Arc<Self>) -> Invalidated {
        self.counters.writes.up();
        let view = self.shared.view();
        self.drop_all();
        let (mut told, mut outcome) = (Vec::new(), Invalidated::nobody());
        outcome.unreached = self.passes_by(&view, None);
        let nothing: Arc<str> = "".into();
        for member in view.members().iter().filter(|member| member.dial.is_some()) {
            match self.tell(member, &nothing, Op::Clear, 0) {
                Some(answer) => told.push((member.id.clone(), answer)),
                None => {
                    self.not_told(&member.id, None);
                    outcome.unreached.push(member.id.clone());
                }
            }
        }
        for (id, answer) in told {
            if !self.has_dropped(answer.await.ok()) {
                self.not_told(&id, None);
                outcome.unreached.push(id);
            }
        }
        outcome.unreached.sort();
        outcome.unreached.dedup();
        outcome.views_differed = self.views_differ(&view);
        outcome
    }

    /// Drops what is held here and lets nothing that is under way be stored.
    pub(super) fn drop_all(&self) {
        self.formers.clear(self.shared.local.clock.read_ms());
        let drain = || (self.store.clear(), self.mirror.as_ref().map(super::Mirror::clear));
        let dropped = self.flights.clear(self.shared.local.clock.read_ms(), drain);
        let (values, copies) = (dropped.0, dropped.1.unwrap_or_default());
        let count = values.len() + copies.len();
        self.counters.invalidated.add(count as u64);
        let_go(count, || release_all(values.into_iter().chain(copies)));
    }

    fn check_open(&self) -> Result<(), Error> {
        self.check("any key will do")
    }
}

/// Frees so many values: many of them on a thread of its own, and not on one that serves gets.
///
/// Not on one of the runtime's for what blocks: a runtime that ends waits for those, and it panics where the system has
/// no thread left. Here they are freed at once then.
pub(super) fn let_go(values: usize, free: impl FnOnce() + Send + 'static) {
    let free = OnDrop(Some(free));
    // A thread is outside of simulated time.
    if values > LET_GO && cfg!(not(simulation)) {
        let runtime = Handle::try_current().ok(); // a value is the user's, and may want it when it is dropped
        let on_a_thread = move || {
            let _context = runtime.as_ref().map(Handle::enter);
            drop(free);
        };
        drop(thread::Builder::new().name("groupcache-free".to_owned()).spawn(on_a_thread));
    }
}

/// Is called when it is dropped, wherever that is: a thread that does not start drops what it was to do.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use std::{
        sync::mpsc::{Sender, channel},
        thread::ThreadId,
    };

    use bytes::{Bytes, BytesMut};

    use super::*;
    use crate::{
        group::held::{Held, Slot},
        store::{Entry, Times},
        value::{DecodeError, EncodeError},
    };

    /// Says on which thread it is let go of.
    #[derive(Clone)]
    struct Tells(Sender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    impl Value for Tells {
        fn encode(&self, _: &mut BytesMut) -> Result<(), EncodeError> {
            Ok(())
        }

        fn decode(_: Bytes) -> Result<Self, DecodeError> {
            Err(DecodeError::new("there is no need"))
        }

        fn weight(&self) -> usize {
            0
        }
    }

    #[tokio::test]
    async fn what_takes_long_to_free_is_freed_on_a_thread_that_serves_nobody() {
        let here = thread::current().id();
        for (count, is_here) in [(1, true), (LET_GO, true), (LET_GO + 1, false)] {
            let (tell, told) = channel();
            let entry = |_| Slot::new(Entry::new(Held::of(Tells(tell.clone())).unwrap(), Times::until(0, 1)));
            let values: Vec<_> = (0..count).map(entry).collect();
            let_go(count, || drop(values));
            drop(tell);
            let on: Vec<_> = told.iter().collect(); // until the last of them is gone
            assert_eq!((on.len(), on.iter().all(|on| (*on == here) == is_here)), (count, true), "{count} values");
        }
    }
}
