//! A get that finds nothing in memory: the owner is asked, or the loader.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    Failure, Inner,
    fetch::Seen,
    held::{NoValue, Slot},
    load::Loading,
};
use crate::{
    chain::{Chain, Lineage, Waiting},
    clock::{self, later},
    error::{Error, Kind, Result},
    flight::within,
    loader::LoadReason,
    value::Value,
};

/// When a get began, and until when its caller waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begun: Instant,
    deadline: Duration,
    end: Instant,
    deadline_ms: u64,
}

/// A get that found nothing in memory.
pub(super) struct Miss {
    pub(super) span: Span,
    pub(super) hash: u64,
    pub(super) chain: Chain,
    /// The load that asks for it.
    _waiting: Option<Waiting>,
}

impl<V: Value> Inner<V> {
    /// Steps 2 to 4 of a get.
    pub(super) async fn miss(self: &Arc<Self>, key: &str, deadline: Duration) -> Result<V> {
        let miss = self.begin_miss(key, self.span(deadline), Lineage::current().as_ref())?;
        let entered = self.enter(key, &miss, miss.span.begun)?;
        self.finish(key, &miss, entered).await
    }

    /// Begins now.
    pub(super) fn span(&self, deadline: Duration) -> Span {
        let begun = Instant::now(); // once: a read of the clock is a tenth of what else a get from a peer costs here
        let deadline_ms = later(self.shared.local.clock.at_ms(begun), deadline);
        Span { begun, deadline, end: clock::after(begun, deadline), deadline_ms }
    }

    /// Checks the key, and tells the load that asks for it, if one does, that it waits.
    pub(super) fn begin_miss(&self, key: &str, span: Span, asker: Option<&Arc<Lineage>>) -> Result<Miss> {
        self.check(key)?;
        let hash = self.place.hash(key.as_bytes());
        let waiting = asker.map(|load| load.wait_for(hash)).transpose().map_err(|k| self.knotted(k))?;
        Ok(Miss { span, hash, chain: asker.map_or(Chain::EMPTY, |load| load.chain()), _waiting: waiting })
    }

    /// Asks the owner, or begins to load; does not wait.
    fn enter(self: &Arc<Self>, key: &str, miss: &Miss, now: Instant) -> Result<Loading<V>> {
        // 2. The view is taken once.
        let seen = Seen::now(&self.shared);
        if self.owns(&seen.view, miss.hash) {
            // 4. Ours: load it.
            self.join_load(key, miss.hash, &miss.chain, LoadReason::Owner)
        } else {
            // 3. A peer's: ask it, or whoever answers for it.
            Ok(self.join_fetch(key, miss, seen, now, |turn| turn.advance()))
        }
    }

    /// Waits for what was entered; when that ran into a deadline that is not ours, asks again.
    pub(super) async fn finish(self: &Arc<Self>, key: &str, miss: &Miss, mut entered: Loading<V>) -> Result<V> {
        let clock = &self.shared.local.clock;
        loop {
            let (flight, _joined) = match entered {
                Loading::Found(slot) => return self.value_of(key, miss, &slot).await,
                Loading::Flight(flight, joined) => (flight, joined),
            };
            // A fetch ends by itself within its deadline: a timer is only needed by those who wait for less.
            let fetch_ends_ms = later(flight.begun_ms, self.shared.local.limits.get_deadline);
            let needs_timer = flight.context.lineage().is_some() || miss.span.deadline_ms < fetch_ends_ms;
            let outcome = if needs_timer && !mutant!(DeadlineIgnored) {
                // Boxed, as whatever is rare: every get that waits has room for all of its branches.
                Box::pin(timeout_at(miss.span.end, flight.outcome())).await.ok()
            } else {
                Some(flight.outcome().await)
            };
            match outcome {
                Some(Ok(slot)) => return self.value_of(key, miss, &slot).await,
                Some(Err(Failure::Said(error))) => return Err(error),
                Some(Err(Failure::Expired(_))) if clock.read_ms() < miss.span.deadline_ms => self.check(key)?,
                Some(Err(Failure::Expired(peer))) => return Err(self.timed_out(miss.span.deadline, peer.as_ref())),
                None => return Err(self.timed_out(miss.span.deadline, None)),
            }
            entered = self.enter(key, miss, Instant::now())?; // or the next fetch would end as it begins
        }
    }

    /// The decoded value; one that does not decode here is loaded here.
    async fn value_of(self: &Arc<Self>, key: &str, miss: &Miss, slot: &Slot<V>) -> Result<V> {
        match slot.payload.value() {
            Ok(value) => Ok(value),
            Err(NoValue::NotFound) => Err(self.not_found()),
            Err(NoValue::Undecodable(undecodable)) => {
                self.counters.undecodable.up();
                let name = &self.settings.name;
                tracing::debug!(group = %name, error = %undecodable, "a peer's value does not decode, it is loaded here");
                Box::pin(self.load_decodable(key, miss)).await
            }
        }
    }

    async fn load_decodable(self: &Arc<Self>, key: &str, miss: &Miss) -> Result<V> {
        let loaded = match self.join_load(key, miss.hash, &miss.chain, LoadReason::Fallback)? {
            Loading::Found(slot) => slot,
            Loading::Flight(flight, _joined) => match within(Some(miss.span.end), flight.outcome()).await {
                Some(Ok(slot)) => slot,
                Some(Err(Failure::Said(error))) => return Err(error),
                Some(Err(Failure::Expired(_))) | None => return Err(self.timed_out(Duration::ZERO, None)),
            },
        };
        loaded.payload.value().map_err(|no_value| match no_value {
            NoValue::NotFound => self.not_found(),
            NoValue::Undecodable(e) => {
                Error::caused(Kind::LoadFailed { is_transient: false }, "the value cannot be decoded again", e)
            }
        })
    }
}
