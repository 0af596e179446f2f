//! Supervision of providers: a provider runs until the node leaves, and is restarted after an error, a panic or an
//! early return.

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

/// Minimum of the first pause before a provider runs again. The jitter adds up to as much again.
const RESTART_MIN: Duration = Duration::from_millis(100);
/// Maximum pause before a provider runs again.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// Duration of a run after which the next pause is short again.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// The sender of resolve requests to the current run of a provider.
pub(crate) type Asks = watch::Sender<Option<mpsc::Sender<Vec<PeerId>>>>;

/// Runs the provider until the node leaves and the provider has returned, for at most [`WITHDRAW`] after that. Calls
/// `restarts` after each run that ends earlier.
pub(crate) async fn supervise(
    provider: Arc<dyn Provider>,
    handle: ProviderHandle,
    asks: Asks,
    restarts: impl Fn(),
    mut leaving: watch::Receiver<bool>,
    seed: u64,
) {
    let new_pauses = || pauses(RESTART_MIN, RESTART_MAX, seed);
    let mut next_pauses = new_pauses();
    loop {
        let (cx, ask) = handle.context();
        asks.send_replace(Some(ask));
        let started = Instant::now();
        let mut run = std::pin::pin!(AssertUnwindSafe(async { provider.run(cx).await }).catch_unwind());
        let ended = tokio::select! {
            biased;
            ended = &mut run => ended,
            () = left(&mut leaving) => {
                if timeout(WITHDRAW, &mut run).await.is_err() {
                    tracing::warn!(provider = provider.name(), "the provider did not withdraw its announcement within a second; check its source");
                }
                return;
            }
        };
        if *leaving.borrow() {
            return;
        }
        let why = match ended {
            Ok(Ok(())) => "the provider returned early".to_owned(),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "the provider panicked".to_owned(),
        };
        restarts();
        if started.elapsed() >= GOOD_RUN {
            next_pauses = new_pauses();
        }
        let pause = next_pauses.next().unwrap_or(RESTART_MAX);
        tracing::warn!(provider = provider.name(), error = %why, ?pause, "discovery failed; the last set of peers stays, and the provider runs again");
        handle.report(Health::Stale(why));
        tokio::select! {
            biased;
            () = sleep(pause) => {}
            () = left(&mut leaving) => return,
        }
    }
}

/// Waits until the node leaves or is gone. A function of its own, because the guard of `wait_for` must not live in a
/// select.
async fn left(leaving: &mut watch::Receiver<bool>) {
    let _ = leaving.wait_for(|leaving| *leaving).await;
}
