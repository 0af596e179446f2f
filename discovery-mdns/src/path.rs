//! Whether multicast works: what this node announces comes back to it, as it comes to everybody else.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

/// How long the first announcement may take to come back: a second of probing, and a busy machine.
const FIRST_ECHO: Duration = Duration::from_secs(3);
/// When multicast works again, the records of peers come back within this time.
const RELEARN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Path {
    state: State,
    /// What this node is called; more than once when it had to be renamed.
    names: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing has come back yet.
    Unheard { is_reported: bool, since: Instant },
    /// It comes back; before `judge_from`, what is missing says nothing.
    Good { judge_from: Instant },
    /// It came back once.
    Lost,
}

impl Path {
    pub(crate) fn new(now: Instant) -> Self {
        Self { state: State::Unheard { is_reported: false, since: now }, names: BTreeSet::new() }
    }

    /// Our own record was heard. Tells whether that is news.
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

    /// A record is gone. Tells whether it was ours, the last one.
    pub(crate) fn lose(&mut self, instance: &str) -> bool {
        let is_lost = self.names.remove(instance) && self.names.is_empty() && self.is_good();
        if is_lost {
            self.state = State::Lost;
        }
        is_lost
    }

    /// Whether it must be said now that nothing has ever come back; once.
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

    /// Whether a record that is missing means anything.
    pub(crate) fn can_judge(&self, now: Instant) -> bool {
        matches!(self.state, State::Good { judge_from } if now >= judge_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_once() {
        let now = Instant::now();
        let mut path = Path::new(now);
        assert!(!path.is_silent(now + FIRST_ECHO - TICK) && path.is_silent(now + FIRST_ECHO));
        assert!(!path.is_silent(now + 2 * FIRST_ECHO) && !path.can_judge(now + 2 * FIRST_ECHO));
        assert!(path.echo("a", now) && path.can_judge(now), "there was nothing to relearn");
        assert!(!path.is_silent(now + 9 * FIRST_ECHO));
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_outage_nobody_is_judged_before_all_could_be_heard() {
        let now = Instant::now();
        let mut path = Path::new(now);
        assert!(!path.lose("a"), "it never was there");
        path.echo("a", now);
        assert!(!path.lose("b") && path.is_good());
        assert!(path.lose("a") && !path.is_good() && !path.can_judge(now + 9 * RELEARN));
        let back = now + 9 * RELEARN;
        assert!(path.echo("a", back) && !path.echo("a", back));
        assert!(path.is_good() && !path.can_judge(back + RELEARN - TICK) && path.can_judge(back + RELEARN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_renamed_is_heard_under_either_name() {
        let mut path = Path::new(Instant::now());
        path.echo("a", Instant::now());
        path.echo("a (2)", Instant::now());
        assert!(!path.lose("a") && path.is_good() && path.lose("a (2)"));
    }
}
