//! Provider: one run with a daemon of its own, until the node leaves.

use groupcache_core::{
    Identity, async_trait,
    discovery::{Provider, ProviderContext, ProviderError, Trust},
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

    fn trust(&self) -> Trust {
        self.trust
    }

    fn check_for(&self, identity: &Identity) -> Result<(), ProviderError> {
        if self.has_service || identity.has_chosen_cluster() {
            return Ok(());
        }
        Err("several services may share one network segment, and neither a service nor a cluster is chosen, so that \
             their nodes would answer each other's keys; set GROUPCACHE_CLUSTER=users or \
             GROUPCACHE_MDNS_SERVICE=_users._tcp, or in code Identity::with_cluster(\"users\") or \
             Mdns::service(\"_users._tcp\")"
            .into())
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
