//! How long one connection may go on while others wait.

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

/// How long a connection may go on reading. tokio ends the turn of a task too, but after 128 reads: of a peer that
/// sends tiny frames these are a hundred thousand frames and 20 ms, for which all others on the thread wait. A tenth
/// of a millisecond is time for some hundred requests, and long beside the microsecond that a look at the other
/// sockets costs.
const TURN: Duration = Duration::from_micros(100);

/// Where a connection is in its turn.
#[derive(Debug, Default)]
pub(crate) enum ReadBudget {
    /// Nothing has been read since the connection last had to wait for its socket.
    #[default]
    Free,
    /// It reads since then.
    Reading(Instant),
    /// It has read for long enough, and others have their turn.
    YieldNow(YieldNow),
}

impl ReadBudget {
    /// Before a read: pending when others are to have their turn. The task is woken when the runtime has come round, and
    /// has looked at its sockets.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_write(cx));
        match self {
            Self::Free | Self::YieldNow(_) => *self = Self::Reading(Instant::now()),
            Self::Reading(since) if since.elapsed() < TURN => {}
            Self::Reading(_) => {
                *self = Self::YieldNow(YieldNow::begin(cx));
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Before a write: pending while others have their turn. Each of thirty answers that become ready then wakes the
    /// connection, and would be written by a call of its own.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::YieldNow(yielding) => yielding.poll(cx),
            Self::Free | Self::Reading(_) => Poll::Ready(()),
        }
    }

    /// There was nothing to read: others have their turn until there is.
    pub(crate) fn over(&mut self) {
        *self = Self::Free;
    }
}

/// A wait until the runtime has come round, whoever wakes the connection meanwhile: its own streams do, each time that
/// one of them has something to send, and would keep the turn here.
pub(crate) struct YieldNow {
    round: Arc<SchedulerTick>,
    /// Kept, since nobody promises that a future which was dropped wakes anybody.
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl YieldNow {
    fn begin(cx: &mut Context<'_>) -> Self {
        let round = Arc::new(SchedulerTick { is_over: AtomicBool::new(false), connection: cx.waker().clone() });
        let mut yielding = Self { round, wait: Box::pin(yield_now()) };
        yielding.ask();
        yielding
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.round.is_over.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if self.round.connection.will_wake(cx.waker()) {
            // Of the thread that polls now: the other one may be stuck in a task that blocks it.
            self.wait = Box::pin(yield_now());
            self.ask();
        } else {
            *self = Self::begin(cx);
        }
        Poll::Pending
    }

    /// A task that wakes itself may come before the sockets: a runtime looks at them once in 61 tasks while any is
    /// ready. Whom `yield_now` is to wake is woken after that.
    fn ask(&mut self) {
        let waker = Waker::from(Arc::clone(&self.round));
        if self.wait.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            waker.wake();
        }
    }
}

impl fmt::Debug for YieldNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Yielding").field(&self.round.is_over).finish()
    }
}

/// A round of the runtime.
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

    async fn may_read(turn: &mut ReadBudget) -> bool {
        poll_fn(|cx| Poll::Ready(turn.poll_read(cx).is_ready())).await
    }

    async fn may_write(turn: &mut ReadBudget) -> bool {
        poll_fn(|cx| Poll::Ready(turn.poll_write(cx).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_after_its_time_and_another_begins_after_the_others() {
        let mut turn = ReadBudget::default();
        for _ in 0..3 {
            assert!(may_read(&mut turn).await);
            advance(TURN - Duration::from_micros(1)).await;
            assert!(may_read(&mut turn).await);
            advance(Duration::from_micros(1)).await;
            assert!(may_write(&mut turn).await, "what is ready is written");
            assert!(!may_read(&mut turn).await);
            assert!(!may_read(&mut turn).await, "whoever wakes it, the others come first");
            assert!(!may_write(&mut turn).await, "what they make ready is written at once afterwards");
            yield_now().await;
            assert!(may_write(&mut turn).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_socket_is_no_part_of_a_turn() {
        let mut turn = ReadBudget::default();
        assert!(may_read(&mut turn).await);
        turn.over();
        advance(TURN * 10).await;
        assert!(may_read(&mut turn).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_woken_when_the_others_have_had_their_turn() {
        let mut turn = ReadBudget::Reading(Instant::now());
        advance(TURN).await;
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            turn.poll_read(cx)
        })
        .await;
        assert_eq!(polls, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_that_polled_last_is_woken() {
        let mut turn = ReadBudget::Reading(Instant::now());
        advance(TURN).await;
        assert!(turn.poll_read(&mut Context::from_waker(Waker::noop())).is_pending());
        poll_fn(|cx| turn.poll_read(cx)).await;
    }

    #[test]
    fn where_there_is_no_runtime_nobody_waits_for_one() {
        let mut turn = ReadBudget::YieldNow(YieldNow::begin(&mut Context::from_waker(Waker::noop())));
        assert!(turn.poll_write(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    /// A connection that notes that it was woken.
    #[derive(Default)]
    struct Connection(Notify);

    impl Wake for Connection {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    /// The thread that was to wake the connection is stuck; another one polls it, since one of its streams has an answer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thread_that_is_blocked_keeps_no_connection_from_going_on() {
        let connection = Arc::<Connection>::default();
        let waker = Waker::from(Arc::clone(&connection));
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let its = waker.clone();
        let stuck = tokio::spawn(async move {
            assert!(begun.send(ReadBudget::YieldNow(YieldNow::begin(&mut Context::from_waker(&its)))).is_ok());
            let _ = ends.recv(); // blocks its thread
        });
        let mut turn = has_begun.await.unwrap();
        let going_on = tokio::spawn(async move {
            assert!(turn.poll_write(&mut Context::from_waker(&waker)).is_pending());
            connection.0.notified().await;
            assert!(turn.poll_write(&mut Context::from_waker(&waker)).is_ready());
        });
        timeout(Duration::from_secs(10), going_on).await.expect("it is woken").unwrap();
        drop(end);
        stuck.await.unwrap();
    }
}
