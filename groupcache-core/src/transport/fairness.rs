//! Fairness between connections: bounds the time for which one connection reads while others wait.
//!
//! The stream of every connection asks its [`ReadBudget`] before each read and each write. A connection that has used
//! its time waits until the runtime has polled the other sockets.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use tokio::{task::yield_now, time::Instant};

/// Time for which a connection reads before it yields. tokio makes a task yield as well, but only after 128 reads. With
/// tiny frames, 128 reads are 100,000 frames and 20 ms, for which all other tasks of the thread wait. 100 µs are enough
/// for some hundred requests, and long compared with the microsecond that a poll of the other sockets costs.
const READ_TIME: Duration = Duration::from_micros(100);

/// State of a connection between two yields.
#[derive(Debug, Default)]
pub(crate) enum ReadBudget {
    /// Nothing has been read since the connection last waited for its socket.
    #[default]
    Free,
    /// The connection has been reading since this moment.
    Reading(Instant),
    /// The connection has used its time, and other tasks run.
    YieldNow(YieldNow),
}

impl ReadBudget {
    /// Returns whether the connection may read. While it is pending, other tasks run; the task of the connection is
    /// woken after the runtime has polled its sockets.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_write(cx));
        match self {
            Self::Free | Self::YieldNow(_) => *self = Self::Reading(Instant::now()),
            Self::Reading(since) if since.elapsed() < READ_TIME => {}
            Self::Reading(_) => {
                *self = Self::YieldNow(YieldNow::begin(cx));
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Returns whether the connection may write. Writes are pending while the connection yields, because each response
    /// that becomes ready meanwhile wakes the connection, and thirty responses would otherwise need thirty system
    /// calls.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::YieldNow(yielding) => yielding.poll(cx),
            Self::Free | Self::Reading(_) => Poll::Ready(()),
        }
    }

    /// Starts the time anew, because the connection waits for its socket and other tasks run meanwhile.
    pub(crate) fn reset(&mut self) {
        *self = Self::Free;
    }
}

/// Wait until the runtime has polled its sockets. Other wakers of the connection do not end the wait. The streams of
/// the connection wake it whenever one of them has something to send, so that it would otherwise never yield.
pub(crate) struct YieldNow {
    tick: Arc<SchedulerTick>,
    /// Future of `yield_now`, kept because a dropped future need not wake its waker.
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl YieldNow {
    fn begin(cx: &mut Context<'_>) -> Self {
        let tick = Arc::new(SchedulerTick { is_over: AtomicBool::new(false), connection: cx.waker().clone() });
        let mut yielding = Self { tick, wait: Box::pin(yield_now()) };
        yielding.schedule();
        yielding
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.tick.is_over.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if self.tick.connection.will_wake(cx.waker()) {
            // The new wait belongs to the polling thread, because the thread of the previous wait may be blocked.
            self.wait = Box::pin(yield_now());
            self.schedule();
        } else {
            *self = Self::begin(cx);
        }
        Poll::Pending
    }

    /// Arranges that `yield_now` wakes the connection. A task that wakes itself may run again before the runtime polls
    /// its sockets, because a runtime with ready tasks polls its sockets once in 61 tasks. `yield_now` wakes after that
    /// poll.
    fn schedule(&mut self) {
        let waker = Waker::from(Arc::clone(&self.tick));
        if self.wait.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            waker.wake();
        }
    }
}

impl fmt::Debug for YieldNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("YieldNow").field(&self.tick.is_over).finish()
    }
}

/// Waker that records that the runtime has polled its sockets, and wakes the connection.
struct SchedulerTick {
    is_over: AtomicBool,
    connection: Waker,
}

impl Wake for SchedulerTick {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_over.store(true, Ordering::Release);
        self.connection.wake_by_ref();
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        sync::Notify,
        time::{advance, timeout},
    };

    use super::*;

    async fn may_read(budget: &mut ReadBudget) -> bool {
        poll_fn(|cx| Poll::Ready(budget.poll_read(cx).is_ready())).await
    }

    async fn may_write(budget: &mut ReadBudget) -> bool {
        poll_fn(|cx| Poll::Ready(budget.poll_write(cx).is_ready())).await
    }

    /// Checks that a connection reads for [`READ_TIME`], yields, and reads again once other tasks have run. Writes stop
    /// only while the connection yields.
    #[tokio::test(start_paused = true)]
    async fn spent_read_budget_yields_until_other_tasks_have_run() {
        let mut budget = ReadBudget::default();
        for _ in 0..3 {
            assert!(may_read(&mut budget).await);
            advance(READ_TIME - Duration::from_micros(1)).await;
            assert!(may_read(&mut budget).await);
            advance(Duration::from_micros(1)).await;
            assert!(may_write(&mut budget).await, "a response that is ready is written");
            assert!(!may_read(&mut budget).await);
            assert!(!may_read(&mut budget).await, "a second poll does not end the yield");
            assert!(!may_write(&mut budget).await, "responses wait for the end of the yield");
            yield_now().await;
            assert!(may_write(&mut budget).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wait_for_socket_renews_read_budget() {
        let mut budget = ReadBudget::default();
        assert!(may_read(&mut budget).await);
        budget.reset();
        advance(READ_TIME * 10).await;
        assert!(may_read(&mut budget).await);
    }

    #[tokio::test(start_paused = true)]
    async fn yielding_connection_is_woken_once() {
        let mut budget = ReadBudget::Reading(Instant::now());
        advance(READ_TIME).await;
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            budget.poll_read(cx)
        })
        .await;
        assert_eq!(polls, 2);
    }

    /// Checks that the waker of the latest poll counts.
    #[tokio::test(start_paused = true)]
    async fn yielding_connection_wakes_latest_task() {
        let mut budget = ReadBudget::Reading(Instant::now());
        advance(READ_TIME).await;
        assert!(budget.poll_read(&mut Context::from_waker(Waker::noop())).is_pending());
        poll_fn(|cx| budget.poll_read(cx)).await;
    }

    /// Checks that a connection outside of a runtime, which would never wake it, does not wait.
    #[test]
    fn yield_without_runtime_ends_at_once() {
        let mut budget = ReadBudget::YieldNow(YieldNow::begin(&mut Context::from_waker(Waker::noop())));
        assert!(budget.poll_write(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    /// Connection that records that it was woken.
    #[derive(Default)]
    struct Connection(Notify);

    impl Wake for Connection {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    /// Checks that a connection continues while the thread that began its yield is blocked. Another thread polls the
    /// connection, because one of its streams has a response.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn blocked_thread_does_not_stall_yielding_connection() {
        let connection = Arc::<Connection>::default();
        let waker = Waker::from(Arc::clone(&connection));
        let (begun, begun_budget) = tokio::sync::oneshot::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let other_waker = waker.clone();
        let blocked = tokio::spawn(async move {
            assert!(begun.send(ReadBudget::YieldNow(YieldNow::begin(&mut Context::from_waker(&other_waker)))).is_ok());
            let _ = ends.recv(); // blocks its thread
        });
        let mut budget = begun_budget.await.unwrap();
        let continuing = tokio::spawn(async move {
            assert!(budget.poll_write(&mut Context::from_waker(&waker)).is_pending());
            connection.0.notified().await;
            assert!(budget.poll_write(&mut Context::from_waker(&waker)).is_ready());
        });
        timeout(Duration::from_secs(10), continuing).await.expect("the connection is woken").unwrap();
        drop(end);
        blocked.await.unwrap();
    }
}
