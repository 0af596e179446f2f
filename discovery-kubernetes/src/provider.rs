//! Main loop of the provider: creates a client, runs a session on it, and replaces a client that no longer works.

use std::time::Duration;

use groupcache_core::{
    Identity, async_trait,
    discovery::{Health, Provider, ProviderContext, ProviderError, Signal, Trust},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    connect::Program,
    options::{Options, Pods, Service},
    session::{Over, Session},
};

/// First pause before another client is created.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause before another client is created.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Minimum time between two clients, which holds for a question of the node too.
const FLOOR: Duration = Duration::from_secs(1);

#[async_trait]
impl Provider for Pods {
    fn name(&self) -> &str {
        "kubernetes"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    fn check_for(&self, _: &Identity) -> Result<(), ProviderError> {
        Ok(self.check()?)
    }

    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError> {
        self.check()?;
        Box::pin(self.0.run(cx)).await
    }
}

#[async_trait]
impl Provider for Service {
    fn name(&self) -> &str {
        "kubernetes-service"
    }

    fn trust(&self) -> Trust {
        Trust::Authority
    }

    fn check_for(&self, _: &Identity) -> Result<(), ProviderError> {
        Ok(self.check()?)
    }

    async fn run(&self, cx: ProviderContext) -> Result<(), ProviderError> {
        self.check()?;
        Box::pin(self.0.run(cx)).await
    }
}

impl Options {
    /// Runs until the node leaves.
    async fn run(&self, mut cx: ProviderContext) -> Result<(), ProviderError> {
        let (mut session, mut program) = (Session::new(self), Program::default());
        let mut rng = fastrand::Rng::new();
        let mut round = 0;
        loop {
            let begun = Instant::now();
            let connected = tokio::select! {
                biased;
                () = cx.leaving() => return Ok(()),
                connected = self.connect(&mut program) => connected,
            };
            let why = match connected {
                Ok(connected) => match session.live(&mut cx, connected, &mut rng).await {
                    Over::Leaving => return Ok(()),
                    Over::Renew { why, was_good } => {
                        round = if was_good { 0 } else { round };
                        why
                    }
                },
                Err(why) => why,
            };
            cx.report(Health::Stale(why));
            let full = PAUSE.saturating_mul(2_u32.saturating_pow(round.min(16))).min(LONGEST_PAUSE);
            round += 1;
            let until = Instant::now() + full.mul_f64(0.5 + rng.f64() / 2.0);
            if rest(&mut cx, &mut session, until, begun + FLOOR).await == Rest::Leaving {
                return Ok(());
            }
        }
    }
}

/// End of a pause.
#[derive(PartialEq, Eq)]
enum Rest {
    Over,
    Leaving,
}

/// Waits until the given time, or only until `floor` once the node asks a question.
async fn rest(cx: &mut ProviderContext, session: &mut Session<'_>, mut until: Instant, floor: Instant) -> Rest {
    loop {
        tokio::select! {
            biased;
            signal = cx.next() => match signal {
                Signal::Leaving => return Rest::Leaving,
                Signal::MeChanged => {}
                Signal::Resolve(_) => {
                    session.ask();
                    until = until.min(floor);
                }
            },
            () = sleep_until(until) => return Rest::Over,
        }
    }
}
