//! Lists: the pages of a complete list, or the first state as a watch.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    News, State, Watch,
    event::{self, Event},
};
use crate::{
    api::Trouble,
    object::{Content, Object},
    table::MAX_OBJECTS,
};

/// Maximum time for a first state that is requested as a watch.
const INITIAL: Duration = Duration::from_secs(30);
/// Maximum number of restarts of a list that is too slow for the API server (410).
const RESTARTS: u32 = 2;
/// Maximum number of pages of a list. With the smallest pages, a list of this length fills the table.
const MAX_PAGES: usize = 1_000;

impl Watch {
    pub(super) async fn pages(&mut self) -> Result<Option<News>, Trouble> {
        let (mut objects, mut next, mut pages, mut restarts) = (Vec::new(), None, 0, 0);
        let version = loop {
            match self.api.page(next.take()).await {
                Ok(page) => {
                    objects.extend(page.objects);
                    pages += 1;
                    let Some(more) = page.next else { break page.version };
                    if pages >= MAX_PAGES || objects.len() > 2 * MAX_OBJECTS {
                        let most = 2 * MAX_OBJECTS;
                        let why = format!("more than {MAX_PAGES} pages or {most} objects; narrow the selector");
                        return Err(self.api.cannot("list", &why));
                    }
                    next = Some(more);
                }
                // The API server has forgotten the rest of the list, so the pages so far are discarded too.
                Err(Trouble::Gone) if restarts < RESTARTS => {
                    restarts += 1;
                    self.api.counters.count(|all| &all.expired);
                    objects.clear();
                }
                Err(Trouble::Gone) => return Err(self.api.cannot("list", "410: list too slow; narrow the selector")),
                Err(trouble) => return Err(trouble),
            }
        };
        self.state = State::Open(version.clone());
        Ok(Some(News::Listed(objects, version)))
    }

    /// Requests the first state as a watch, which then continues with the changes.
    ///
    /// kube requests version "0", which may be a past state without some peers. An empty version means the current one.
    pub(super) async fn stream(&mut self) -> Result<Option<News>, Trouble> {
        let mut watching = match self.begin(String::new(), true).await {
            Err(Trouble::Invalid(why)) => return Ok(self.no_streaming(&why)),
            begun => begun?,
        };
        // Keyed by name, because an object may change or be deleted before the first state is complete.
        let (mut objects, end_at) = (BTreeMap::<Arc<str>, Object>::new(), Instant::now() + INITIAL);
        loop {
            let event = tokio::select! {
                event = watching.lines.next() => event,
                // An API server that ignores `sendInitialEvents` never announces the end of the first state.
                () = sleep_until(end_at) => return Ok(self.no_streaming("the end of the first state is not announced")),
            };
            let line = event.map_err(|end| self.api.cannot("watch", &end.to_string()))?;
            match event::read(&self.api, &line) {
                Event::Put(_) if objects.len() >= 2 * MAX_OBJECTS => {
                    let why = format!("more than {} objects; narrow the selector", 2 * MAX_OBJECTS);
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
                Event::Trouble(Trouble::Gone) => return Err(self.api.cannot("list", "410 for an empty version")),
                Event::Trouble(trouble) => return Err(trouble),
                Event::Bookmark { .. } | Event::Nothing => {}
                Event::Garbage => return Err(self.api.cannot("watch", "an unreadable event")),
            }
        }
    }

    fn no_streaming(&mut self, why: &str) -> Option<News> {
        tracing::warn!(why, "the API server does not support streaming lists; pages are requested instead");
        self.is_streaming = false;
        None
    }
}
