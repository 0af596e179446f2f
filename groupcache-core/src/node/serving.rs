//! Serving: the HTTP/2 server with which a node answers its peers on its own listener.

use std::sync::Arc;

use tonic::transport::server::Router;

use crate::{
    limits::Limits,
    node::Node,
    peer::server::Server,
    transport::{self, ListenerConfig, TcpListener},
};

/// Maximum number of HTTP/2 streams of one connection: one for the frames of a peer, the others for unary gets of
/// clients that are not peers. Starting and answering all of them at once keeps a thread busy for about 0.5 ms, during
/// which other connections wait.
const MAX_STREAMS: u32 = 32;
/// Maximum bytes of the headers of one request. The headers of a peer take a few hundred bytes.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// Returns an HTTP/2 server with the limits of the node and the peer service.
fn router(server: &Server, limits: &Limits) -> Router {
    let window = transport::stream_window(limits);
    tonic::transport::Server::builder()
        .max_frame_size(transport::MAX_FRAME)
        .initial_stream_window_size(window)
        .initial_connection_window_size(window.saturating_mul(2))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .add_service(server.service())
}

#[cfg(any(test, fuzzing))]
impl Node {
    /// Returns the router with which the node serves its own listener.
    pub(crate) fn router(&self) -> Router {
        router(&self.inner.server, &self.inner.context.local.limits)
    }

    /// Returns the server that answers peers.
    #[cfg(test)]
    pub(crate) fn server(&self) -> &Server {
        &self.inner.server
    }

    /// Returns the number of requests of peers that are not answered yet.
    pub(crate) fn owes(&self) -> usize {
        self.inner.server.owes()
    }
}

/// Serves peers on the listener, in a task that ends when the node stops serving.
pub(super) fn serve(node: &Node, listener: TcpListener) {
    let inner = &node.inner;
    let (local, tasks) = (&inner.context.local, &inner.context.tasks);
    let router = router(&inner.server, &local.limits);
    let stop = inner.stop_serving.clone();
    let accepting = transport::start(
        listener,
        ListenerConfig {
            security: local.security.clone(),
            limits: local.limits.clone(),
            received: Arc::clone(&local.received),
            counters: Arc::clone(&local.counters),
            tasks: tasks.others.clone(),
            stop: stop.clone(),
        },
    );
    let serving = router.serve_with_incoming_shutdown(accepting, stop.cancelled_owned());
    tasks.others.spawn(async move {
        // `stop` follows the goodbyes. The listener closes connections that do not end by themselves then.
        if let Err(e) = serving.await {
            tracing::error!(error = %e, "the listener for peers ended: peers cannot connect to this node; restart it");
        }
    });
}
