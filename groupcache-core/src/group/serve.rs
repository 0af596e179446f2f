//! What peers may ask of a group.

use std::{
    error::Error as _,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;

use super::{
    Failure, Group, Inner, Outcome,
    clear::let_go,
    fetch::Seen,
    held::{Slot, decode, release_all},
    load::Loading,
    mirror::{HOT_AT_OWNER, Mirror},
};
use crate::{
    clock::{self, NEVER, later},
    config::{MAX_ERROR_TEXT, RETRY_AFTER},
    error::{Error, Kind},
    flight::{Kind as Table, within},
    identity::PeerId,
    loader::LoadReason,
    message::{Answer, Decline, Encoded, Page, Source, Whose},
    served::{Answering, Ask, Progress, Pulled, Served, Taken},
    value::Value,
};

/// For how long a stale value is lent: a younger one is on its way.
const LENT_STALE_MS: u64 = 1000;

/// A load that is this much past its deadline blocks its thread: it was told to stop and did not.
const OVERDUE: Duration = Duration::from_secs(1);

impl<V: Value> Served for Inner<V> {
    fn format(&self) -> u32 {
        self.settings.format
    }

    fn hit(self: Arc<Self>, key: &str) -> Option<Answer> {
        self.counters.served.up();
        let now_ms = self.shared.now_ms();
        let hash = self.place.hash(key.as_bytes());
        self.asked.touch(hash, now_ms);
        let slot = self.store.get(key, now_ms).filter(|slot| self.may_serve(key, slot, now_ms))?;
        self.counters.served_hits.up();
        slot.touch(now_ms);
        self.freshen(key, &slot, now_ms);
        let is_hot = self.asked.is_hot(hash, now_ms, HOT_AT_OWNER);
        Some(self.told(&slot, now_ms, Source::Memory, is_hot))
    }

    fn former(&self, key: &str) -> Answer {
        self.told_to_next_owner(key)
    }

    fn hand_over(self: Arc<Self>, to: PeerId, cursor: u64) -> Answering {
        // In a task of its own: copying a page takes a while, and the connection has others to answer.
        Box::pin(async move { tokio::spawn(self.page(to, cursor)).await.unwrap_or(Answer::Declined(Decline::Other)) })
    }

    fn list(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { Inner::list(&self).await })
    }

    fn progress(&self, is_reached: &dyn Fn(&PeerId) -> bool) -> Option<Progress> {
        self.progress(is_reached)
    }

    fn room(&self) -> u64 {
        self.room()
    }

    fn take_over(self: Arc<Self>, page: Page, pulled: Pulled) -> Pin<Box<dyn Future<Output = Taken> + Send>> {
        Box::pin(self.take(page, pulled))
    }

    fn load(self: Arc<Self>, ask: Ask<'_>) -> Answering {
        let hash = self.place.hash(ask.key.as_bytes());
        let joined = if self.shared.is_draining() {
            match self.running_load(ask.key) {
                Some(flight) => Ok(Loading::Flight(flight, None)),
                None => return Box::pin(std::future::ready(Answer::Declined(Decline::Draining))),
            }
        } else if self.shared.is_closed() {
            return Box::pin(std::future::ready(Answer::Declined(Decline::Closing)));
        } else {
            let is_mine = self.owns(&self.shared.view_ref(), hash);
            let reason = if is_mine { LoadReason::Owner } else { LoadReason::Fallback };
            match mutant!(ServerForwards) && !is_mine {
                true => self.forward(&ask),
                false => self.join_load(ask.key, hash, &ask.chain, reason),
            }
        };
        // Begun above, not when it is first polled: a request is older than what follows it on the connection.
        let deadline = clock::deadline(ask.wait);
        Box::pin(async move {
            let outcome = match joined {
                Ok(Loading::Found(slot)) => Ok(slot),
                Ok(Loading::Flight(flight, _joined)) => match within(Some(deadline), flight.outcome()).await {
                    Some(outcome) => outcome,
                    None => return Answer::Deadline(Whose::Asker),
                },
                Err(error) => Err(error.into()),
            };
            self.answer(outcome)
        })
    }

    fn invalidate_and_hold(&self, key: &str, hold: Duration) {
        self.drop_and_hold(key, hold);
    }

    fn clear(&self) {
        self.drop_all();
    }

    fn longest_wait(&self) -> Duration {
        self.settings.load_deadline.saturating_add(OVERDUE)
    }

    fn set(self: Arc<Self>, key: &str, value: Bytes) -> Answering {
        let mark = self.drop_written(key);
        let key: Arc<str> = key.into();
        let store = move || {
            let hash = self.place.hash(key.as_bytes());
            let now_ms = self.shared.local.clock.read_ms();
            let Ok(value) = decode::<V>(value) else { return Answer::Declined(Decline::OtherFormat) };
            let Ok(slot) = self.slot(&key, value, self.times_of_set(now_ms, hash)) else {
                return Answer::Declined(Decline::OtherFormat);
            };
            // Passed by a later write: that one stands, and this one has done its part.
            if let Some(inserted) = self.flights.write_later(mark, || self.store.insert(&key, slot)) {
                self.stored(&key, inserted, false);
            }
            Answer::Done
        };
        if V::DECODES_LIKE_A_CLONE {
            return Box::pin(std::future::ready(store()));
        }
        // Decoding is the user's code and may take long: not in the task that reads the connection.
        Box::pin(async move { tokio::spawn(async move { store() }).await.unwrap_or(Answer::Declined(Decline::Other)) })
    }

    fn sweep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            // A load that runs still began when its hold was on.
            let longest_ms = self.settings.load_deadline.as_millis() as u64;
            self.holds.sweep(self.shared.now_ms().saturating_sub(longest_ms));
            self.formers.sweep(&self.shared.handover);
            self.sweep_lists();
            self.sweep_store(None).await;
            if let Some(mirror) = &self.mirror {
                self.sweep_store(Some(mirror)).await;
            }
        })
    }

    fn watch(&self) {
        let now_ms = self.shared.now_ms();
        for flight in self.flights.all(Table::Load) {
            let overdue_ms = later(flight.begun_ms, self.settings.load_deadline.saturating_add(OVERDUE));
            if overdue_ms <= now_ms && flight.first_time_overdue() {
                self.counters.overdue_loads.up();
                tracing::warn!(
                    group = %self.settings.name,
                    "a load runs past its deadline: its loader blocks its thread; move what blocks to spawn_blocking"
                );
            }
        }
    }

    fn close(self: Arc<Self>) {
        self.is_removed.store(!self.shared.is_closed(), Relaxed);
        for table in [Table::Fetch, Table::Load] {
            for flight in self.flights.all(table) {
                self.flights.land(&flight, Err(self.closed().into()), || ());
            }
        }
        // Who finds them open does so under a lock that the clear takes afterwards: it has stored what it had by then.
        self.flights.clear(self.shared.local.clock.read_ms(), || {
            self.store.close();
            self.mirror.iter().for_each(Mirror::close);
        });
        self.tell_no_more();
        let values = self.store.len() + self.mirror.as_ref().map_or(0, Mirror::len);
        let_go(values, move || {
            release_all(self.store.clear());
            release_all(self.mirror.iter().flat_map(Mirror::clear));
        });
    }
}

impl<V: Value> Inner<V> {
    /// What no node does with a request: the mutant that is to be found.
    fn forward(self: &Arc<Self>, ask: &Ask<'_>) -> crate::error::Result<Loading<V>> {
        let now = tokio::time::Instant::now();
        let miss = self.begin_miss(ask.key, self.span(ask.wait), None)?;
        Ok(self.join_fetch(ask.key, &miss, Seen::now(&self.shared), now, |turn| turn.advance()))
    }

    /// An entry as it is told to a peer.
    fn told(&self, slot: &Slot<V>, now_ms: u64, source: Source, is_hot: bool) -> Answer {
        let Some(bytes) = slot.payload.encoded() else { return Answer::NotFound };
        let fresh_until_ms = slot.fresh_until_ms();
        let remaining_ms = (fresh_until_ms != NEVER).then(|| fresh_until_ms.saturating_sub(now_ms));
        let borrowed_ms = self.settings.ages.borrowed.as_millis() as u64;
        // What is served stale is lent too, or a hot key would fall on its owner for as long as its refresh takes.
        let stale_ms = slot.hit_until_ms().saturating_sub(now_ms).min(LENT_STALE_MS);
        Answer::Value(Encoded {
            bytes: bytes.clone(),
            age_ms: now_ms.saturating_sub(slot.loaded_at_ms),
            remaining_ms,
            borrow_ms: remaining_ms.map_or(borrowed_ms, |remaining_ms| remaining_ms.max(stale_ms).min(borrowed_ms)),
            is_hot,
            source,
        })
    }

    fn answer(&self, outcome: Outcome<V>) -> Answer {
        match outcome {
            Ok(slot) => self.told(&slot, self.shared.now_ms(), Source::Loaded, false),
            Err(Failure::Expired(_)) => Answer::Deadline(Whose::Asker),
            Err(Failure::Said(error)) => answer_of(&error),
        }
    }
}

/// An error as it is told to a peer.
fn answer_of(error: &Error) -> Answer {
    match error.kind() {
        Kind::NotFound => Answer::NotFound,
        Kind::LoadFailed { is_transient } => {
            // The chain of causes is all that the peer will know of it.
            let mut text = String::new();
            let mut cause = error.source();
            while let Some(e) = cause.filter(|_| text.len() < MAX_ERROR_TEXT) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&e.to_string());
                cause = e.source();
            }
            Answer::LoadFailed { is_transient, text: if text.is_empty() { error.to_string() } else { text } }
        }
        Kind::Overloaded => Answer::Overloaded { retry_after: RETRY_AFTER },
        Kind::TooLarge => Answer::TooLarge,
        Kind::Timeout => Answer::Deadline(Whose::Load),
        Kind::Closed => Answer::Declined(Decline::Closing),
        Kind::BadKey | Kind::UnknownGroup | Kind::Unreachable | Kind::Unauthenticated | Kind::Config => {
            Answer::LoadFailed { is_transient: false, text: error.to_string() }
        }
    }
}

impl<V: Value> Group<V> {
    pub(crate) fn served(&self) -> Arc<dyn Served> {
        Arc::clone(&self.inner) as Arc<dyn Served>
    }
}
