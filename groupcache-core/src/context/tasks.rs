//! Tasks of a node: loads, which a shutdown lets finish, and all other tasks, which end with the node.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Runtimes of a node.
#[derive(Clone)]
pub(crate) struct Runtimes {
    /// Runtime that serves peers: that of the user, or threads of the node.
    pub(crate) serving: Handle,
    /// Runtime of the user, on which loaders, providers and the code of values run.
    pub(crate) of_user: Handle,
}

impl Runtimes {
    /// Returns whether the calling thread is one that no code of the user runs on.
    pub(crate) fn is_on_own_thread(&self) -> bool {
        self.has_own_threads() && Handle::try_current().is_ok_and(|current| current.id() == self.serving.id())
    }

    /// Returns whether the node has threads that no code of the user runs on.
    pub(crate) fn has_own_threads(&self) -> bool {
        self.serving.id() != self.of_user.id()
    }
}

/// Tasks of a node, grouped by their lifetime.
pub(crate) struct Tasks {
    pub(crate) runtimes: Runtimes,
    /// Loads. Only a shutdown waits for them, until its deadline.
    pub(crate) loads: TaskTracker,
    /// All other tasks, which end when `closing` is cancelled.
    pub(crate) others: TaskTracker,
    pub(crate) closing: CancellationToken,
    /// Whether `closing` is cancelled. Gets read this flag, because the token takes a lock.
    is_closing: AtomicBool,
}

impl Tasks {
    pub(crate) fn new(runtimes: Runtimes) -> Self {
        Self {
            runtimes,
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
        self.loads.spawn_on(future, &self.runtimes.of_user);
    }

    /// Ends the tasks that end with the node.
    pub(crate) fn close(&self) {
        self.is_closing.store(true, Relaxed);
        self.closing.cancel();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Relaxed)
    }

    /// Starts a task that ends with the node, among those that serve peers.
    pub(crate) fn run(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.run_on(&self.runtimes.serving, future);
    }

    /// Starts a task that ends with the node and that runs code of the user, such as the `Drop` of values.
    pub(crate) fn run_user_code(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.run_on(&self.runtimes.of_user, future);
    }

    fn run_on(&self, runtime: &Handle, future: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.others.spawn_on(async move { closing.run_until_cancelled(future).await.unwrap_or(()) }, runtime);
    }
}
