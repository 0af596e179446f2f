//! Tasks of a node: loads, which a shutdown lets finish, and all other tasks, which end with the node.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tasks of a node, grouped by their lifetime.
pub(crate) struct Tasks {
    runtime: Handle,
    /// Loads. Only a shutdown waits for them, until its deadline.
    pub(crate) loads: TaskTracker,
    /// All other tasks, which end when `closing` is cancelled.
    pub(crate) others: TaskTracker,
    pub(crate) closing: CancellationToken,
    /// Whether `closing` is cancelled. Gets read this flag, because the token takes a lock.
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

    /// Ends the tasks that end with the node.
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
