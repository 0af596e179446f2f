//! Provider: one run with a daemon of its own, until the node leaves.

use groupcache_core::{
    async_trait,
    discovery::{Provider, ProviderContext, ProviderError},
};

use crate::{
    daemon::{Daemon, Refused},
    interfaces::Seen,
    options::Mdns,
    session::Session,
};

#[async_trait]
impl Provider for Mdns {
    fn name(&self) -> &str {
        "mdns"
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let seen = Seen::default();
        let (daemon, monitor) = match Daemon::begin(self, &seen) {
            Ok(begun) => begun,
            Err(Refused::Busy) => {
                return Err("the thread of multicast DNS did not start: its command queue is full".into());
            }
            Err(Refused::Ended(why)) => return Err(why.into()),
        };
        // Dropping this future at any point drops the session, and the daemon ends its thread.
        let session = Session::new(self, daemon, monitor, seen, &cx.me());
        Box::pin(session.live(&mut cx)).await
    }
}
