//! Backoff of the requests that ask the provider to look again.

use std::time::Duration;

/// Minimum time between two requests, ±20 %: each costs the source a full list, and every node of the cluster may have
/// the same reason for a request.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Maximum time between two requests, ±20 %. The time doubles while the answers change nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Time to the first request after removals are suspended, ±20 %, because the answer decides whether most members
/// leave.
const SUSPENDED_WAIT: Duration = Duration::from_secs(1);

/// Minimum time from the last request to one that a newly connected peer causes, because anybody may connect to a node
/// without TLS.
const AT_ONCE_PAUSE: Duration = Duration::from_secs(1);

/// The backoff of resolve requests.
#[derive(Debug)]
pub(super) struct ResolveBackoff {
    rng: fastrand::Rng,
    state: State,
    not_before: Duration,
    /// Time of the last request.
    last: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// No reason for a request.
    Idle,
    /// A request at `due`, followed by the pause `wait`.
    Due { due: Duration, wait: Duration },
}

impl ResolveBackoff {
    pub(super) fn new(rng: fastrand::Rng) -> Self {
        Self { rng, state: State::Idle, not_before: Duration::ZERO, last: Duration::ZERO }
    }

    /// Ends the requests, because there is no reason for them any more.
    pub(super) fn stop(&mut self) {
        self.state = State::Idle;
    }

    /// Returns to the shortest pause, because the provider has published other peers or a peer has been lost.
    pub(super) fn reset(&mut self, now: Duration) {
        if let State::Due { due, .. } = self.state {
            self.state = State::Due { due: due.min(now + self.jittered(FIRST_WAIT)), wait: FIRST_WAIT };
        }
    }

    /// Makes the next request due soon, because removals are suspended.
    pub(super) fn expedite(&mut self, now: Duration) {
        let soon = (now + self.jittered(SUSPENDED_WAIT)).max(self.not_before);
        let due = if let State::Due { due, .. } = self.state { due.min(soon) } else { soon };
        self.state = State::Due { due, wait: FIRST_WAIT };
    }

    /// Makes the next request due at once, because a peer is connected that discovery does not list.
    pub(super) fn ask_at_once(&mut self, now: Duration) {
        let soon = now.max(self.last + AT_ONCE_PAUSE);
        let due = if let State::Due { due, .. } = self.state { due.min(soon) } else { soon };
        self.state = State::Due { due, wait: FIRST_WAIT };
    }

    /// Returns whether a request is due. The caller has a reason for one.
    ///
    /// The first request waits too, because the views of all nodes differ for a moment after each change of members.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let (due, wait) = match self.state {
            State::Idle => ((now + self.jittered(FIRST_WAIT)).max(self.not_before), FIRST_WAIT),
            State::Due { due, wait } => (due, wait),
        };
        if now < due {
            self.state = State::Due { due, wait };
            return false;
        }
        self.last = now;
        self.not_before = now + self.jittered(FIRST_WAIT);
        self.state = State::Due { due: now + self.jittered(wait), wait: (wait * 2).min(LONGEST_WAIT) };
        true
    }

    fn jittered(&mut self, wait: Duration) -> Duration {
        wait * self.rng.u32(80..=120) / 100
    }
}
