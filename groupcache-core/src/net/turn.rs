//! How long one connection may go on while others wait.

use std::{
    pin::pin,
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

/// Whose turn it is, as a connection sees it.
#[derive(Debug, Default)]
pub(crate) enum Turn {
    /// Nothing has been read since the connection last had to wait for its socket.
    #[default]
    Free,
    /// It reads since then.
    Mine(Instant),
    /// It has read for long enough.
    Others(Arc<Others>),
}

impl Turn {
    /// Before a read: pending when others are to have their turn. The task is woken after those that are ready now,
    /// and after the runtime has looked at its sockets.
    pub(crate) fn poll_mine(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_others(cx));
        match self {
            Self::Free | Self::Others(_) => *self = Self::Mine(Instant::now()),
            Self::Mine(since) if since.elapsed() < TURN => {}
            Self::Mine(_) => {
                *self = Self::Others(Others::first(cx.waker()));
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// Before a write: pending while others have their turn. Each of sixty answers that become ready then wakes the
    /// connection, and would be written by a call of its own.
    pub(crate) fn poll_others(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Others(others) if !others.have_had_it() => {
                if !others.connection.will_wake(cx.waker()) {
                    *self = Self::Others(Others::first(cx.waker()));
                }
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// There was nothing to read: others have their turn until there is.
    pub(crate) fn over(&mut self) {
        *self = Self::Free;
    }
}

/// Woken when others have had their turn.
#[derive(Debug)]
pub(crate) struct Others {
    have_had_it: AtomicBool,
    connection: Waker,
}

impl Others {
    fn first(connection: &Waker) -> Arc<Self> {
        let others = Arc::new(Self { have_had_it: AtomicBool::new(false), connection: connection.clone() });
        // A task that wakes itself comes before the sockets: a runtime looks at them once in 61 tasks while any is
        // ready. Whom `yield_now` is to wake comes after them, and the future need not be kept for it.
        let waker = Waker::from(Arc::clone(&others));
        let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
        others
    }

    fn have_had_it(&self) -> bool {
        self.have_had_it.load(Ordering::Acquire)
    }
}

impl Wake for Others {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.have_had_it.store(true, Ordering::Release);
        self.connection.wake_by_ref();
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use std::future::poll_fn;

    use tokio::time::advance;

    use super::*;

    async fn is_mine(turn: &mut Turn) -> bool {
        poll_fn(|cx| Poll::Ready(turn.poll_mine(cx).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_after_its_time_and_another_begins_after_the_others() {
        let mut turn = Turn::default();
        for _ in 0..3 {
            assert!(is_mine(&mut turn).await);
            advance(TURN - Duration::from_micros(1)).await;
            assert!(is_mine(&mut turn).await);
            advance(Duration::from_micros(1)).await;
            assert!(!is_mine(&mut turn).await);
            assert!(!is_mine(&mut turn).await, "whoever wakes it, the others come first");
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_the_socket_is_no_part_of_a_turn() {
        let mut turn = Turn::default();
        assert!(is_mine(&mut turn).await);
        turn.over();
        advance(TURN * 10).await;
        assert!(is_mine(&mut turn).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_woken_when_the_others_have_had_their_turn() {
        let mut turn = Turn::Mine(Instant::now());
        advance(TURN).await;
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            turn.poll_mine(cx)
        })
        .await;
        assert_eq!(polls, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_that_polled_last_is_woken() {
        let mut turn = Turn::Mine(Instant::now());
        advance(TURN).await;
        assert!(turn.poll_mine(&mut Context::from_waker(Waker::noop())).is_pending());
        poll_fn(|cx| turn.poll_mine(cx)).await;
    }
}
