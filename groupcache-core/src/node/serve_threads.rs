//! Threads of a node: a runtime on which the node serves its peers, beside that of the user.

use std::{sync::Arc, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::error::{Error, Kind, Result};

/// Maximum number of threads of a node. More threads than the cores of a large machine serve nobody.
pub(super) const MAX_THREADS: usize = 256;

/// Time for which the tasks of a node that was dropped may go on, so that the provider withdraws its announcement.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Runtime of a node. Its drop lets the tasks of the node end, and does not wait for them.
pub(super) struct ServeThreads {
    runtime: Option<Runtime>,
    tasks: Option<TaskTracker>,
}

impl ServeThreads {
    /// Starts the threads.
    ///
    /// # Errors
    /// `threads` exceeds [`MAX_THREADS`], or the system gives no thread.
    pub(super) fn start(threads: usize) -> Result<Self> {
        if cfg!(any(simulation, shuttle)) {
            return Err(Error::config("serve_threads starts threads, which a simulation does not know; leave it out"));
        }
        if threads > MAX_THREADS {
            return Err(Error::config(format!("serve_threads is {threads}; the maximum is {MAX_THREADS}")));
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("groupcache-serve")
            .enable_all()
            .build()
            .map_err(|e| Error::caused(Kind::Config, "the threads of serve_threads cannot be started", e))?;
        Ok(Self { runtime: Some(runtime), tasks: None })
    }

    pub(super) fn handle(&self) -> Option<&Handle> {
        self.runtime.as_ref().map(Runtime::handle)
    }

    /// Returns the threads with the tasks that they may end.
    pub(super) fn ending_after(mut self, tasks: &TaskTracker) -> Self {
        self.tasks = Some(tasks.clone());
        self
    }
}

impl Drop for ServeThreads {
    fn drop(&mut self) {
        let (Some(runtime), tasks) = (self.runtime.take(), self.tasks.take()) else { return };
        let ending = Arc::new(EndInBackground(Some(runtime)));
        let end = Arc::clone(&ending);
        // On a thread, because the node may be dropped by a task, which must not wait.
        let wait = move || {
            if let (Some(tasks), Some(runtime)) = (tasks, end.0.as_ref()) {
                let _ = runtime.block_on(async { timeout(LAST_TASKS, tasks.wait()).await });
            }
        };
        drop(thread::Builder::new().name("groupcache-end".to_owned()).spawn(wait));
    }
}

/// Runtime that ends without waiting for its tasks, because a runtime must not wait where another one runs.
struct EndInBackground(Option<Runtime>);

impl Drop for EndInBackground {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
