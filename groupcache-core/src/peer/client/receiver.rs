//! Receiver of the outcome of a call, which hears of it exactly once, whatever happens to the call.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::time::Instant;

use crate::peer::client::call::Outcome;

/// Code that takes the outcome of a call and the time when it arrived, exactly once. After a panic the code is told once
/// more, that the peer is unreachable.
///
/// The method runs in the task that reads the connection, in the tick, or in the task that closes the link, and must
/// not block.
pub(crate) trait Reply: Send + Sync {
    fn reply(self: Arc<Self>, outcome: Outcome, at: Instant);
}

/// Receiver of the outcome of one call. If it is dropped without an outcome, the peer is unreachable for the call, so
/// that nothing waits for ever. Must not be dropped under a lock.
pub(crate) struct Receiver(Option<Arc<dyn Reply>>);

impl Receiver {
    pub(crate) fn new(reply: Arc<dyn Reply>) -> Self {
        Self(Some(reply))
    }

    /// Gives the outcome. A panic ends neither the task nor the outcomes of other calls.
    pub(crate) fn tell(mut self, outcome: Outcome, at: Instant) {
        let Some(reply) = self.0.clone() else { return };
        if catch_unwind(AssertUnwindSafe(|| reply.reply(outcome, at))).is_ok() {
            self.discard();
        } else {
            self.give_up(at);
        }
    }

    /// Gives no outcome, because the call was refused and its caller knows.
    pub(crate) fn discard(&mut self) {
        self.0 = None;
    }

    fn give_up(&mut self, at: Instant) {
        if let Some(reply) = self.0.take()
            && catch_unwind(AssertUnwindSafe(|| reply.reply(Outcome::Unreachable, at))).is_err()
        {
            // No log line, because a subscriber that panics may be the reason.
            self.0 = None;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.give_up(Instant::now());
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver")
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use crate::runtime::sync::Mutex;

    /// Records the outcomes, and panics at the first ones.
    #[derive(Default)]
    struct Told {
        outcomes: Mutex<Vec<String>>,
        panics: usize,
    }

    impl Reply for Told {
        fn reply(self: Arc<Self>, outcome: Outcome, _: Instant) {
            let count = {
                let mut outcomes = self.outcomes.lock();
                outcomes.push(format!("{outcome:?}"));
                outcomes.len()
            };
            assert!(count > self.panics, "on purpose");
        }
    }

    /// Returns what is told of a call with which `end` deals.
    fn told(panics: usize, end: impl FnOnce(Receiver)) -> Vec<String> {
        let told = Arc::new(Told { panics, ..Told::default() });
        end(Receiver::new(Arc::clone(&told) as Arc<dyn Reply>));
        let outcomes = told.outcomes.lock();
        outcomes.clone()
    }

    #[test]
    fn call_without_outcome_is_unreachable_once() {
        assert_eq!(told(0, drop), ["Unreachable"]);
        assert_eq!(told(0, |call| call.tell(Outcome::Expired, Instant::now())), ["Expired"]);
        assert_eq!(told(0, |mut call| call.discard()), [""; 0], "the caller of a refused call knows");
    }

    #[test]
    fn panic_of_reply_is_told_as_unreachable() {
        assert_eq!(told(1, |call| call.tell(Outcome::Expired, Instant::now())), ["Expired", "Unreachable"]);
        assert_eq!(told(2, |call| call.tell(Outcome::Expired, Instant::now())), ["Expired", "Unreachable"]);
        assert_eq!(told(1, drop), ["Unreachable"]);
    }
}
