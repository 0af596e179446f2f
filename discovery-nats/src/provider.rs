//! Provider loop: connects again and again, and runs a session on each connection for as long as it lasts.

use std::time::Duration;

use groupcache_core::{
    Identity, async_trait,
    discovery::{Health, Provider, ProviderContext, ProviderError, Signal, Trust},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    connect::{Failure, Pauses},
    options::Nats,
    session::{End, Node},
};

/// Lifetime after which a connection counts as good, so that the pauses between attempts are short again.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);
const CLOSED: &str = "the NATS client of the application is closed; keep it open while the node lives";

#[async_trait]
impl Provider for Nats {
    fn name(&self) -> &str {
        "nats"
    }

    fn trust(&self) -> Trust {
        self.trust
    }

    fn check_for(&self, identity: &Identity) -> Result<(), ProviderError> {
        if self.has_application || identity.has_chosen_cluster() {
            return Ok(());
        }
        Err("several services may use one NATS server, and neither an application nor a cluster is chosen, so that their \
             nodes would answer each other's keys; set GROUPCACHE_NATS_APPLICATION=users or GROUPCACHE_CLUSTER=users, or \
             in code Nats::new(servers, \"users\") or Identity::with_cluster(\"users\")"
            .into())
    }

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut node = Node::new(self, &cx.me());
        let mut pauses = Pauses::default();
        loop {
            let me = cx.me();
            let begun = Instant::now();
            let connecting = self.connect(&node.subjects.inbox, me.id.as_str(), node.rng.u64(..));
            let connected = tokio::select! {
                biased;
                connected = connecting => connected,
                () = cx.leaving() => return Ok(()),
            };
            let failure = match connected {
                Ok(connection) => {
                    let begun = Instant::now();
                    let end = Box::pin(node.live(&mut cx, connection)).await;
                    // The pauses keep growing for a server that ends each connection at once.
                    if begun.elapsed() > GOOD_CONNECTION {
                        pauses.reset();
                    }
                    match end {
                        End::Leaving => return Ok(()),
                        End::Renew(why) => Failure::other(why),
                        End::Closed => return Err(CLOSED.into()),
                    }
                }
                Err(failure) => failure,
            };
            let (pause, hurried) = pauses.next(failure.is_refused, &mut node.rng);
            cx.report(Health::Stale(failure.why));
            if is_left_in_pause(&mut cx, pause, begun + hurried).await {
                return Ok(());
            }
        }
    }
}

/// Waits for the end of a pause. A question of the node ends the pause at `hurried`. Returns whether the node leaves.
async fn is_left_in_pause(cx: &mut ProviderContext, pause: Duration, hurried: Instant) -> bool {
    let mut end = Instant::now() + pause;
    loop {
        match timeout_at(end, cx.next()).await {
            Ok(Signal::Resolve(_)) => end = end.min(hurried),
            Ok(Signal::Leaving) => return true,
            // The announcement of the next connection has the changes.
            Ok(Signal::MeChanged) => {}
            Err(_) => return false,
        }
    }
}
