//! Watch of one namespace: lists and watches in turn, and streams the changes as news.
//!
//! `kube::runtime::watcher` is not used, because it cannot list again on request (a node that doubts its peers
//! needs this), limits the time between two events but not the life of a watch, does not stop at an unreadable object,
//! and returns whole objects.

mod event;
mod list;
mod pace;

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use self::{
    event::Event,
    pace::{InARow, Pace},
};
use crate::{
    api::{Api, End, Lines, Trouble},
    object::Object,
};

/// Life of a watch in seconds, requested from the API server at random within this range.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 60..=120;
/// Time beyond the requested life after which the provider itself ends a watch, because a watch that hangs never ends.
const GRACE: Duration = Duration::from_secs(2);
/// Time since the last list, event or bookmark after which a watch that ends proves nothing: the API server sends a
/// bookmark every minute and before the end of a watch. After a restore of etcd from a backup, the version of a watch
/// may be one of the future, and the API server opens such a watch and is silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Minimum life of a good watch that has sent no event.
const GOOD_WATCH: Duration = Duration::from_secs(5);

/// News of one namespace.
#[derive(Debug)]
pub(crate) enum News {
    /// All objects of a complete list, and the version of the list.
    Listed(Vec<Object>, String),
    Put(Object),
    /// Name of a deleted object, and the version of the deletion.
    Removed(Arc<str>, String),
    /// A version up to which nothing has happened.
    Until(String),
    /// The watch is open, so that every change is received.
    Well,
    /// A failure that is retried.
    Stale(String),
    /// A failure for which the API server requests a delay.
    Busy(String),
    /// Refused credentials. No news follows; a new client may have better credentials.
    Unknown(String),
}

/// Position in a namespace from which another watch can continue.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) version: String,
    pub(crate) listed_at: Instant,
    /// Time of the last list, event or bookmark, which prove that the version is one of the present.
    pub(crate) proven_at: Instant,
}

/// State machine that lists and watches one namespace.
pub(crate) struct Watch {
    api: Api,
    /// Whether the first state is requested as a watch.
    is_streaming: bool,
    state: State,
    pace: Pace,
    /// Counter that changes when the node requests a list.
    asked: watch::Receiver<u64>,
    /// Whether a requested list is due.
    is_asked: bool,
    /// Whether the node has requested a list since the last try, so that no back-off delays the next one.
    is_hurried: bool,
    /// Time of the last list, event or bookmark.
    proven_at: Instant,
    forbidden_lists: InARow,
    forbidden_watches: InARow,
}

/// Next step of a [`Watch`].
enum State {
    /// A list is due.
    List(Before),
    /// A watch from this version is due.
    Open(String),
    Watching(Watching),
    End,
}

/// State to return to if a list fails.
enum Before {
    /// None, so that another list is due.
    Nothing,
    /// A new watch from this version.
    Version(String),
    /// The open watch, with the events that wait meanwhile.
    Watching(Watching),
}

struct Watching {
    lines: Lines,
    version: String,
    begun: Instant,
    end_at: Instant,
    has_news: bool,
    /// Whether [`News::Well`] has been sent.
    is_told: bool,
}

impl Watch {
    pub(crate) fn new(
        api: Api,
        is_streaming: bool,
        seed: u64,
        asked: watch::Receiver<u64>,
        is_asked: bool,
        place: Option<Place>,
    ) -> Self {
        let pace = Pace::new(seed, place.as_ref().map(|place| place.listed_at));
        let proven_at = place.as_ref().map_or_else(Instant::now, |place| place.proven_at);
        let state = place.map_or(State::List(Before::Nothing), |place| State::Open(place.version));
        Self {
            api,
            is_streaming,
            state,
            pace,
            asked,
            is_asked,
            is_hurried: is_asked,
            proven_at,
            forbidden_lists: InARow::default(),
            forbidden_watches: InARow::default(),
        }
    }

    pub(crate) fn news(self) -> impl Stream<Item = News> {
        stream::unfold(self, async |mut watch| Some((watch.next().await?, watch)))
    }

    async fn next(&mut self) -> Option<News> {
        loop {
            let news = match std::mem::replace(&mut self.state, State::List(Before::Nothing)) {
                State::End => return None,
                State::List(before) => self.list(before).await,
                State::Open(version) => self.open(version).await.or_else(|trouble| self.watch_failed(trouble)),
                State::Watching(watching) => self.watch(watching).await.or_else(|trouble| self.watch_failed(trouble)),
            };
            match news {
                Ok(Some(news)) => return Some(news),
                Ok(None) => {}
                Err(why) => {
                    self.api.counters.count(|all| &all.refused);
                    self.state = State::End;
                    return Some(News::Unknown(why));
                }
            }
        }
    }

    /// Schedules the next step after a failed watch; [`state`](Self::state) has that step. An error ends the client.
    fn watch_failed(&mut self, trouble: Trouble) -> Result<Option<News>, String> {
        if trouble == Trouble::Gone {
            self.api.counters.count(|all| &all.expired);
            self.state = State::List(Before::Nothing);
            let text = "410 again and again: the version to continue from has expired";
            return Ok(self.pace.expired().then(|| News::Stale(self.api.text("watch", text))));
        }
        let is_missing = self.forbidden_watches.is_missing(&trouble);
        if is_missing && let State::Open(version) = &mut self.state {
            // With the right to list but not to watch, lists at least report changes.
            self.state = State::List(Before::Version(std::mem::take(version)));
        }
        self.pace.watch_failed(trouble.wait());
        self.failed(trouble, is_missing)
    }

    /// Reports a failure. `is_missing`: whether a right is missing, so that the Role is named.
    fn failed(&self, trouble: Trouble, is_missing: bool) -> Result<Option<News>, String> {
        self.api.counters.count(|all| &all.failures);
        if matches!(trouble, Trouble::Forbidden { .. }) {
            self.api.counters.count(|all| &all.refused);
        }
        match trouble {
            Trouble::Gone => Ok(None),
            Trouble::Unknown(why) => Err(why),
            Trouble::Other(why, wait) if wait > Duration::ZERO => Ok(Some(News::Busy(why))),
            Trouble::Forbidden { why, remedy } if is_missing => Ok(Some(News::Stale(format!("{why}; run: {remedy}")))),
            Trouble::Forbidden { why, .. } => {
                Ok(Some(News::Stale(format!("{why}; an API server that has just started may not know the right yet"))))
            }
            Trouble::Invalid(why) | Trouble::Other(why, _) => Ok(Some(News::Stale(why))),
        }
    }

    async fn list(&mut self, before: Before) -> Result<Option<News>, String> {
        let before = match before {
            // A streaming list beside an open watch would be a second watch.
            Before::Watching(watching) if self.is_streaming => Before::Version(watching.version),
            before => before,
        };
        if !matches!(before, Before::Watching(_)) {
            self.list_due().await;
        }
        self.heed();
        let is_hurried = std::mem::take(&mut self.is_hurried);
        let begun = Instant::now();
        let listed = if self.is_streaming { self.stream().await } else { self.pages().await };
        match listed {
            Ok(Some(news)) => {
                self.is_asked = false;
                self.proven_at = Instant::now();
                self.forbidden_lists = InARow::default();
                self.pace.listed(begun.elapsed(), is_hurried);
                self.api.counters.count(|all| &all.lists);
                Ok(Some(news))
            }
            Ok(None) => {
                self.state = State::List(before);
                Ok(None)
            }
            Err(trouble) => {
                self.state = match before {
                    Before::Nothing => State::List(Before::Nothing),
                    Before::Version(version) => State::Open(version),
                    Before::Watching(watching) => State::Watching(watching),
                };
                self.pace.list_failed(trouble.wait());
                let is_missing = self.forbidden_lists.is_missing(&trouble);
                self.failed(trouble, is_missing)
            }
        }
    }

    /// Opens a watch. A requested list must wait meanwhile; otherwise slow lists would keep every watch from opening.
    /// While watches fail, the list comes first, and another watch follows it at once.
    async fn open(&mut self, version: String) -> Result<Option<News>, Trouble> {
        loop {
            self.heed();
            if self.is_hurried && self.pace.watch_failures() > 0 {
                self.state = State::List(Before::Version(version));
                return Ok(None);
            }
            tokio::select! {
                biased;
                () = sleep_until(self.pace.watch_at()) => break,
                Ok(()) = self.asked.changed() => (self.is_asked, self.is_hurried) = (true, true),
            }
        }
        match self.begin(version.clone(), false).await {
            Ok(watching) => {
                self.forbidden_watches = InARow::default();
                self.state = State::Watching(watching);
                Ok(None)
            }
            Err(trouble) => {
                // Repeated failures may be caused by the version, which a list renews.
                let is_doubted = self.pace.watch_failures() % 4 == 3;
                self.state = if is_doubted { State::List(Before::Version(version)) } else { State::Open(version) };
                Err(trouble)
            }
        }
    }

    /// Notices a request of the node since the last call.
    fn heed(&mut self) {
        // An error means that the session is over, so this future is dropped soon.
        if self.asked.has_changed().unwrap_or(false) {
            self.asked.mark_unchanged();
            (self.is_asked, self.is_hurried) = (true, true);
        }
    }

    /// Waits until a list is due while no watch is open. A request of the node shortens the wait.
    async fn list_due(&mut self) {
        loop {
            self.heed();
            tokio::select! {
                biased;
                () = sleep_until(self.pace.list_at(self.is_hurried)) => return,
                Ok(()) = self.asked.changed() => (self.is_asked, self.is_hurried) = (true, true),
            }
        }
    }

    async fn begin(&mut self, version: String, initial: bool) -> Result<Watching, Trouble> {
        let seconds = self.pace.rng().u32(WATCH_SECONDS);
        let lines = self.api.watch(&version, seconds, initial).await?;
        self.api.counters.count(|all| &all.watches);
        let begun = Instant::now();
        let end_at = begun + Duration::from_secs(u64::from(seconds)) + GRACE;
        Ok(Watching { lines, version, begun, end_at, has_news: false, is_told: false })
    }

    async fn watch(&mut self, mut watching: Watching) -> Result<Option<News>, Trouble> {
        let is_well = self.pace.is_listed() && (watching.has_news || !self.pace.is_doubted());
        if is_well && !watching.is_told {
            watching.is_told = true;
            self.state = State::Watching(watching);
            return Ok(Some(News::Well));
        }
        let line = loop {
            self.heed();
            tokio::select! {
                biased;
                () = sleep_until(self.pace.relist_at(self.is_asked, self.is_hurried)) => {
                    self.state = State::List(Before::Watching(watching));
                    return Ok(None);
                }
                line = watching.lines.next() => break line,
                Ok(()) = self.asked.changed() => (self.is_asked, self.is_hurried) = (true, true),
                () = sleep_until(watching.end_at) => return Ok(self.hung(watching)),
            }
        };
        match line {
            Ok(line) => self.take(watching, &line),
            Err(end) => self.ended(watching, &end),
        }
    }

    /// Ends an overdue watch, which the API server should have ended itself.
    fn hung(&mut self, watching: Watching) -> Option<News> {
        self.api.counters.count(|all| &all.silent);
        let is_stale = !watching.has_news && self.pace.hung();
        self.state = self.after(watching);
        if !is_stale {
            return None;
        }
        let text = "watches open, send nothing and do not end, again and again; check proxies on the way";
        Some(News::Stale(self.api.text("watch", text)))
    }

    fn take(&mut self, mut watching: Watching, line: &[u8]) -> Result<Option<News>, Trouble> {
        let (version, news) = match event::read(&self.api, line) {
            Event::Put(object) => (object.version.clone(), Some(News::Put(object))),
            Event::Removed { name, version } => (version.clone(), Some(News::Removed(name, version))),
            Event::Bookmark { version, .. } => {
                self.api.counters.count(|all| &all.bookmarks);
                (version.clone(), Some(News::Until(version)))
            }
            Event::Nothing => (String::new(), None),
            Event::Garbage => {
                // The object is unknown, so a list reads all objects again.
                self.state = State::List(Before::Version(watching.version));
                return Err(self.api.cannot("watch", "an unreadable event"));
            }
            Event::Trouble(trouble) => {
                self.state = State::Open(watching.version);
                return Err(trouble);
            }
        };
        if matches!(news, Some(News::Put(_) | News::Removed(..))) {
            self.api.counters.count(|all| &all.events);
        }
        self.pace.watched();
        watching.has_news = true;
        if !version.is_empty() {
            watching.version = version;
            self.proven_at = Instant::now();
        }
        self.state = State::Watching(watching);
        Ok(news)
    }

    /// Returns the step after the end of a watch: another watch from its version, or a list if nothing has proven for a
    /// while that the version is one of the present.
    fn after(&mut self, watching: Watching) -> State {
        if self.proven_at > watching.begun || self.proven_at.elapsed() < SILENCE {
            return State::Open(watching.version);
        }
        self.pace.spread_list();
        State::List(Before::Version(watching.version))
    }

    /// Continues after the end of a watch. An early end without an event is a failure.
    fn ended(&mut self, watching: Watching, end: &End) -> Result<Option<News>, Trouble> {
        let (has_news, has_lived) = (watching.has_news, watching.begun.elapsed() >= GOOD_WATCH);
        self.state = self.after(watching);
        if has_lived && *end == End::Between {
            self.pace.watched();
        }
        if has_news || has_lived {
            self.pace.again();
            return Ok(None);
        }
        Err(self.api.cannot("watch", &format!("the watch ends right after it opens: {end}")))
    }
}
