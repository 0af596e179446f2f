//! The ticks of a node: coarse time, deadlines and silence of links, partitions, expired entries, and the announcement
//! of changes.
//!
//! A node is partitioned when it has lost all of its peers. Peers may then have written without it, so that its entries
//! are served for a short time only.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::node::replay::replay;
use crate::{
    cache::revalidation::Change,
    context::NodeContext,
    limits::TICK,
    peer::{client::dial_limits::Arrival, server::Server},
    runtime::clock::Punctuality,
};

/// Interval of the sweeps for expired entries. A sweep of a million entries takes about 0.14 s of one core.
const SWEEP: Duration = Duration::from_secs(10);

/// Delay of a tick after which peers may have removed this node, and may have written without notifying it.
const PARTITIONED_AFTER: Duration = Duration::from_secs(2);

/// Number of ticks between two checks for overdue loads and missed writes: about a second.
const WATCH_EVERY: u64 = 100;

/// Advances coarse time and checks links, loads and missed writes. Runs until the node ends.
pub(super) async fn tick(context: Arc<NodeContext>) {
    let _close = CloseOnDrop(Arc::clone(&context));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n: u64 = 0;
    let mut was_connected = false;
    loop {
        ticks.tick().await;
        let late = context.local.clock.tick();
        let was_late = matches!(late, Punctuality::Late(_));
        if was_late {
            context.local.counters.late_ticks.up();
        }
        let now_ms = context.now_ms();
        // A node without peers misses no write.
        let is_alone = context.view_ref().members().len() <= 1;
        if matches!(late, Punctuality::Late(by) if by > PARTITIONED_AFTER) && !is_alone {
            on_partitioned(&context, "this process stood still");
        }
        let (mut in_flight, mut connected, mut lost) = (0, 0, 0);
        for link in context.links() {
            link.sweep(now_ms, was_late);
            in_flight += link.in_flight();
            connected += usize::from(link.admits());
            lost += usize::from(link.is_lost(now_ms));
        }
        if connected == 0 && was_connected && lost > 0 {
            context.is_partitioned.store(true, Relaxed);
            on_partitioned(&context, "no peer can be reached");
        }
        if connected > 0 && !was_connected {
            // The first connection shows that this node was away, and not its peers. The other links need not wait.
            for link in context.links().iter().filter(|link| !link.admits()) {
                link.retry_soon(Arrival::OfAnyPeer);
            }
        }
        was_connected = connected > 0;
        if connected > 0 || lost == 0 {
            context.is_partitioned.store(false, Relaxed);
        }
        context.local.in_flight.store(in_flight, Relaxed);
        n += 1;
        if n.is_multiple_of(WATCH_EVERY) {
            context.registry.all().iter().for_each(|group| group.watch());
            replay_missed_writes(&context);
        }
    }
}

/// Closes the node when the tick task is dropped. If only this node's runtime shuts down, callers on other runtimes
/// would otherwise wait forever.
struct CloseOnDrop(Arc<NodeContext>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
        self.0.tasks.close(); // before the links, so that fetches which lose their link do not begin a load here
        self.0.links().iter().for_each(|link| link.close());
    }
}

/// Replays missed writes to connected members. A connected peer misses a write when a limit was reached or a deadline
/// passed.
fn replay_missed_writes(context: &Arc<NodeContext>) {
    let is_known = |group: &str| context.registry.get(group).is_some();
    for member in context.view().members() {
        if context.missed_writes.has_missed(&member.id, is_known)
            && let Some(link) = context.link(member).filter(|link| link.admits())
        {
            context.tasks.run(replay(Arc::clone(context), member.id.clone(), link));
        }
    }
}

/// Frees the memory of expired entries. Runs until the node ends.
pub(super) async fn sweep(context: Arc<NodeContext>) {
    loop {
        sleep(SWEEP).await;
        context.handover.sweep(context.now_ms());
        for group in context.registry.all() {
            group.sweep().await;
        }
    }
}

/// Limits the time for which entries are served, because this node may have missed writes.
fn on_partitioned(context: &NodeContext, why: &str) {
    context.changes.record(Change::Partitioned, context.now_ms());
    context.local.counters.partitions.up();
    tracing::warn!("{why}: entries of this node may be outdated, and are served for a short time only");
}

/// Sends the Hello again on every connection when it has changed. Runs until the node ends.
pub(super) async fn announce(context: Arc<NodeContext>, server: Server) {
    let mut changes = context.local.changes();
    while changes.changed().await.is_ok() {
        context.links().iter().for_each(|link| link.nudge());
        server.nudge();
    }
}
