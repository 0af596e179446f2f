//! Evictions: events of the entries that leave memory without a write.

use std::sync::{
    Arc, OnceLock,
    atomic::{Ordering::SeqCst, fence},
};

use tokio::sync::broadcast::{self, error::RecvError};

/// Maximum number of events that wait for a slow reader. Beyond them the oldest are lost.
const WAITING_EVENTS: usize = 4096;

/// Reason of an eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictionReason {
    /// Other entries needed the room.
    Room,
    /// The entry was too old to be of any use.
    Age,
}

/// Eviction of one entry: neither a write nor a younger value of the key removed it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EvictionEvent {
    /// Key of the entry.
    pub key: Arc<str>,
    /// Bytes that the entry took of the budget.
    pub bytes: u64,
    /// Reason of the eviction.
    pub why: EvictionReason,
    /// Whether the entry was a replica of a hot value that another node owns.
    pub replica: bool,
}

/// Stream of the evictions of one group on this node, made by
/// [`Inspect::evictions`](crate::inspect::Inspect::evictions).
#[derive(Debug)]
pub struct EvictionEvents {
    events: broadcast::Receiver<Option<EvictionEvent>>,
    is_closed: bool,
    lost: u64,
}

impl EvictionEvents {
    /// Waits for the next event and returns it, or `None` once the group was removed or its node was shut down.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<EvictionEvent> {
        while !self.is_closed {
            match self.events.recv().await {
                Ok(Some(evicted)) => return Some(evicted),
                Ok(None) | Err(RecvError::Closed) => self.is_closed = true,
                Err(RecvError::Lagged(lost)) => self.lost += lost,
            }
        }
        None
    }

    /// Returns the number of events that were lost because more than 4,096 waited to be read.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// Sender of the events of one group. The channel is made for the first reader.
#[derive(Debug, Default)]
pub(crate) struct EvictionSender(OnceLock<broadcast::Sender<Option<EvictionEvent>>>);

impl EvictionSender {
    /// Subscribes to the events from now on. `is_closed` returns whether the group has ended.
    pub(crate) fn subscribe(&self, is_closed: impl FnOnce() -> bool) -> EvictionEvents {
        let events = self.0.get_or_init(|| broadcast::Sender::new(WAITING_EVENTS)).subscribe();
        // The end may have been sent already. Because `close` has a fence too, either `close` finds this channel or
        // this reader finds the group closed.
        fence(SeqCst);
        if is_closed() {
            self.close();
        }
        EvictionEvents { events, is_closed: false, lost: 0 }
    }

    /// Sends an event if there is a reader.
    pub(crate) fn send(&self, event: impl FnOnce() -> EvictionEvent) {
        if let Some(events) = self.0.get().filter(|events| events.receiver_count() > 0) {
            // Fails only when the last reader has left meanwhile.
            let _ = events.send(Some(event()));
        }
    }

    /// Sends the last event, after which readers get `None`.
    pub(crate) fn close(&self) {
        fence(SeqCst);
        if let Some(events) = self.0.get() {
            let _ = events.send(None);
        }
    }
}
