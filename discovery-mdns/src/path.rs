//! Path: tells whether multicast works, by whether the node receives its own announcement as its peers do.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

/// Maximum time until the node receives its own first announcement: a second of probing, and slack for a busy machine.
const FIRST_ECHO: Duration = Duration::from_secs(3);
/// Time in which the records of peers return after multicast works again.
const RELEARN: Duration = Duration::from_secs(5);

/// State of multicast between this node and its segment.
#[derive(Debug)]
pub(crate) struct Path {
    state: State,
    /// Instance names of this node; several after the daemon has renamed it.
    names: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// No announcement of this node has been received yet.
    Unheard { is_reported: bool, since: Instant },
    /// Announcements of this node are received. A missing record has no meaning before `judge_from`.
    Good { judge_from: Instant },
    /// Announcements of this node were received earlier and are missing.
    Lost,
}

impl Path {
    pub(crate) fn new(now: Instant) -> Self {
        Self { state: State::Unheard { is_reported: false, since: now }, names: BTreeSet::new() }
    }

    /// Notes that this node's own record was received. Returns whether the state changed.
    pub(crate) fn echo(&mut self, instance: &str, now: Instant) -> bool {
        self.names.insert(instance.to_owned());
        let judge_from = match self.state {
            State::Good { .. } => return false,
            State::Unheard { .. } => now,
            State::Lost => now + RELEARN,
        };
        self.state = State::Good { judge_from };
        true
    }

    /// Notes that a record is gone. Returns whether this node has lost its last record.
    pub(crate) fn lose(&mut self, instance: &str) -> bool {
        let is_lost = self.names.remove(instance) && self.names.is_empty() && self.is_good();
        if is_lost {
            self.state = State::Lost;
        }
        is_lost
    }

    /// Returns `true` once, when no announcement of this node has been received within [`FIRST_ECHO`].
    pub(crate) fn is_silent(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Unheard { is_reported, since } if !*is_reported && now >= *since + FIRST_ECHO => {
                *is_reported = true;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        matches!(self.state, State::Good { .. })
    }

    /// Returns whether a missing record means that its peer is gone.
    pub(crate) fn can_judge(&self, now: Instant) -> bool {
        matches!(self.state, State::Good { judge_from } if now >= judge_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    /// Checks that silence is reported at its limit, once, and needs no pause before the first judgement.
    #[tokio::test(start_paused = true)]
    async fn missing_echo_is_reported_once() {
        let now = Instant::now();
        let mut path = Path::new(now);
        assert!(!path.is_silent(now + FIRST_ECHO - TICK) && path.is_silent(now + FIRST_ECHO));
        assert!(!path.is_silent(now + 2 * FIRST_ECHO) && !path.can_judge(now + 2 * FIRST_ECHO));
        assert!(path.echo("a", now) && path.can_judge(now), "no record was lost, so none has to return first");
        assert!(!path.is_silent(now + 9 * FIRST_ECHO));
    }

    /// Checks that missing records count again only after the records of all peers have had time to return.
    #[tokio::test(start_paused = true)]
    async fn missing_records_have_no_meaning_right_after_an_outage() {
        let now = Instant::now();
        let mut path = Path::new(now);
        assert!(!path.lose("a"), "a record that was never received is not lost");
        path.echo("a", now);
        assert!(!path.lose("b") && path.is_good());
        assert!(path.lose("a") && !path.is_good() && !path.can_judge(now + 9 * RELEARN));
        let back = now + 9 * RELEARN;
        assert!(path.echo("a", back) && !path.echo("a", back));
        assert!(path.is_good() && !path.can_judge(back + RELEARN - TICK) && path.can_judge(back + RELEARN));
    }

    /// Checks that losing one of two names of this node is no outage, and losing the second one is.
    #[tokio::test(start_paused = true)]
    async fn renamed_node_is_lost_only_with_its_last_name() {
        let mut path = Path::new(Instant::now());
        path.echo("a", Instant::now());
        path.echo("a (2)", Instant::now());
        assert!(!path.lose("a") && path.is_good() && path.lose("a (2)"));
    }
}
