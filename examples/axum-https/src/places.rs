//! Places: bounds the number of connections, and gives the place of an idle connection to a new one.
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;

/// Places of connections.
///
/// A connection without a running request is idle. When all places are taken, the connection that has been idle for the
/// longest time ends. A client that opens connections and asks for nothing keeps nobody out thereby. The stream between two
/// peers is a request that runs as long as their connection.
#[derive(Clone)]
pub(crate) struct Places(Arc<Mutex<Connections>>);

struct Connections {
    max: usize,
    /// Number of the last change, which orders idle connections and names new ones.
    last: u64,
    all: BTreeMap<u64, Connection>,
    /// Idle connections by the change that made them idle.
    idle: BTreeMap<u64, u64>,
}

struct Connection {
    running: usize,
    idle_since: u64,
    ended: Arc<Notify>,
}

/// Place of one connection. Dropping it frees the place.
pub(crate) struct Place {
    places: Places,
    id: u64,
    ended: Arc<Notify>,
}

/// Request that runs on a connection.
pub(crate) struct Running(Arc<Place>);

impl Places {
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Mutex::new(Connections { max, last: 0, all: BTreeMap::new(), idle: BTreeMap::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for a new connection. When all places are taken, ends the connection that has been idle for the
    /// longest time. Returns `None` when no connection is idle.
    pub(crate) fn take(&self) -> Option<Arc<Place>> {
        let mut connections = self.lock();
        if connections.all.len() >= connections.max {
            let (_, longest) = connections.idle.pop_first()?;
            connections.all.remove(&longest)?.ended.notify_one();
        }
        let ended = Arc::new(Notify::new());
        connections.last += 1;
        let id = connections.last;
        connections.all.insert(id, Connection { running: 0, idle_since: id, ended: Arc::clone(&ended) });
        connections.idle.insert(id, id);
        Some(Arc::new(Place { places: self.clone(), id, ended }))
    }
}

impl Place {
    /// Waits until another connection has the place.
    pub(crate) async fn is_lost(&self) {
        self.ended.notified().await;
    }

    fn begin(self: &Arc<Self>) -> Running {
        let mut connections = self.places.lock();
        if let Some(connection) = connections.all.get_mut(&self.id) {
            connection.running += 1;
            let idle_since = connection.idle_since;
            connections.idle.remove(&idle_since);
        }
        Running(Arc::clone(self))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Place { places, id, .. } = &*self.0;
        let mut connections = places.lock();
        connections.last += 1;
        let now = connections.last;
        let Some(connection) = connections.all.get_mut(id) else { return };
        connection.running -= 1;
        if connection.running == 0 {
            connection.idle_since = now;
            connections.idle.insert(now, *id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.places.lock();
        if let Some(connection) = connections.all.remove(&self.id) {
            connections.idle.remove(&connection.idle_since);
        }
    }
}

/// Counts a request as running until its response is sent.
pub(crate) async fn hold(State(place): State<Arc<Place>>, request: Request, next: Next) -> Response {
    let running = place.begin();
    next.run(request).await.map(|body| Body::new(Held { body, _running: running }))
}

/// Body of a response. The request runs until the body is dropped.
struct Held {
    body: Body,
    _running: Running,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_lost(place: &Place) -> bool {
        place.is_lost().now_or_never().is_some()
    }

    #[test]
    fn longest_idle_connection_loses_its_place() {
        let places = Places::new(3);
        let [first, second, third] = std::array::from_fn(|_| places.take().unwrap());
        let (one, two) = (first.begin(), first.begin());
        drop(second.begin());
        drop(one);
        let fourth = places.take().unwrap();
        assert!(is_lost(&third) && !is_lost(&first) && !is_lost(&second), "the second one was asked since");
        drop(third);
        let _running = [second.begin(), fourth.begin()];
        assert!(places.take().is_none(), "requests run on all");
        drop(two);
        let fifth = places.take().unwrap();
        assert!(is_lost(&first) && places.lock().all.len() == 3);
        drop(first.begin());
        drop((first, fifth));
        assert!(places.take().is_some() && !is_lost(&second) && !is_lost(&fourth));
    }
}
