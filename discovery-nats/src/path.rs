//! Path through the server and back: whether this node receives its own messages. Pure, with the time as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which the messages that were held up together with an echo are read, in any order.
const BACKLOG: Duration = Duration::from_millis(150);

/// Record of the echoes of this node's messages.
///
/// A node subscribes to the subject that it publishes to. If its own message does not come back in time, messages of
/// peers may be missing too, whatever the connection reports: a server hangs, a permission is missing, or this process
/// has paused.
#[derive(Debug)]
pub(crate) struct Path {
    /// Maximum delay of an echo.
    patience: Duration,
    last_echo: Instant,
    /// Time from which on all messages have been received, or `None` while some may be missing.
    good_since: Option<Instant>,
    /// Whether a message was sent and no echo has arrived since.
    is_awaited: bool,
    /// Time of an echo that proves all earlier messages to be received once [`BACKLOG`] has passed.
    proof: Option<Instant>,
}

impl Path {
    /// Returns a path that becomes good with its first echo.
    pub(crate) fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, last_echo: now, good_since: None, is_awaited: false, proof: None }
    }

    /// Records that a message was sent, which should come back.
    pub(crate) fn said(&mut self) {
        self.is_awaited = true;
    }

    /// Records an echo. Returns whether the path becomes good with it.
    pub(crate) fn echo(&mut self, now: Instant) -> bool {
        self.last_echo = now;
        let is_news = self.good_since.is_none();
        self.good_since.get_or_insert(now);
        self.is_awaited = false;
        self.proof.get_or_insert(now);
        is_news
    }

    /// Records a loss of the connection or of messages, after which nothing is certain until the next echo. Returns
    /// whether the path was good.
    pub(crate) fn lose(&mut self, now: Instant) -> bool {
        self.last_echo = now; // the delay of the next echo is counted from here
        self.end()
    }

    /// Returns whether the path becomes bad with this call, because an echo is late.
    pub(crate) fn turned_bad(&mut self, now: Instant) -> bool {
        self.is_late(now) && self.end()
    }

    fn end(&mut self) -> bool {
        (self.is_awaited, self.proof) = (false, None);
        self.good_since.take().is_some()
    }

    /// Returns the span of time in which all messages have been received, once per echo. The server may hold up
    /// messages that were sent after the echo, however good the path seems, because the next echo may be due much later
    /// than messages of peers.
    pub(crate) fn heard(&mut self, now: Instant) -> Option<(Instant, Instant)> {
        let since = self.good_since?;
        let until = self.proof.take_if(|echo| now.duration_since(*echo) >= BACKLOG)?;
        Some((since, until))
    }

    /// Returns whether the next span of complete reception will be known soon.
    pub(crate) fn is_pending(&self) -> bool {
        self.is_awaited || self.proof.is_some()
    }

    /// Returns whether an echo has arrived at or after `at`, and nothing was lost since.
    pub(crate) fn has_echo_since(&self, at: Instant) -> bool {
        self.good_since.is_some() && self.last_echo >= at
    }

    /// Returns whether no echo has arrived for longer than the maximum delay.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        now.duration_since(self.last_echo) > self.patience
    }

    /// Returns whether no echo has arrived for so long, three times the maximum delay, that the connection is not worth
    /// keeping.
    pub(crate) fn is_very_late(&self, now: Instant) -> bool {
        now.duration_since(self.last_echo) > self.patience * 3
    }

    pub(crate) fn good_since(&self) -> Option<Instant> {
        self.good_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn path_is_good_from_first_echo_until_one_is_late() {
        let (patience, start) = (Duration::from_secs(3), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut path = Path::new(patience, start);
        assert_eq!(path.good_since(), None);
        assert!(path.echo(at(1)));
        assert!(!path.echo(at(3)), "the path was good already");
        assert_eq!(path.good_since(), Some(at(1)));
        assert!(!path.turned_bad(at(6)));
        assert!(path.turned_bad(at(7)));
        assert!(!path.turned_bad(at(8)), "the loss is reported once");
        assert!(path.echo(at(20)));
        assert_eq!(path.good_since(), Some(at(20)), "silence before the echo proves nothing");
        assert!(path.lose(at(21)));
        assert_eq!(path.good_since(), None);
    }
}
