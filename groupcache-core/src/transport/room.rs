//! Room for received bytes: while little of the budget is left, connections with the frames of a peer are read one at a
//! time, so that messages which come at once are completed one after another and none of them ends a connection.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use crate::transport::session::{Session, Sessions};

/// Time after which a connection that waits for room asks again: the time of some megabytes.
pub(super) const STEP: Duration = Duration::from_millis(5);

/// Number of steps that a connection waits before others end for it: half a second, below the second of silence after
/// which a peer gives its connection up. Steps count instead of time, because a node that lacks processor time completes
/// messages as much later as its timers fire.
const STEPS: u32 = 100;

/// Wait of one connection for room.
#[derive(Debug, Default)]
pub(super) enum Room {
    /// Room as far as the connection knows.
    #[default]
    Free,
    /// Wait for the turn of the connection, or for an end of the want of room.
    Waiting { steps: u32, step: Pin<Box<Sleep>> },
}

impl Room {
    /// Returns whether the connection may be read. A connection that has waited for [`STEPS`] is read whatever is left,
    /// after others have ended for it. `closed` is told of the connections that have ended.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &Session,
        sessions: &Sessions,
        closed: impl Fn(Vec<Arc<Session>>),
    ) -> Poll<()> {
        loop {
            match self {
                Self::Free => {
                    if session.may_read(Instant::now()) {
                        return Poll::Ready(());
                    }
                    // Bytes of clients that are no peers make no peer wait.
                    closed(sessions.relieve_of_unary());
                    if session.may_read(Instant::now()) {
                        return Poll::Ready(());
                    }
                    *self = Self::Waiting { steps: 0, step: Box::pin(sleep(STEP)) };
                }
                Self::Waiting { steps, step } => {
                    ready!(step.as_mut().poll(cx));
                    *steps += 1;
                    let is_long = *steps >= STEPS;
                    if is_long {
                        closed(sessions.relieve());
                    }
                    if is_long || session.may_read(Instant::now()) {
                        *self = Self::Free;
                        return Poll::Ready(());
                    }
                    step.as_mut().reset(Instant::now() + STEP);
                }
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests;
