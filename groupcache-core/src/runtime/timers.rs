//! Timers of public calls, which any thread and any executor may poll.
//!
//! A call that is polled on the runtime of its node has its timers there, so that they follow a simulated clock. Any
//! other call has them on a thread of this process, because its thread may have no runtime, or one without timers or
//! with a paused clock, and because the runtime of the node may be blocked, or may end before the call.

use std::{sync::OnceLock, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    time::{Instant, Sleep},
};

use crate::runtime::clock::after;

/// Timers for the calls of one node.
#[derive(Clone, Debug)]
pub(crate) struct Timers {
    /// Runtime of the node.
    home: Handle,
    /// Whether no code of the user runs on `home`.
    is_own: bool,
}

impl Timers {
    pub(crate) fn of(home: &Handle, is_own: bool) -> Self {
        Self { home: home.clone(), is_own }
    }

    /// Returns whether the runtime of the node ends in time what the calling thread waits for.
    pub(crate) fn is_reliable(&self) -> bool {
        self.is_own || self.is_at_home()
    }

    /// Returns whether the calling thread runs the runtime of the node.
    pub(crate) fn is_at_home(&self) -> bool {
        Handle::try_current().is_ok_and(|current| current.id() == self.home.id())
    }

    /// Returns the present time, whatever the clock of the calling thread's runtime is.
    pub(crate) fn now(&self) -> Instant {
        #[expect(clippy::disallowed_methods, reason = "the runtime of a caller may have a paused clock")]
        if self.is_at_home() { Instant::now() } else { Instant::from_std(std::time::Instant::now()) }
    }

    /// Returns a timer that ends at `at`.
    pub(crate) fn sleep_until(&self, at: Instant) -> Sleep {
        // Only the creation of a timer needs a runtime, which the timer then keeps.
        let _entered = if self.is_at_home() { None } else { Some(elsewhere().unwrap_or(&self.home).enter()) };
        tokio::time::sleep_until(at)
    }

    /// Waits for `time`.
    pub(crate) async fn sleep(&self, time: Duration) {
        self.sleep_until(after(self.now(), time)).await;
    }

    /// Returns the output of a future, or `None` when `at` passes first.
    pub(crate) async fn timeout_at<T>(&self, at: Instant, future: impl Future<Output = T>) -> Option<T> {
        let (mut future, mut end) = (std::pin::pin!(future), std::pin::pin!(self.sleep_until(at)));
        tokio::select! {
            biased;
            output = future.as_mut() => Some(output),
            () = end.as_mut() => None,
        }
    }

    /// Returns the output of a future, or `None` when it takes longer than `limit`.
    pub(crate) async fn timeout<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        self.timeout_at(after(self.now(), limit), future).await
    }
}

/// Returns the runtime of the timers of calls that no runtime of a node polls. The process has one, which nothing else
/// runs on. Returns `None` if the system gives no thread for it.
fn elsewhere() -> Option<&'static Handle> {
    static TIMERS: OnceLock<Option<Handle>> = OnceLock::new();
    let start = || {
        let (started, handle) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("groupcache-timers".to_owned());
        // The runtime is made on its thread, because a runtime must not be dropped where another one runs.
        let run = move || {
            if let Ok(runtime) = Builder::new_current_thread().enable_time().build() {
                let _ = started.send(runtime.handle().clone());
                runtime.block_on(std::future::pending::<()>());
            }
        };
        thread.spawn(run).ok()?;
        handle.recv().ok()
    };
    TIMERS.get_or_init(start).as_ref()
}
