//! The local node as its connections present it: its Hello, clock, limits and counters, and the check of a peer's
//! Hello.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::watch;

use crate::{
    limits::{Limits, MEMORY_PARTS, VALUES_IN_FLIGHT},
    peer::{client::dial_limits::DialLimits, witnesses::Witnesses},
    protocol::message::Hello,
    quarantine::Quarantine,
    runtime::{
        byte_budget::ByteBudget,
        clock::Clock,
        memory_limit,
        stats::NodeCounters,
        sync::{ArcSwap, Mutex},
    },
    transport::{Net, ReceivedBytes, Security},
    write::shared::Writes,
};

/// State of the local node that its client and its server share.
#[derive(Debug)]
pub(crate) struct LocalNode {
    hello: ArcSwap<Hello>,
    /// Lock that serialises changes of the Hello, because each change starts from the previous Hello.
    changing: Mutex<()>,
    /// Number that grows with each change. A connection that has sent an older version sends the Hello again.
    version: watch::Sender<u64>,
    fingerprint: AtomicU64,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<NodeCounters>,
    pub(crate) net: Net,
    /// Limits of the dials to targets that have never answered.
    pub(crate) dial_limits: DialLimits,
    pub(crate) security: Security,
    /// Number of requests of this node that peers have not answered, as of the last tick.
    pub(crate) in_flight: AtomicUsize,
    /// Bytes of the values in the requests of this node that peers have not answered.
    pub(crate) values_in_flight: Arc<ByteBudget>,
    /// Bytes of the responses that are queued for all peers.
    pub(crate) queued_answer_bytes: AtomicUsize,
    /// Budget of the bytes that connections of peers have received and nobody has taken.
    pub(crate) received: Arc<ReceivedBytes>,
    /// Logs of writes, company and horizon.
    pub(crate) writes: Arc<Writes>,
    /// Keys with loads that have ended processes.
    pub(crate) quarantine: Quarantine,
    /// Links, as witnesses of the ends of the processes that they reach.
    pub(crate) witnesses: Witnesses,
}

impl LocalNode {
    pub(crate) fn new(hello: Hello, limits: Limits, security: Security, counters: Arc<NodeCounters>) -> Self {
        let clock = Clock::start();
        let quarantine = Quarantine::new(hello.instance());
        Self {
            writes: Arc::new(Writes::new(hello.instance(), clock.read_ms(), Arc::clone(&counters))),
            fingerprint: AtomicU64::new(hello.fingerprint),
            hello: ArcSwap::from_pointee(hello),
            changing: Mutex::new(()),
            version: watch::Sender::new(1),
            clock,
            queued_answer_bytes: AtomicUsize::new(0),
            received: Arc::new(ReceivedBytes::of(&limits)),
            limits,
            counters,
            net: Net::tcp(security.clone()),
            dial_limits: DialLimits::default(),
            security,
            in_flight: AtomicUsize::new(0),
            values_in_flight: ByteBudget::new(memory_limit::part(MEMORY_PARTS, VALUES_IN_FLIGHT)),
            quarantine,
            witnesses: Witnesses::default(),
        }
    }

    pub(crate) fn hello(&self) -> Arc<Hello> {
        self.hello.load_full()
    }

    /// Changes the Hello. The receivers of [`changes`](Self::changes) are notified, and wake the connections so that
    /// each sends the new Hello.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Hello)) {
        let _guard = self.changing.lock();
        let mut hello = Hello::clone(&self.hello.load());
        change(&mut hello);
        self.fingerprint.store(hello.fingerprint, Relaxed);
        self.hello.store(Arc::new(hello));
        self.version.send_modify(|version| *version += 1);
    }

    /// Returns a receiver of the version, to wait for the next change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint.load(Relaxed)
    }
}

/// Returns the reason why two nodes refuse each other, if there is one. The text is for the logs of both.
pub(crate) fn rejection_reason(ours: &Hello, theirs: &Hello) -> Option<String> {
    if ours.cluster != theirs.cluster {
        return Some(format!(
            "{} belongs to cluster {:?} and this node to {:?}; give both nodes one name, or keep them from finding each other",
            theirs.id, theirs.cluster, ours.cluster
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::unit::hello;

    /// Checks that the reason names the cluster of the peer.
    #[test]
    fn hello_of_another_cluster_is_refused() {
        let (ours, mut theirs) = (hello("a"), hello("b"));
        assert_eq!(rejection_reason(&ours, &theirs), None);
        theirs.cluster = "orders".into();
        assert!(rejection_reason(&ours, &theirs).unwrap().contains("\"orders\""));
    }
}
