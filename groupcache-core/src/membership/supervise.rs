//! Supervision of providers: a provider runs until the node leaves, and is restarted after an error, a panic or an
//! early return.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
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
/// Minimum pause before a provider runs again because it is asked to look again.
const ASKED_PAUSE: Duration = Duration::from_secs(1);
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
    let new_context = || {
        let (cx, ask) = handle.context();
        asks.send_replace(Some(ask));
        cx
    };
    let mut cx = new_context();
    loop {
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
        let ended = Instant::now();
        cx = new_context();
        // The next run answers a request to look again, because a run begins with a look at the source.
        tokio::select! {
            biased;
            () = sleep(pause) => {}
            () = left(&mut leaving) => return,
            () = cx.asked() => tokio::select! {
                biased;
                () = left(&mut leaving) => return,
                () = sleep_until(ended + ASKED_PAUSE.min(pause)) => {}
            },
        }
    }
}

/// Waits until the node leaves or is gone. A function of its own, because the guard of `wait_for` must not live in a
/// select.
async fn left(leaving: &mut watch::Receiver<bool>) {
    let _ = leaving.wait_for(|leaving| *leaving).await;
}

#[cfg(all(test, not(any(shuttle, simulation))))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use async_trait::async_trait;

    use super::*;
    use crate::{
        membership::provider::{ProviderContext, ProviderError, Trust},
        testing::unit::me,
    };

    /// Provider that fails at once in each run.
    #[derive(Default)]
    struct Failing(AtomicUsize);

    #[async_trait]
    impl Provider for Failing {
        fn name(&self) -> &str {
            "failing"
        }

        async fn run(&self, _: ProviderContext) -> Result<(), ProviderError> {
            self.0.fetch_add(1, SeqCst);
            Err("the source is away".into())
        }
    }

    /// Checks that a request to look again ends the pause before the next run, and that a run follows the last one after
    /// a second at the earliest.
    #[tokio::test(start_paused = true)]
    async fn request_to_look_again_ends_the_pause() {
        let (leaving, is_leaving) = watch::channel(false);
        let (handle, _feed) = ProviderHandle::new(
            watch::channel(me("me")).1,
            is_leaving.clone(),
            watch::channel(<_>::default()).1,
            Trust::Hints,
        );
        let (asks, ask) = watch::channel(None);
        let provider = Arc::new(Failing::default());
        let run = tokio::spawn(supervise(Arc::clone(&provider) as _, handle, asks, || {}, is_leaving, 1));
        sleep(Duration::from_secs(300)).await; // the pauses have grown to half a minute
        let runs = || provider.0.load(SeqCst);
        let before = runs();
        for n in 1..=5 {
            let ask: mpsc::Sender<_> = ask.borrow().clone().expect("a run or its successor takes requests");
            ask.try_send(Vec::new()).expect("there is room");
            sleep(Duration::from_millis(1_100)).await;
            assert_eq!(runs() - before, n, "one run for each request");
        }
        for _ in 0..10 {
            let ask: mpsc::Sender<_> = ask.borrow().clone().expect("a run or its successor takes requests");
            let _ = ask.try_send(Vec::new());
            sleep(Duration::from_millis(100)).await;
        }
        assert!(runs() - before <= 7, "at most one run a second");
        leaving.send_replace(true);
        run.await.expect("the supervision ends");
    }
}
