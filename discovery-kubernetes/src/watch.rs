//! A list, then a watch, again and again: what is in one namespace, as a stream of news.
//!
//! Not `kube::runtime::watcher`: it cannot be asked to list again (a node that doubts its set must be able to), has
//! no limit to how long a watch lives but one between two events, ends nothing when an object cannot be read, and
//! hands out whole objects.

mod event;

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use self::event::Event;
use crate::{
    api::{Api, End, Lines, Trouble},
    object::Object,
};

/// How long the API server lets a watch live. We end it ourselves a little later, since one that hangs says nothing.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 60..=120;
const GRACE: Duration = Duration::from_secs(2);
/// How often everything is listed again, ± 20 %: a watch that has lost an event does not know.
const RELIST: Duration = Duration::from_secs(600);
/// Least time between two lists that a node asks for.
const ASK: Duration = Duration::from_secs(1);
/// How long a first state that comes as a watch may take.
const INITIAL: Duration = Duration::from_secs(30);
/// The first pause after a failure, and the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// All nodes lose their watches, or what these were to go on from, at the same time.
const SPREAD: Duration = Duration::from_millis(200);
/// A watch that has lived for so long was a good one, even if nothing has happened.
const GOOD_WATCH: Duration = Duration::from_secs(5);
/// How often a list may have to begin again since it was too slow for the API server.
const RESTARTS: u32 = 2;

/// What one namespace has to say.
#[derive(Debug)]
pub(crate) enum News {
    /// Everything that is there.
    Listed(Vec<Object>),
    Put(Object),
    Removed(Arc<str>),
    /// The watch is open: from now on every change is heard of.
    Well,
    /// Something does not work. It is tried again.
    Stale(String),
    /// The credentials are not good: a new client may have better ones. Nothing comes after this.
    Unknown(String),
}

/// Reads one namespace.
pub(crate) struct Watch {
    api: Api,
    /// The first state comes as a watch.
    is_streaming: bool,
    state: State,
    rng: fastrand::Rng,
    /// Changes when a node wants a list.
    asked: watch::Receiver<u64>,
    is_asked: bool,
    /// Failures since something worked.
    failures: u32,
    /// Nothing is asked before.
    not_before: Instant,
    relist_at: Instant,
    listed_at: Option<Instant>,
}

enum State {
    /// A list is due.
    List,
    /// A watch is due, from there.
    Open(String),
    Watching(Watching),
    End,
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
    pub(crate) fn new(api: Api, is_streaming: bool, seed: u64, asked: watch::Receiver<u64>) -> Self {
        let now = Instant::now();
        Self {
            api,
            is_streaming,
            state: State::List,
            rng: fastrand::Rng::with_seed(seed),
            asked,
            is_asked: false,
            failures: 0,
            not_before: now,
            relist_at: now,
            listed_at: None,
        }
    }

    pub(crate) fn news(self) -> impl Stream<Item = News> {
        stream::unfold(self, async |mut watch| Some((watch.next().await?, watch)))
    }

    async fn next(&mut self) -> Option<News> {
        loop {
            let news = match std::mem::replace(&mut self.state, State::List) {
                State::End => return None,
                State::List => self.list().await,
                State::Open(version) => self.open(version).await,
                State::Watching(watching) => self.watch(watching).await,
            };
            match news {
                Ok(Some(news)) => return Some(news),
                Ok(None) => {}
                Err(trouble) => {
                    if let Some(news) = self.fail(trouble) {
                        return Some(news);
                    }
                }
            }
        }
    }

    /// Counts a failure and says when to go on; [`state`](Self::state) says with what.
    fn fail(&mut self, trouble: Trouble) -> Option<News> {
        let counters = &self.api.counters;
        if trouble == Trouble::Gone {
            counters.count(|all| &all.expired);
            self.state = State::List;
            self.pause(Duration::ZERO);
            return None;
        }
        counters.count(|all| &all.failures);
        self.failures = self.failures.saturating_add(1);
        let wait = if let Trouble::Other(_, wait) = trouble { wait } else { Duration::ZERO };
        self.pause(wait);
        match trouble {
            Trouble::Gone => None,
            Trouble::Unknown(why) => {
                self.api.counters.count(|all| &all.refused);
                self.state = State::End;
                Some(News::Unknown(why))
            }
            Trouble::Forbidden(why) => {
                self.api.counters.count(|all| &all.refused);
                // Who may list and not watch hears of changes at least by lists.
                self.state = State::List;
                Some(News::Stale(why))
            }
            Trouble::Invalid(why) | Trouble::Other(why, _) => Some(News::Stale(why)),
        }
    }

    /// Has the next request wait: a little, longer after each failure, and as long as the API server said.
    fn pause(&mut self, least: Duration) {
        let pause = match self.failures {
            0 => SPREAD.mul_f64(self.rng.f64()),
            n => {
                let full = PAUSE.saturating_mul(2_u32.saturating_pow((n - 1).min(16))).min(LONGEST_PAUSE);
                full.mul_f64(0.5 + self.rng.f64() / 2.0)
            }
        };
        self.not_before = Instant::now() + pause.max(least);
    }

    async fn list(&mut self) -> Result<Option<News>, Trouble> {
        sleep_until(self.not_before).await;
        self.asked.mark_unchanged();
        self.is_asked = false;
        if self.is_streaming {
            return self.stream().await;
        }
        let (mut objects, mut next, mut restarts) = (Vec::new(), None, 0);
        let version = loop {
            match self.api.page(next.take()).await {
                Ok(page) => {
                    objects.extend(page.objects);
                    match page.next {
                        Some(more) => next = Some(more),
                        None => break page.version,
                    }
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
        self.state = State::Open(version);
        Ok(Some(self.listed(objects)))
    }

    fn listed(&mut self, objects: Vec<Object>) -> News {
        let now = Instant::now();
        self.api.counters.count(|all| &all.lists);
        self.listed_at = Some(now);
        self.relist_at = now + RELIST.mul_f64(0.8 + 0.4 * self.rng.f64());
        News::Listed(objects)
    }

    /// The list as a watch that begins with all there is, and goes on.
    ///
    /// kube asks for the version "0", which may be a past in which peers are missing; an empty one is "now".
    async fn stream(&mut self) -> Result<Option<News>, Trouble> {
        let mut watching = match self.begin(String::new(), true).await {
            Err(Trouble::Invalid(why)) => return Ok(self.no_streaming(&why)),
            begun => begun?,
        };
        let (mut objects, end_at) = (Vec::new(), Instant::now() + INITIAL);
        loop {
            let event = tokio::select! {
                event = watching.lines.next() => event,
                // One that does not know `sendInitialEvents` never says that it has sent all.
                () = sleep_until(end_at) => return Ok(self.no_streaming("it does not say when it has sent all")),
            };
            let line = event.map_err(|end| self.api.cannot("watch", &end.to_string()))?;
            match event::read(&self.api, &line) {
                Event::Put(object) => objects.push(object),
                Event::Bookmark { version, ends_initial: true } => {
                    watching.version = version;
                    watching.has_news = true;
                    self.state = State::Watching(watching);
                    return Ok(Some(self.listed(objects)));
                }
                Event::Trouble(trouble) => return Err(trouble),
                Event::Removed { .. } | Event::Bookmark { .. } | Event::Nothing => {}
                Event::Garbage => return Err(self.api.cannot("watch", "an event that nobody can read")),
            }
        }
    }

    fn no_streaming(&mut self, why: &str) -> Option<News> {
        tracing::warn!(why, "the API server cannot send lists as a watch; it is asked for pages instead");
        self.is_streaming = false;
        None
    }

    async fn open(&mut self, version: String) -> Result<Option<News>, Trouble> {
        sleep_until(self.not_before).await;
        if self.is_asked() {
            return Ok(None); // and a list is due
        }
        match self.begin(version.clone(), false).await {
            Ok(watching) => {
                self.state = State::Watching(watching);
                Ok(None)
            }
            Err(trouble) => {
                // What goes wrong again and again may go wrong because of the version.
                let is_new = self.failures % 4 != 3;
                self.state = if is_new { State::Open(version) } else { State::List };
                Err(trouble)
            }
        }
    }

    async fn begin(&mut self, version: String, initial: bool) -> Result<Watching, Trouble> {
        let seconds = self.rng.u32(WATCH_SECONDS);
        let lines = self.api.watch(&version, seconds, initial).await?;
        self.api.counters.count(|all| &all.watches);
        let begun = Instant::now();
        let end_at = begun + Duration::from_secs(u64::from(seconds)) + GRACE;
        Ok(Watching { lines, version, begun, end_at, has_news: false, is_told: false })
    }

    /// Whether a node wants a list.
    fn is_asked(&mut self) -> bool {
        // An error is a session that is over: this future is dropped soon.
        if self.asked.has_changed().unwrap_or(false) {
            self.asked.mark_unchanged();
            self.is_asked = true;
        }
        self.is_asked
    }

    async fn watch(&mut self, mut watching: Watching) -> Result<Option<News>, Trouble> {
        if !watching.is_told {
            watching.is_told = true;
            self.state = State::Watching(watching);
            return Ok(Some(News::Well));
        }
        let line = loop {
            let asked_at = self.listed_at.map_or(watching.begun, |at| at + ASK);
            let list_at = if self.is_asked() { asked_at } else { self.relist_at };
            tokio::select! {
                biased;
                () = sleep_until(list_at) => return Ok(None), // the state is a list by now
                () = sleep_until(watching.end_at) => {
                    self.api.counters.count(|all| &all.silent);
                    self.state = State::Open(watching.version);
                    return Ok(None);
                }
                Ok(()) = self.asked.changed() => self.is_asked = true,
                line = watching.lines.next() => break line,
            }
        };
        match line {
            Ok(line) => self.take(watching, &line),
            Err(end) => self.ended(watching, &end),
        }
    }

    fn take(&mut self, mut watching: Watching, line: &[u8]) -> Result<Option<News>, Trouble> {
        let (version, news) = match event::read(&self.api, line) {
            Event::Put(object) => (object.version.clone(), Some(News::Put(object))),
            Event::Removed { name, version } => (version, Some(News::Removed(name))),
            Event::Bookmark { version, .. } => (version, None),
            Event::Nothing => (String::new(), None),
            // Whom it was about nobody knows, so all are looked at.
            Event::Garbage => return Err(self.api.cannot("watch", "an event that nobody can read")),
            Event::Trouble(trouble) => {
                self.state = State::Open(watching.version);
                return Err(trouble);
            }
        };
        self.api.counters.count(|all| if news.is_some() { &all.events } else { &all.bookmarks });
        self.failures = 0;
        watching.has_news = true;
        if !version.is_empty() {
            watching.version = version;
        }
        self.state = State::Watching(watching);
        Ok(news)
    }

    /// A watch ends by itself every now and then, and begins again where it was.
    fn ended(&mut self, watching: Watching, end: &End) -> Result<Option<News>, Trouble> {
        let was_good = watching.has_news || watching.begun.elapsed() >= GOOD_WATCH;
        self.state = State::Open(watching.version);
        if was_good {
            self.failures = 0;
            self.pause(Duration::ZERO);
            return Ok(None);
        }
        Err(self.api.cannot("watch", &format!("it ends as soon as it has begun: {end}")))
    }
}
