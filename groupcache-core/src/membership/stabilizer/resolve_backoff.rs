//! When to ask the provider to look again.

use std::time::Duration;

/// Least time between two questions, give or take a fifth: a look costs the source a full list, and every node
/// of the cluster may have the same reason to ask.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The wait doubles up to this while the answers change nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A held set is worth an earlier question: the answer decides whether most peers leave.
const HOLD_WAIT: Duration = Duration::from_secs(1);

/// The back-off of the questions.
#[derive(Debug)]
pub(super) struct ResolveBackoff {
    rng: fastrand::Rng,
    state: State,
    not_before: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// There is nothing to ask.
    Idle,
    /// Ask at `due`, then wait for `wait`.
    Due { due: Duration, wait: Duration },
}

impl ResolveBackoff {
    pub(super) fn new(rng: fastrand::Rng) -> Self {
        Self { rng, state: State::Idle, not_before: Duration::ZERO }
    }

    /// Views agree again.
    pub(super) fn rest(&mut self) {
        self.state = State::Idle;
    }

    /// The provider has said something new, or a peer has been lost: the next question is worth its price again.
    pub(super) fn reset(&mut self, now: Duration) {
        if let State::Due { due, .. } = self.state {
            self.state = State::Due { due: due.min(now + self.jittered(FIRST_WAIT)), wait: FIRST_WAIT };
        }
    }

    /// A set is held: its confirmation should not wait for the next question's turn.
    pub(super) fn hurry(&mut self, now: Duration) {
        let soon = (now + self.jittered(HOLD_WAIT)).max(self.not_before);
        let due = if let State::Due { due, .. } = self.state { due.min(soon) } else { soon };
        self.state = State::Due { due, wait: FIRST_WAIT };
    }

    /// Whether to ask now, given that there is a reason to.
    ///
    /// The first question waits too: after each change of members views differ for a moment, and at all nodes
    /// at the same time.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let (due, wait) = match self.state {
            State::Idle => ((now + self.jittered(FIRST_WAIT)).max(self.not_before), FIRST_WAIT),
            State::Due { due, wait } => (due, wait),
        };
        if now < due {
            self.state = State::Due { due, wait };
            return false;
        }
        self.not_before = now + self.jittered(FIRST_WAIT);
        self.state = State::Due { due: now + self.jittered(wait), wait: (wait * 2).min(LONGEST_WAIT) };
        true
    }

    fn jittered(&mut self, wait: Duration) -> Duration {
        wait * self.rng.u32(80..=120) / 100
    }
}
