//! Whether this node hears what it says: the path through the server, there and back. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What was held up together with an echo is read within this time, in whatever order it comes.
const BACKLOG: Duration = Duration::from_millis(150);

/// A node subscribes to what it publishes. What it does not hear back in time it may not have heard of others
/// either, whatever the connection claims: a server that hangs, a permission that is missing, our own long pause.
#[derive(Debug)]
pub(crate) struct Path {
    /// How late an echo may be.
    patience: Duration,
    last_echo: Instant,
    /// Since when everything has been heard; `None` while it is not.
    good_since: Option<Instant>,
    /// Something has been said that has not come back.
    is_awaited: bool,
    /// An echo up to which everything has been heard, as soon as what came with it is read.
    proof: Option<Instant>,
}

impl Path {
    /// Not good until the first echo.
    pub(crate) fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, last_echo: now, good_since: None, is_awaited: false, proof: None }
    }

    /// Something has been said that should come back.
    pub(crate) fn said(&mut self) {
        self.is_awaited = true;
    }

    /// Something that this node said has come back; tells whether that is news.
    pub(crate) fn echo(&mut self, now: Instant) -> bool {
        self.last_echo = now;
        let is_news = self.good_since.is_none();
        self.good_since.get_or_insert(now);
        self.is_awaited = false;
        self.proof.get_or_insert(now);
        is_news
    }

    /// The connection was lost, or messages were: nothing is certain until the next echo. Tells whether that is news.
    pub(crate) fn lose(&mut self, now: Instant) -> bool {
        self.last_echo = now; // the time until the next one is counted from here
        self.end()
    }

    /// Tells whether the path has turned bad just now.
    pub(crate) fn turned_bad(&mut self, now: Instant) -> bool {
        self.is_late(now) && self.end()
    }

    fn end(&mut self) -> bool {
        (self.is_awaited, self.proof) = (false, None);
        self.good_since.take().is_some()
    }

    /// From when to when everything has been heard, once for an echo. What was said after it may be held up by the
    /// server, however good the path seems: the next echo may be due much later than the words of others.
    pub(crate) fn heard(&mut self, now: Instant) -> Option<(Instant, Instant)> {
        let since = self.good_since?;
        let until = self.proof.take_if(|echo| now.duration_since(*echo) >= BACKLOG)?;
        Some((since, until))
    }

    /// Whether it will be known soon up to when everything has been heard.
    pub(crate) fn is_pending(&self) -> bool {
        self.is_awaited || self.proof.is_some()
    }

    /// Whether something has come back since then, and nothing was lost.
    pub(crate) fn has_echo_since(&self, at: Instant) -> bool {
        self.good_since.is_some() && self.last_echo >= at
    }

    /// No echo has come for longer than it may take.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        now.duration_since(self.last_echo) > self.patience
    }

    /// No echo has come for so long that the connection is not worth keeping.
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
    async fn a_path_is_good_from_the_first_echo_until_one_is_late() {
        let (patience, start) = (Duration::from_secs(3), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut path = Path::new(patience, start);
        assert_eq!(path.good_since(), None);
        assert!(path.echo(at(1)));
        assert!(!path.echo(at(3)), "no news");
        assert_eq!(path.good_since(), Some(at(1)));
        assert!(!path.turned_bad(at(6)));
        assert!(path.turned_bad(at(7)));
        assert!(!path.turned_bad(at(8)), "once");
        assert!(path.echo(at(20)));
        assert_eq!(path.good_since(), Some(at(20)), "what was not heard before says nothing");
        assert!(path.lose(at(21)));
        assert_eq!(path.good_since(), None);
    }
}
