//! Whether this node hears what it says: the path through the server, there and back. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A node subscribes to what it publishes. What it does not hear back in time it may not have heard of others
/// either, whatever the connection claims: a server that hangs, a permission that is missing, our own long pause.
#[derive(Debug)]
pub(crate) struct Path {
    /// How late an echo may be.
    patience: Duration,
    last_echo: Instant,
    /// Since when everything has been heard; `None` while it is not.
    good_since: Option<Instant>,
}

impl Path {
    /// Not good until the first echo.
    pub(crate) fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, last_echo: now, good_since: None }
    }

    /// Something that this node said has come back; tells whether that is news.
    pub(crate) fn echo(&mut self, now: Instant) -> bool {
        self.last_echo = now;
        let is_news = self.good_since.is_none();
        self.good_since.get_or_insert(now);
        is_news
    }

    /// The connection was lost, or messages were: nothing is certain until the next echo. Tells whether that is news.
    pub(crate) fn lose(&mut self, now: Instant) -> bool {
        self.last_echo = now; // the time until the next one is counted from here
        self.good_since.take().is_some()
    }

    /// Tells whether the path has turned bad just now.
    pub(crate) fn turned_bad(&mut self, now: Instant) -> bool {
        self.is_late(now) && self.good_since.take().is_some()
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
