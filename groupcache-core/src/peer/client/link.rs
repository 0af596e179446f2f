//! The link to one peer, as callers, the tick and the membership see it; `client/mod.rs` keeps it connected.

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
    identity::{Address, Incarnation, Instance, PeerId},
    limits::{BATCH_REQUESTS, SILENCE},
    membership::stabilizer::{DialId, Refusal},
    peer::{
        client::{
            breaker::Breaker,
            call::{Call, Ended, NotSent},
            dial_limits::Arrival,
            request_table::RequestTable,
        },
        local::LocalNode,
        witnesses::Witness,
    },
    protocol::{
        message::{Hello, WriteName},
        wire,
    },
    runtime::sync::{ArcSwap, Mutex},
};

/// Event that a link sends to the membership.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A Hello: the first of a connection, or a later one.
    Hello(Hello),
    /// A refusal, by the peer or by this node, with the sentence that says why.
    Refused(Refusal, String),
    Failed(String),
    Lost,
    Goodbye(Incarnation),
    Fingerprint(u64),
}

pub(crate) type LinkEvents = mpsc::Sender<(DialId, LinkEvent)>;

/// A target to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) expected: Option<PeerId>,
    pub(crate) addresses: Vec<Address>,
}

/// The link to one target: its connection, its breaker and its requests.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) dial: DialId,
    pub(crate) local: Arc<LocalNode>,
    pub(crate) target: ArcSwap<Target>,
    pub(crate) table: Mutex<RequestTable>,
    /// Names and formats of the peer's groups.
    pub(crate) offers: ArcSwap<BTreeMap<Arc<str>, u32>>,
    /// Whether the groups of a known peer have changed since the membership asked.
    has_new_offers: AtomicBool,
    pub(crate) max_requests: AtomicU64,
    pub(crate) max_value_bytes: AtomicU64,
    /// Feature bits of the peer's last Hello.
    pub(crate) features: AtomicU64,
    pub(crate) fingerprint: AtomicU64,
    /// Peer of the current connection, or of the last one.
    peer: ArcSwap<Option<LinkPeer>>,
    /// Whether the peer drains or has said goodbye, by its last message.
    pub(crate) leaves: AtomicBool,
    /// Bytes that arrived on the link's connections, and how many of them the sweep has seen.
    pub(crate) bytes_read: Arc<AtomicU64>,
    bytes_seen: AtomicU64,
    /// Signal to the reader to ask the table for its verdict.
    pub(crate) look: Notify,
    /// Signal to make the next attempt to connect now.
    pub(crate) retry: Notify,
    /// Signal to shorten the pause before the next attempt, because the peer may be back.
    pub(crate) expedited: Notify,
    /// Signal that the peer of the target has connected to this node.
    pub(crate) awaited: Notify,
    /// Error of the last attempt, while there is no connection.
    pub(crate) failure: Mutex<Option<Error>>,
}

/// Process at the other end of a link.
#[derive(Debug)]
struct LinkPeer {
    instance: Instance,
    /// Number of announced writes, all of which the process has.
    level: AtomicU64,
}

impl Link {
    pub(crate) fn new(dial: DialId, target: Target, local: Arc<LocalNode>) -> Arc<Self> {
        let table = RequestTable::new(local.limits.max_in_flight_per_peer, Arc::clone(&local.values_in_flight));
        Arc::new(Self {
            dial,
            local,
            target: ArcSwap::from_pointee(target),
            table: Mutex::new(table),
            offers: ArcSwap::default(),
            has_new_offers: AtomicBool::new(false),
            max_requests: AtomicU64::new(BATCH_REQUESTS as u64),
            max_value_bytes: AtomicU64::new(u64::MAX),
            features: AtomicU64::new(0),
            fingerprint: AtomicU64::new(0),
            peer: ArcSwap::default(),
            leaves: AtomicBool::new(false),
            bytes_read: Arc::default(),
            bytes_seen: AtomicU64::new(0),
            look: Notify::new(),
            retry: Notify::new(),
            expedited: Notify::new(),
            awaited: Notify::new(),
            failure: Mutex::default(),
        })
    }

    /// Returns whether a request would be taken now.
    pub(crate) fn admits(&self) -> bool {
        self.table.lock().breaker.admits()
    }

    /// Returns for how many milliseconds the peer has been unreachable.
    pub(crate) fn open_for(&self, now_ms: u64) -> Option<u64> {
        self.table.lock().breaker.open_for(now_ms)
    }

    /// Returns whether the peer has this group in this format, by its last Hello.
    pub(crate) fn offers(&self, group: &str, format: u32) -> bool {
        self.offers.load().get(group) == Some(&format)
    }

    /// Records the groups of the peer.
    pub(crate) fn set_offers(&self, offers: BTreeMap<Arc<str>, u32>) {
        if !self.offers.load().iter().eq(&offers) {
            self.offers.store(Arc::new(offers));
            self.has_new_offers.store(true, Relaxed);
        }
    }

    /// Returns whether the groups of the peer have changed since the last call.
    pub(crate) fn take_new_offers(&self) -> bool {
        self.has_new_offers.swap(false, Relaxed)
    }

    /// Returns whether the peer takes part in hand-over, by its last Hello.
    pub(crate) fn hands_over(&self) -> bool {
        self.features.load(Relaxed) & wire::features::HANDOVER != 0
    }

    /// Returns whether the peer keeps logs of writes, by its last Hello.
    pub(crate) fn has_log(&self) -> bool {
        self.features.load(Relaxed) & wire::features::WRITE_LOG != 0
    }

    /// Returns whether the peer says when it begins the load of a key with strikes, by its last Hello.
    pub(crate) fn has_quarantine(&self) -> bool {
        self.features.load(Relaxed) & wire::features::QUARANTINE != 0
    }

    /// Returns the peer of the current connection, or of the last one.
    pub(crate) fn instance(&self) -> Option<Instance> {
        let loaded = self.peer.load();
        let peer: &Option<LinkPeer> = &loaded;
        peer.as_ref().map(|peer| peer.instance.clone())
    }

    /// Records the peer of a connection. The requests that wait for another process end, because they name the writes
    /// that the other process lacked.
    pub(crate) fn set_instance(&self, instance: Instance) {
        if self.instance().as_ref() == Some(&instance) {
            return;
        }
        self.peer.store(Arc::new(Some(LinkPeer { instance, level: AtomicU64::new(0) })));
        let ended = self.table.lock().end_all();
        tell(ended);
    }

    /// Returns the writes of a key that this node has heard of and the peer has not said that it has. The caller has
    /// registered its flight before.
    pub(crate) fn names_for(&self, group: &str, key: &str) -> Vec<WriteName> {
        let loaded = self.peer.load();
        let peer: &Option<LinkPeer> = &loaded;
        match peer {
            Some(peer) => self.local.writes.names_for(&peer.instance, &peer.level, group, key),
            None => Vec::new(),
        }
    }

    /// Returns whether the peer takes a value of this size, by its last Hello.
    pub(crate) fn takes(&self, value_bytes: usize) -> bool {
        value_bytes as u64 <= self.max_value_bytes.load(Relaxed)
    }

    /// Returns whether the peer has this group in any format, by its last Hello.
    pub(crate) fn offers_any(&self, group: &str) -> bool {
        self.offers.load().contains_key(group)
    }

    /// Returns the fingerprint of the peer's ring in its last frame.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint.load(Relaxed)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.table.lock().in_flight()
    }

    /// Sends a request. Its receiver gets the outcome exactly once, unless the request is refused here.
    pub(crate) fn send(&self, mut call: Call) -> Result<(), NotSent> {
        if self.local.in_flight.load(Relaxed) >= self.local.limits.max_in_flight {
            call.reply.discard();
            return Err(NotSent::Full);
        }
        let waker = self.table.lock().push(call)?;
        wake(waker);
        Ok(())
    }

    /// Sends many requests, which leave in one frame. Returns how many were taken, from the first on, and why the rest
    /// was refused.
    pub(crate) fn send_all(&self, calls: impl Iterator<Item = Call>) -> (usize, Option<NotSent>) {
        if self.local.in_flight.load(Relaxed) >= self.local.limits.max_in_flight {
            return (0, Some(NotSent::Full));
        }
        // Made before the table is locked, because a call names writes, under a lock of their own.
        let calls: Vec<Call> = calls.collect();
        let (taken, refused, waker) = self.table.lock().push_all(calls.into_iter());
        wake(waker);
        (taken, refused)
    }

    /// Sends a frame, because something that every frame carries has changed.
    pub(crate) fn nudge(&self) {
        let waker = self.table.lock().waker.take();
        wake(waker);
    }

    /// Ends calls at their deadlines and watches over silence; called every 10 ms.
    pub(crate) fn sweep(&self, now_ms: u64, we_stood_still: bool) {
        let bytes = self.bytes_read.load(Relaxed);
        let has_heard = self.bytes_seen.swap(bytes, Relaxed) != bytes;
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

    /// Sends the peer a goodbye.
    pub(crate) fn say_goodbye(&self) {
        let waker = {
            let mut table = self.table.lock();
            table.goodbye_due = true;
            table.waker.take()
        };
        wake(waker);
    }

    /// Returns whether the connection has still to take the goodbye.
    pub(crate) fn owes_goodbye(&self) -> bool {
        let table = self.table.lock();
        table.goodbye_due && table.breaker == Breaker::Closed
    }

    /// Closes the connection, and makes a new one after the back-off.
    pub(crate) fn reconnect(&self) {
        self.table.lock().dismiss();
        self.look.notify_one();
    }

    /// Replaces the connection without an outage, because other certificates are in use now.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "only certificates are renewed"))]
    pub(crate) fn renew(&self) {
        self.table.lock().renew();
        self.look.notify_one();
    }

    /// Returns the target and the error of the last attempt; `None` while the link is connected, and before the first
    /// attempt has ended.
    pub(crate) fn failure(&self) -> Option<(Target, Error)> {
        let failure = self.failure.lock().clone()?;
        Some((Target::clone(&self.target.load()), failure))
    }

    /// Returns the target that the link dials.
    pub(crate) fn target(&self) -> Arc<Target> {
        self.target.load_full()
    }

    /// Sets other addresses for the next attempt, which is made now.
    pub(crate) fn set_addresses(&self, target: Target) {
        self.target.store(Arc::new(target));
        self.retry.notify_one();
    }

    /// Shortens the pause before the next attempt, because a peer has arrived. After the arrival of its own peer, the
    /// target passes others that have never answered.
    pub(crate) fn retry_soon(&self, arrival: Arrival) {
        if arrival == Arrival::OfTarget {
            self.awaited.notify_one();
        }
        if arrival > Arrival::None {
            self.expedited.notify_one();
        }
    }

    /// Ends the link: waiting requests are unreachable, and the task that keeps the link up returns.
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

    /// Pings the peer with the next frame, which is sent at once.
    pub(crate) fn ping_now(&self) {
        let waker = {
            let mut table = self.table.lock();
            table.ask_for_ping();
            table.waker.take()
        };
        wake(waker);
    }

    /// Pings the peer, on a new connection if there is none, and returns whether it answers within the silence limit.
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

impl Witness for Link {
    fn succeeded(&self, newer: &Hello) {
        let target = self.target.load();
        if !target.addresses.iter().any(|address| newer.addresses.contains(address)) {
            return; // two nodes with one id
        }
        let ended = self.table.lock().succeeded(&newer.instance(), self.leaves.load(Relaxed));
        tell(ended);
        self.look.notify_one();
    }
}

pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

pub(crate) fn tell(ended: Ended) {
    let now = Instant::now(); // one for all that a frame brought
    for (receiver, outcome) in ended {
        receiver.tell(outcome, now);
    }
}
