//! Tasks of a node: loads, which may outlive its end for a while, and everything else.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of a node, by how long they live.
pub(crate) struct Tasks {
    runtime: Handle,
    /// Loads: nothing waits for them by itself, and shutdown lets them finish until its deadline.
    pub(crate) loads: TaskTracker,
    /// Everything else: ends when `closing` is cancelled.
    pub(crate) others: TaskTracker,
    pub(crate) closing: CancellationToken,
    /// The same, for those who ask at each get: the token takes a lock.
    is_closing: AtomicBool,
}

impl Tasks {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            loads: TaskTracker::new(),
            others: TaskTracker::new(),
            closing: CancellationToken::new(),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Starts a load.
    pub(crate) fn load(&self, future: impl Future<Output = ()> + Send + 'static) {
        #[cfg(shuttle)]
        shuttle::future::spawn(self.loads.track_future(future));
        #[cfg(not(shuttle))]
        self.loads.spawn_on(future, &self.runtime);
    }

    /// Ends what ends with the node.
    pub(crate) fn close(&self) {
        self.is_closing.store(true, Relaxed);
        self.closing.cancel();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Relaxed)
    }

    /// Starts a task that ends with the node.
    pub(crate) fn run(&self, future: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.others.spawn_on(async move { closing.run_until_cancelled(future).await.unwrap_or(()) }, &self.runtime);
    }
}
