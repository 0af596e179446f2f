//! Looking without loading.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tokio::{sync::oneshot, time::timeout};

use super::{
    Group, Inner,
    held::{Held, Slot},
    write::Acknowledged,
};
use crate::{
    chain::Chain,
    clock::later,
    error::Result,
    message::{Answer, Op},
    peer::table::{Call, Outcome},
    store::{Entry, Times},
    sync::Mutex,
    value::Value,
};

impl<V: Value> Group<V> {
    /// The value of a key if it is in memory, here or at its owner; nothing is loaded.
    ///
    /// `None` also when its owner cannot be reached. It takes at most one exchange with the owner.
    ///
    /// # Errors
    /// [`is_bad_key`](crate::Error::is_bad_key), [`is_closed`](crate::Error::is_closed).
    pub async fn peek(&self, key: &str) -> Result<Option<V>> {
        // What does not decode here is not there for us.
        Ok(self.look(key).await?.and_then(|slot| slot.payload.value().ok()))
    }

    /// Whether a key's value is in memory, here or at its owner. Otherwise as [`peek`](Self::peek).
    ///
    /// # Errors
    /// Those of `peek`.
    pub async fn contains(&self, key: &str) -> Result<bool> {
        Ok(self.look(key).await?.is_some_and(|slot| slot.payload.encoded().is_some()))
    }

    async fn look(&self, key: &str) -> Result<Option<Slot<V>>> {
        let group = &self.inner;
        group.check(key)?;
        if let Some(slot) = group.held(key) {
            return Ok(Some(slot));
        }
        let view = group.shared.view();
        let owner = view.owner(group.settings.scope, group.place.hash(key.as_bytes()));
        let Some(owner) = owner.filter(|owner| owner.dial.is_some()) else { return Ok(None) };
        let Some(link) = group.shared.link(owner) else { return Ok(None) };
        let (answer, told) = oneshot::channel();
        let call = Call {
            op: Op::Peek,
            group: group.index(),
            key: key.into(),
            deadline_ms: later(group.shared.local.clock.read_ms(), self.deadline),
            rank: 0,
            chain: Chain::EMPTY,
            reply: Arc::new(Acknowledged(Mutex::new(Some(answer)))),
        };
        if link.send(call).is_err() {
            return Ok(None);
        }
        let Ok(Ok(Outcome::Answered(Answer::Value(value)))) = timeout(self.deadline, told).await else {
            return Ok(None);
        };
        let now_ms = group.shared.now_ms();
        Ok(Some(Slot::new(Entry::new(Held::received(value.bytes), Times::until(now_ms, now_ms)))))
    }
}

impl<V: Value> Inner<V> {
    /// What is in this node's memory and may be served.
    fn held(&self, key: &str) -> Option<Slot<V>> {
        let now_ms = self.shared.now_ms();
        let own = self.store.get(key, now_ms);
        let slot = own.or_else(|| self.mirror.as_ref()?.get(key, now_ms))?;
        (self.may_serve(key, &slot, now_ms) && !self.is_removed.load(Relaxed)).then_some(slot)
    }
}
