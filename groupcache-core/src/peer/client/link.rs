//! The link to one peer, as callers, the tick and the membership see it; `client.rs` keeps it up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::{
    error::Error,
    identity::{Address, Incarnation, PeerId},
    limits::{BATCH_REQUESTS, SILENCE},
    membership::stabilizer::{DialId, Refusal},
    peer::{
        client::{
            breaker::Breaker,
            request_table::{Call, Ended, NotSent, RequestTable},
        },
        local::LocalNode,
    },
    protocol::{message::Hello, wire},
    runtime::sync::{ArcSwap, Mutex},
};

/// What a link tells the membership.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The first Hello of a connection, and each later one.
    Hello(Hello),
    /// The peer will not talk to us, or we not to it; and the sentence that says why.
    Refused(Refusal, String),
    Failed(String),
    Lost,
    Goodbye(Incarnation),
    Fingerprint(u64),
}

pub(crate) type LinkEvents = mpsc::Sender<(DialId, LinkEvent)>;

/// Whom to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) expected: Option<PeerId>,
    pub(crate) addresses: Vec<Address>,
}

/// The connection to one peer, and what waits for it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) dial: DialId,
    pub(crate) local: Arc<LocalNode>,
    pub(crate) target: ArcSwap<Target>,
    pub(crate) table: Mutex<RequestTable>,
    /// Names and formats of the peer's groups.
    pub(crate) offers: ArcSwap<BTreeMap<Arc<str>, u32>>,
    pub(crate) max_requests: AtomicU64,
    pub(crate) max_value_bytes: AtomicU64,
    /// What the peer understands, by its last Hello.
    pub(crate) features: AtomicU64,
    pub(crate) fingerprint: AtomicU64,
    /// The peer drains or has said goodbye, by what it said last.
    pub(crate) leaves: AtomicBool,
    /// Bytes that came on its connections, and how many of them were taken note of.
    pub(crate) bytes_read: Arc<AtomicU64>,
    bytes_noted: AtomicU64,
    /// The reader should ask the table for its verdict.
    pub(crate) look: Notify,
    /// The next attempt to connect is to be made now.
    pub(crate) retry: Notify,
    /// The peer may be back: what is left of the pause before the next attempt is too long.
    pub(crate) hurried: Notify,
    /// Why the last attempt failed, while there is no connection.
    pub(crate) failure: Mutex<Option<Error>>,
}

impl Link {
    pub(crate) fn new(dial: DialId, target: Target, local: Arc<LocalNode>) -> Arc<Self> {
        let max_in_flight = local.limits.max_in_flight_per_peer;
        Arc::new(Self {
            dial,
            local,
            target: ArcSwap::from_pointee(target),
            table: Mutex::new(RequestTable::new(max_in_flight)),
            offers: ArcSwap::default(),
            max_requests: AtomicU64::new(BATCH_REQUESTS as u64),
            max_value_bytes: AtomicU64::new(u64::MAX),
            features: AtomicU64::new(0),
            fingerprint: AtomicU64::new(0),
            leaves: AtomicBool::new(false),
            bytes_read: Arc::default(),
            bytes_noted: AtomicU64::new(0),
            look: Notify::new(),
            retry: Notify::new(),
            hurried: Notify::new(),
            failure: Mutex::default(),
        })
    }

    /// Whether a request would be taken now.
    pub(crate) fn admits(&self) -> bool {
        self.table.lock().breaker.admits()
    }

    /// Milliseconds for which the peer has been unreachable.
    pub(crate) fn open_for(&self, now_ms: u64) -> Option<u64> {
        self.table.lock().breaker.open_for(now_ms)
    }

    /// Whether the peer was lost: it cannot be reached, and has not said that it leaves.
    pub(crate) fn is_lost(&self, now_ms: u64) -> bool {
        !self.leaves.load(Relaxed) && self.open_for(now_ms).is_some()
    }

    /// Whether the peer has this group in this format, by its last Hello.
    pub(crate) fn offers(&self, group: &str, format: u32) -> bool {
        self.offers.load().get(group) == Some(&format)
    }

    /// Whether the peer hands over what it owned before, by its last Hello.
    pub(crate) fn hands_over(&self) -> bool {
        self.features.load(Relaxed) & wire::features::HANDOVER != 0
    }

    /// Whether the peer takes a value of this size, by its last Hello.
    pub(crate) fn takes(&self, value_bytes: usize) -> bool {
        value_bytes as u64 <= self.max_value_bytes.load(Relaxed)
    }

    /// As [`offers`](Self::offers), in any format.
    pub(crate) fn offers_any(&self, group: &str) -> bool {
        self.offers.load().contains_key(group)
    }

    /// The fingerprint of the peer's ring, as it said last.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint.load(Relaxed)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.table.lock().in_flight()
    }

    /// Sends a request. Its reply is told the outcome exactly once, unless it is refused here.
    pub(crate) fn send(&self, call: Call) -> Result<(), NotSent> {
        if self.local.in_flight.load(Relaxed) >= self.local.limits.max_in_flight {
            return Err(NotSent::Full);
        }
        let waker = self.table.lock().push(call)?;
        wake(waker);
        Ok(())
    }

    /// Sends many requests, which leave in one frame. Returns how many were taken, the first of them, and why the rest was
    /// not.
    pub(crate) fn send_all(&self, calls: impl Iterator<Item = Call>) -> (usize, Option<NotSent>) {
        if self.local.in_flight.load(Relaxed) >= self.local.limits.max_in_flight {
            return (0, Some(NotSent::Full));
        }
        let (taken, refused, waker) = self.table.lock().push_all(calls);
        wake(waker);
        (taken, refused)
    }

    /// Something that every frame carries has changed: send it.
    pub(crate) fn nudge(&self) {
        let waker = self.table.lock().waker.take();
        wake(waker);
    }

    /// Looks after deadlines and silence; every 10 ms.
    pub(crate) fn sweep(&self, now_ms: u64, we_stood_still: bool) {
        let bytes = self.bytes_read.load(Relaxed);
        let has_heard = self.bytes_noted.swap(bytes, Relaxed) != bytes;
        let (swept, waker) = {
            let mut table = self.table.lock();
            if has_heard {
                table.heard(now_ms);
            }
            let swept = table.sweep(now_ms, we_stood_still);
            let waker = if table.has_due() { table.waker.take() } else { None };
            (swept, waker)
        };
        wake(waker);
        tell(swept.ended);
        if swept.may_be_silent {
            self.look.notify_one();
        }
    }

    /// Tells the peer that this node leaves for good.
    pub(crate) fn say_goodbye(&self) {
        let waker = {
            let mut table = self.table.lock();
            table.goodbye_due = true;
            table.waker.take()
        };
        wake(waker);
    }

    /// Whether the goodbye has yet to be taken by the connection.
    pub(crate) fn owes_goodbye(&self) -> bool {
        let table = self.table.lock();
        table.goodbye_due && table.breaker == Breaker::Closed
    }

    /// Gives the connection up and makes a new one after the back-off.
    pub(crate) fn reconnect(&self) {
        self.table.lock().dismiss();
        self.look.notify_one();
    }

    /// Puts a new connection in the place of this one, without an outage: other certificates are in use now.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "only certificates are renewed"))]
    pub(crate) fn renew(&self) {
        self.table.lock().renew();
        self.look.notify_one();
    }

    /// Whom it does not get through to, and why; `None` while it is connected, and before the first attempt has ended.
    pub(crate) fn failure(&self) -> Option<(Target, Error)> {
        let failure = self.failure.lock().clone()?;
        Some((Target::clone(&self.target.load()), failure))
    }

    /// Whom it dials.
    pub(crate) fn target(&self) -> Arc<Target> {
        self.target.load_full()
    }

    /// Other addresses for the next attempt.
    pub(crate) fn set_addresses(&self, target: Target) {
        self.target.store(Arc::new(target));
        self.retry.notify_one();
    }

    /// The peer may be back: the next attempt need not wait as long as after the last one.
    pub(crate) fn retry_soon(&self) {
        self.hurried.notify_one();
    }

    /// Ends it: who waits is told, and the task of [`keep`] returns.
    pub(crate) fn close(&self) {
        let (ended, waker) = {
            let mut table = self.table.lock();
            (table.gone(), table.waker.take())
        };
        wake(waker);
        tell(ended);
        self.look.notify_one();
        self.retry.notify_one();
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.table.lock().breaker == Breaker::Removed
    }

    /// Whether the peer says anything within the silence limit, by a ping or by a new connection.
    pub(crate) async fn is_alive(&self) -> bool {
        let (reads, waker) = {
            let mut table = self.table.lock();
            table.ask_for_ping();
            (table.reads(), table.waker.take())
        };
        wake(waker);
        self.retry.notify_one();
        let step = Duration::from_millis(20);
        for _ in 0..(SILENCE.as_millis() / step.as_millis()) {
            tokio::time::sleep(step).await;
            if self.table.lock().reads() > reads {
                return true;
            }
        }
        false
    }
}

pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

pub(crate) fn tell(ended: Ended) {
    let now = Instant::now(); // one for all that a frame brought
    for (reply, outcome) in ended {
        reply.reply(outcome, now);
    }
}
