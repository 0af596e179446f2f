//! A list, then a watch, again and again: what is in one namespace, as a stream of news.
//!
//! Not `kube::runtime::watcher`: it cannot be asked to list again (a node that doubts its set must be able to), has
//! no limit to how long a watch lives but one between two events, ends nothing when an object cannot be read, and
//! hands out whole objects.

mod event;
mod pace;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use self::{event::Event, pace::Pace};
use crate::{
    api::{Api, End, Lines, Trouble},
    object::{Content, Object},
    table::MAX_OBJECTS,
};

/// How long the API server lets a watch live. We end it ourselves a little later, since one that hangs says nothing.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 60..=120;
const GRACE: Duration = Duration::from_secs(2);
/// How long a first state that comes as a watch may take.
const INITIAL: Duration = Duration::from_secs(30);
/// A watch that has lived for so long was a good one, even if nothing has happened.
const GOOD_WATCH: Duration = Duration::from_secs(5);
/// How often a list may have to begin again since it was too slow for the API server.
const RESTARTS: u32 = 2;
/// Most pages of a list: with the fewest objects that a page may be asked to have, as many as are kept.
const MAX_PAGES: usize = 1_000;

/// What one namespace has to say.
#[derive(Debug)]
pub(crate) enum News {
    /// Everything that is there, and its version.
    Listed(Vec<Object>, String),
    Put(Object),
    Removed(Arc<str>, String),
    /// Nothing has happened, up to this version.
    Until(String),
    /// The watch is open: from now on every change is heard of.
    Well,
    /// Something does not work. It is tried again.
    Stale(String),
    /// The API server asks us to wait.
    Busy(String),
    /// The credentials are not good: a new client may have better ones. Nothing comes after this.
    Unknown(String),
}

/// Where a namespace was left, and may be gone on with.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) version: String,
    pub(crate) listed_at: Instant,
}

/// Reads one namespace.
pub(crate) struct Watch {
    api: Api,
    /// The first state comes as a watch.
    is_streaming: bool,
    state: State,
    pace: Pace,
    /// Changes when a node wants a list.
    asked: watch::Receiver<u64>,
    is_asked: bool,
}

enum State {
    /// A list is due.
    List(Before),
    /// A watch is due, from there.
    Open(String),
    Watching(Watching),
    End,
}

/// What is gone on with if a list fails.
enum Before {
    /// Another list.
    Nothing,
    /// A watch, from there.
    Version(String),
    /// This one; what it says meanwhile waits.
    Watching(Watching),
}

struct Watching {
    lines: Lines,
    version: String,
    begun: Instant,
    end_at: Instant,
    has_news: bool,
    /// That it is open has been said.
    is_told: bool,
}

impl Watch {
    pub(crate) fn new(
        api: Api,
        is_streaming: bool,
        seed: u64,
        asked: watch::Receiver<u64>,
        place: Option<Place>,
    ) -> Self {
        let pace = Pace::new(seed, place.as_ref().map(|place| place.listed_at));
        let state = place.map_or(State::List(Before::Nothing), |place| State::Open(place.version));
        Self { api, is_streaming, state, pace, asked, is_asked: false }
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

    /// Says when to go on after a watch that failed; [`state`](Self::state) says with what. An error: not with this
    /// client.
    fn watch_failed(&mut self, trouble: Trouble) -> Result<Option<News>, String> {
        if trouble == Trouble::Gone {
            self.api.counters.count(|all| &all.expired);
            self.state = State::List(Before::Nothing);
            let text = "410: what it is to go on from is forgotten, again and again";
            return Ok(self.pace.expired().then(|| News::Stale(self.api.text("watch", text))));
        }
        self.pace.watch_failed(trouble.wait());
        self.failed(trouble)
    }

    fn failed(&self, trouble: Trouble) -> Result<Option<News>, String> {
        self.api.counters.count(|all| &all.failures);
        if matches!(trouble, Trouble::Forbidden(_)) {
            self.api.counters.count(|all| &all.refused);
        }
        match trouble {
            Trouble::Gone => Ok(None),
            Trouble::Unknown(why) => Err(why),
            Trouble::Other(why, wait) if wait > Duration::ZERO => Ok(Some(News::Busy(why))),
            Trouble::Forbidden(why) | Trouble::Invalid(why) | Trouble::Other(why, _) => Ok(Some(News::Stale(why))),
        }
    }

    async fn list(&mut self, before: Before) -> Result<Option<News>, String> {
        let before = match before {
            // That would be two watches.
            Before::Watching(watching) if self.is_streaming => Before::Version(watching.version),
            before => before,
        };
        if !matches!(before, Before::Watching(_)) {
            sleep_until(self.pace.list_at()).await;
        }
        self.is_asked |= self.is_asked_anew();
        self.asked.mark_unchanged();
        let begun = Instant::now();
        let listed = if self.is_streaming { self.stream().await } else { self.pages().await };
        match listed {
            Ok(Some(news)) => {
                self.is_asked = false;
                self.pace.listed(begun.elapsed());
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
                self.failed(trouble)
            }
        }
    }

    async fn pages(&mut self) -> Result<Option<News>, Trouble> {
        let (mut objects, mut next, mut pages, mut restarts) = (Vec::new(), None, 0, 0);
        let version = loop {
            match self.api.page(next.take()).await {
                Ok(page) => {
                    objects.extend(page.objects);
                    pages += 1;
                    let Some(more) = page.next else { break page.version };
                    if pages >= MAX_PAGES || objects.len() > 2 * MAX_OBJECTS {
                        let most = 2 * MAX_OBJECTS;
                        let why = format!("it has more than {MAX_PAGES} pages or {most} objects; narrow the selector");
                        return Err(self.api.cannot("list", &why));
                    }
                    next = Some(more);
                }
                // The rest of the list is no longer to be had, so that none of it is.
                Err(Trouble::Gone) if restarts < RESTARTS => {
                    restarts += 1;
                    self.api.counters.count(|all| &all.expired);
                    objects.clear();
                }
                Err(Trouble::Gone) => return Err(self.api.cannot("list", "410: it takes longer than it is kept")),
                Err(trouble) => return Err(trouble),
            }
        };
        self.state = State::Open(version.clone());
        Ok(Some(News::Listed(objects, version)))
    }

    /// The list as a watch that begins with all there is, and goes on.
    ///
    /// kube asks for the version "0", which may be a past in which peers are missing; an empty one is "now".
    async fn stream(&mut self) -> Result<Option<News>, Trouble> {
        let mut watching = match self.begin(String::new(), true).await {
            Err(Trouble::Invalid(why)) => return Ok(self.no_streaming(&why)),
            begun => begun?,
        };
        // By name: what is sent may change, or go, before all is.
        let (mut objects, end_at) = (BTreeMap::<Arc<str>, Object>::new(), Instant::now() + INITIAL);
        loop {
            let event = tokio::select! {
                event = watching.lines.next() => event,
                // One that does not know `sendInitialEvents` never says that it has sent all.
                () = sleep_until(end_at) => return Ok(self.no_streaming("it does not say when it has sent all")),
            };
            let line = event.map_err(|end| self.api.cannot("watch", &end.to_string()))?;
            match event::read(&self.api, &line) {
                Event::Put(_) if objects.len() >= 2 * MAX_OBJECTS => {
                    let why = format!("it has more than {} objects; narrow the selector", 2 * MAX_OBJECTS);
                    return Err(self.api.cannot("list", &why));
                }
                Event::Put(object) if object.content == Content::Garbage => {
                    objects.entry(Arc::clone(&object.name)).or_insert(object);
                }
                Event::Put(object) => _ = objects.insert(Arc::clone(&object.name), object),
                Event::Removed { name, .. } => _ = objects.remove(&name),
                Event::Bookmark { version, ends_initial: true } => {
                    watching.version.clone_from(&version);
                    watching.has_news = true;
                    self.state = State::Watching(watching);
                    return Ok(Some(News::Listed(objects.into_values().collect(), version)));
                }
                Event::Trouble(Trouble::Gone) => return Err(self.api.cannot("list", "410: there is no \"now\"")),
                Event::Trouble(trouble) => return Err(trouble),
                Event::Bookmark { .. } | Event::Nothing => {}
                Event::Garbage => return Err(self.api.cannot("watch", "an event that nobody can read")),
            }
        }
    }

    fn no_streaming(&mut self, why: &str) -> Option<News> {
        tracing::warn!(why, "the API server cannot send lists as a watch; it is asked for pages instead");
        self.is_streaming = false;
        None
    }

    /// Whether a node wants a list is not asked here: where lists are slow, there would never be a watch.
    async fn open(&mut self, version: String) -> Result<Option<News>, Trouble> {
        sleep_until(self.pace.watch_at()).await;
        match self.begin(version.clone(), false).await {
            Ok(watching) => {
                self.state = State::Watching(watching);
                Ok(None)
            }
            Err(trouble) => {
                self.state = match trouble {
                    // Who may list and not watch hears of changes at least by lists.
                    Trouble::Forbidden(_) => State::List(Before::Nothing),
                    // What goes wrong again and again may go wrong because of the version.
                    _ if self.pace.watch_failures() % 4 == 3 => State::List(Before::Version(version)),
                    _ => State::Open(version),
                };
                Err(trouble)
            }
        }
    }

    /// Whether a node wants a list, since this was last seen.
    fn is_asked_anew(&self) -> bool {
        // An error is a session that is over: this future is dropped soon.
        self.asked.has_changed().unwrap_or(false)
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
            self.is_asked |= self.is_asked_anew();
            tokio::select! {
                biased;
                () = sleep_until(self.pace.relist_at(self.is_asked)) => {
                    self.state = State::List(Before::Watching(watching));
                    return Ok(None);
                }
                line = watching.lines.next() => break line,
                Ok(()) = self.asked.changed() => self.is_asked = true,
                () = sleep_until(watching.end_at) => return Ok(self.hung(watching)),
            }
        };
        match line {
            Ok(line) => self.take(watching, &line),
            Err(end) => self.ended(watching, &end),
        }
    }

    /// A watch is over which the API server should have ended itself.
    fn hung(&mut self, watching: Watching) -> Option<News> {
        self.api.counters.count(|all| &all.silent);
        if watching.has_news || !self.pace.hung() {
            self.state = State::Open(watching.version);
            return None;
        }
        self.state = State::List(Before::Version(watching.version));
        let text = "it opens, says nothing and does not end, again and again; something on the way holds it back";
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
                // Whom it was about nobody knows, so all are looked at.
                self.state = State::List(Before::Version(watching.version));
                return Err(self.api.cannot("watch", "an event that nobody can read"));
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
        }
        self.state = State::Watching(watching);
        Ok(news)
    }

    /// A watch ends by itself every now and then, and begins again where it was.
    fn ended(&mut self, watching: Watching, end: &End) -> Result<Option<News>, Trouble> {
        let has_lived = watching.begun.elapsed() >= GOOD_WATCH;
        self.state = State::Open(watching.version);
        if has_lived && *end == End::Between {
            self.pace.watched();
        }
        if watching.has_news || has_lived {
            self.pace.again();
            return Ok(None);
        }
        Err(self.api.cannot("watch", &format!("it ends as soon as it has begun: {end}")))
    }
}
