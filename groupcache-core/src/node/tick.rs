//! The tick: coarse time, deadlines, silence, and the announcing of what has changed.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tokio::time::{MissedTickBehavior, interval};

use crate::{clock::Punctuality, config::TICK, peer::server::Server, shared::Shared};

/// Ticks between two looks at loads that run too long: about a second.
const WATCH_EVERY: u64 = 100;

/// Runs until the node ends.
pub(super) async fn tick(shared: Arc<Shared>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n: u64 = 0;
    loop {
        ticks.tick().await;
        let we_stood_still = matches!(shared.local.clock.tick(), Punctuality::Late(_));
        if we_stood_still {
            shared.local.counters.late_ticks.up();
        }
        let now_ms = shared.now_ms();
        let mut in_flight = 0;
        for link in shared.links() {
            link.sweep(now_ms, we_stood_still);
            in_flight += link.in_flight();
        }
        shared.local.in_flight.store(in_flight, Relaxed);
        n += 1;
        if n.is_multiple_of(WATCH_EVERY) {
            shared.registry.all().iter().for_each(|group| group.watch());
        }
    }
}

/// Sends the Hello again on every connection when it has changed.
pub(super) async fn announce(shared: Arc<Shared>, server: Server) {
    let mut changes = shared.local.changes();
    while changes.changed().await.is_ok() {
        shared.links().iter().for_each(|link| link.nudge());
        server.nudge();
    }
}
