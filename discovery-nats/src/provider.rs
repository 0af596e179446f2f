//! Provider loop: connects again and again, and runs a session on each connection for as long as it lasts.

use std::time::Duration;

use groupcache_core::{
    async_trait,
    discovery::{Health, Provider, ProviderContext, ProviderError},
};
use tokio::time::Instant;

use crate::{
    connect::pause,
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

    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let mut node = Node::new(self, &cx.me());
        let mut round = 0;
        loop {
            let me = cx.me();
            let connecting = self.connect(&node.subjects.inbox, me.id.as_str(), node.rng.u64(..));
            let connected = tokio::select! {
                biased;
                connected = connecting => connected,
                () = cx.leaving() => return Ok(()),
            };
            let why = match connected {
                Ok(connection) => {
                    let begun = Instant::now();
                    let end = Box::pin(node.live(&mut cx, connection)).await;
                    // The pauses keep growing for a server that ends each connection at once.
                    round = if begun.elapsed() > GOOD_CONNECTION { 0 } else { round };
                    match end {
                        End::Leaving => return Ok(()),
                        End::Renew(why) => why,
                        End::Closed => return Err(CLOSED.into()),
                    }
                }
                Err(why) => why,
            };
            cx.report(Health::Stale(why));
            let pause = pause(round, &mut node.rng);
            round += 1;
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = cx.leaving() => return Ok(()),
            }
        }
    }
}
