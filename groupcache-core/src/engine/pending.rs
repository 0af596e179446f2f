//! A get that waits: its time limit, and what its fetch or load needs to know.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    flight::nesting::WaitGuard,
    protocol::chain::LoadChain,
    runtime::{
        clock::{self, Clock, later},
        timers::Timers,
    },
};

/// Time limit of a get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) begun: Instant,
    pub(crate) limit: Duration,
    pub(crate) end: Instant,
    pub(crate) end_ms: u64,
}

impl Deadline {
    /// Starts the time of a get. The clock is read once, because a read is a tenth of what else a remote get costs
    /// here.
    pub(crate) fn start(clock: &Clock, timers: &Timers, limit: Duration) -> Self {
        let begun = timers.now();
        Self { begun, limit, end: clock::after(begun, limit), end_ms: later(clock.at_ms(begun), limit) }
    }
}

/// Get that memory did not answer.
pub(crate) struct PendingGet {
    pub(crate) deadline: Deadline,
    pub(crate) hash: u64,
    pub(crate) chain: LoadChain,
    /// Record in the calling load that it waits for this key, if a loader makes the get.
    pub(crate) _waiting: Option<WaitGuard>,
}
