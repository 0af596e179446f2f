//! Runs a provider for as long as the node lives: an error, a panic or an early return starts it again.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    identity::PeerId,
    limits::WITHDRAW,
    membership::provider::{Health, Provider, ProviderHandle},
    runtime::backoff::pauses,
};

/// First and longest pause before a provider is run again.
const RESTART_MIN: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A run that lasted this long was a good one: the next pause is short again.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// Where to ask the current run to look again.
pub(crate) type Asks = watch::Sender<Option<mpsc::Sender<Vec<PeerId>>>>;

/// Runs until the node leaves and the provider has withdrawn, or has taken too long to. Each restart is told to
/// `restarts`.
pub(crate) async fn supervise(
    provider: Arc<dyn Provider>,
    handle: ProviderHandle,
    asks: Asks,
    restarts: impl Fn(),
    mut leaving: watch::Receiver<bool>,
    seed: u64,
) {
    let anew = || pauses(RESTART_MIN, RESTART_MAX, seed);
    let mut next_pauses = anew();
    loop {
        let (cx, ask) = handle.context();
        asks.send_replace(Some(ask));
        let begun = Instant::now();
        let mut run = std::pin::pin!(AssertUnwindSafe(async { provider.run(cx).await }).catch_unwind());
        let ended = tokio::select! {
            biased;
            ended = &mut run => ended,
            () = left(&mut leaving) => {
                if timeout(WITHDRAW, &mut run).await.is_err() {
                    tracing::warn!(provider = provider.name(), "did not withdraw its announcement within a second");
                }
                return;
            }
        };
        if *leaving.borrow() {
            return;
        }
        let why = match ended {
            Ok(Ok(())) => "it returned early".to_owned(),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        restarts();
        if begun.elapsed() >= GOOD_RUN {
            next_pauses = anew();
        }
        let pause = next_pauses.next().unwrap_or(RESTART_MAX);
        tracing::warn!(provider = provider.name(), error = %why, ?pause, "discovery failed; the last set of peers stays, it is run again");
        handle.report(Health::Stale(why));
        tokio::select! {
            biased;
            () = sleep(pause) => {}
            () = left(&mut leaving) => return,
        }
    }
}

/// Returns when the node leaves, or is gone. (The guard that `wait_for` gives must not live in a select.)
async fn left(leaving: &mut watch::Receiver<bool>) {
    let _ = leaving.wait_for(|leaving| *leaving).await;
}
