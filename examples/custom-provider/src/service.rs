//! The registry: a list in memory, over HTTP. In real life it is somebody else's: Consul, a table, a file on a web server.
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

/// What it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// The list.
    #[default]
    Well,
    /// A document that nobody can read.
    Confused,
    /// 500.
    Failing,
    /// Nothing, ever.
    Silent,
}

/// A list of nodes that can be asked for. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<(Mood, Vec<Entry>)>>);

impl Registry {
    /// Serves it at `GET /peers` of a port of loopback, which it returns with the future that serves.
    ///
    /// # Errors
    /// When there is no port left.
    pub async fn serve(&self) -> Result<(SocketAddr, impl Future<Output = std::io::Result<()>> + use<>), BoxError> {
        #[expect(clippy::disallowed_methods, reason = "this is the registry's own port, not the cache's")]
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/peers", get(answer)).with_state(self.clone());
        Ok((address, axum::serve(listener, router).into_future()))
    }

    /// Adds a node, or changes the one of that name.
    pub fn add(&self, entry: Entry) {
        self.remove(&entry.id);
        self.state().1.push(entry);
    }

    /// Takes out the node of that name.
    pub fn remove(&self, id: &str) {
        self.state().1.retain(|entry| entry.id != id);
    }

    /// From now on it answers so.
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
