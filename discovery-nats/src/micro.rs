//! The node as a NATS micro service: `nats micro ls` lists it, and `nats micro info` shows its id and its addresses.

use async_nats::{
    Client,
    service::{self, ServiceExt},
};
use futures_util::FutureExt;
use groupcache_core::discovery::Me;

use crate::subjects::token;

/// Registration of the micro service, which ends when it is dropped.
pub(crate) struct Service(Option<service::Service>);

impl Service {
    pub(crate) async fn start(client: &Client, application: &str, me: &Me) -> Result<Self, String> {
        let name = format!("groupcache-{}", token(application).replace('=', "_"));
        let addresses: Vec<_> = me.addresses.iter().map(ToString::to_string).collect();
        let said = [("id", me.id.to_string()), ("cluster", me.cluster.to_string()), ("addresses", addresses.join(","))];
        let started = client
            .service_builder()
            .description("a node of a groupcache cluster")
            .metadata(said.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            .start(name, env!("CARGO_PKG_VERSION"))
            .await;
        started.map(|service| Self(Some(service))).map_err(|e| {
            format!(
                "cannot register the micro service ({e}); check that the account may subscribe to $SRV.> and publish \
                 _INBOX.>"
            )
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A dropped service goes on answering. The future of `stop` never waits, so one poll is enough.
        if let Some(service) = self.0.take() {
            let _ = service.stop().now_or_never();
        }
    }
}
