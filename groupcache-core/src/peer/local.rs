//! What this node says of itself on every connection, and whether what the other side says will do.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::watch;

use crate::{
    limits::Limits,
    protocol::message::Hello,
    runtime::{
        clock::Clock,
        stats::NodeCounters,
        sync::{ArcSwap, Mutex},
    },
    transport::{Net, Security},
};

/// This node, as both ends of its connections speak for it.
#[derive(Debug)]
pub(crate) struct LocalNode {
    hello: ArcSwap<Hello>,
    /// Serialises changes of the Hello: each is made of the one before.
    changing: Mutex<()>,
    /// Grows with each change; a connection that has sent an older one sends it again.
    version: watch::Sender<u64>,
    fingerprint: AtomicU64,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<NodeCounters>,
    pub(crate) net: Net,
    pub(crate) security: Security,
    /// Requests of this node that peers have not answered, as of the last tick.
    pub(crate) in_flight: AtomicUsize,
}

impl LocalNode {
    pub(crate) fn new(hello: Hello, limits: Limits, security: Security) -> Self {
        Self {
            fingerprint: AtomicU64::new(hello.fingerprint),
            hello: ArcSwap::from_pointee(hello),
            changing: Mutex::new(()),
            version: watch::Sender::new(1),
            clock: Clock::start(),
            limits,
            counters: Arc::default(),
            net: Net::tcp(security.clone()),
            security,
            in_flight: AtomicUsize::new(0),
        }
    }

    pub(crate) fn hello(&self) -> Arc<Hello> {
        self.hello.load_full()
    }

    /// Changes the Hello; whoever holds connections nudges them afterwards.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Hello)) {
        let _one = self.changing.lock();
        let mut hello = Hello::clone(&self.hello.load());
        change(&mut hello);
        self.fingerprint.store(hello.fingerprint, Relaxed);
        self.hello.store(Arc::new(hello));
        self.version.send_modify(|version| *version += 1);
    }

    /// The number of changes, and how to wait for the next.
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

/// Why two nodes do not talk to each other; the text is for the logs of both.
pub(crate) fn rejection_reason(ours: &Hello, theirs: &Hello) -> Option<String> {
    if ours.cluster != theirs.cluster {
        return Some(format!(
            "{} belongs to cluster {:?} and this node to {:?}; give both one name, or keep them from finding each other",
            theirs.id, theirs.cluster, ours.cluster
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::unit::hello;

    #[test]
    fn another_cluster_is_refused_by_name() {
        let (ours, mut theirs) = (hello("a"), hello("b"));
        assert_eq!(rejection_reason(&ours, &theirs), None);
        theirs.cluster = "orders".into();
        assert!(rejection_reason(&ours, &theirs).unwrap().contains("\"orders\""));
    }
}
