//! Registry: serves a list in memory over HTTP. In production a foreign service has this role, such as Consul, a table
//! of a database, or a file on a web server.
use std::{
    future::pending,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use groupcache_discovery::BoxError;
use tokio::net::TcpListener;

use crate::Entry;

/// Kind of answer of the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// The list.
    #[default]
    Well,
    /// A document that is not valid JSON.
    Confused,
    /// Status 500.
    Failing,
    /// No answer at all.
    Silent,
}

/// List of nodes that is served over HTTP. A clone shares the list.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<(Mood, Vec<Entry>)>>);

impl Registry {
    /// Listens on a free port of loopback for `GET /peers`. Returns the address, and the future that serves.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn serve(&self) -> Result<(SocketAddr, impl Future<Output = std::io::Result<()>> + use<>), BoxError> {
        #[expect(clippy::disallowed_methods, reason = "this is the registry's own port, not the cache's")]
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/peers", get(answer)).with_state(self.clone());
        Ok((address, axum::serve(listener, router).into_future()))
    }

    /// Adds a node, or replaces the node with the same id.
    pub fn add(&self, entry: Entry) {
        self.remove(&entry.id);
        self.state().1.push(entry);
    }

    /// Removes the node with this id, if the list has it.
    pub fn remove(&self, id: &str) {
        self.state().1.retain(|entry| entry.id != id);
    }

    /// Sets the kind of answer for all later requests.
    pub fn feels(&self, mood: Mood) {
        self.state().0 = mood;
    }

    fn state(&self) -> MutexGuard<'_, (Mood, Vec<Entry>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(State(registry): State<Registry>) -> Response {
    let (mood, entries) = registry.state().clone();
    match mood {
        Mood::Well => axum::Json(entries).into_response(),
        Mood::Confused => r#"[{"id": "somebody"}, "#.into_response(),
        Mood::Failing => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Mood::Silent => pending().await,
    }
}
