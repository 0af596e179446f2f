//! The ticks of a node: coarse time, deadlines and silence of links, the horizon of a node that is alone, expired
//! entries, and the announcement of changes.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    cache::revalidation::Change,
    context::NodeContext,
    limits::{INVALIDATION, TICK},
    peer::{
        client::{call::Call, dial_limits::Arrival, sent_write::SentWrite},
        server::Server,
    },
    protocol::{chain::LoadChain, message::Op},
    runtime::clock::{Punctuality, later},
};

/// Interval of the sweeps for expired entries. A sweep of a million entries takes about 0.14 s of one core.
const SWEEP: Duration = Duration::from_secs(10);

/// Number of ticks between two checks for overdue loads and unacknowledged writes: about a second.
const WATCH_EVERY: u64 = 100;

/// Number of ticks between two checks for writes that settle by time: about a quarter of a second, so that a write
/// settles within a second after the bound of its group and a fiftieth of it.
const SETTLE_EVERY: u64 = 25;

/// Maximum number of writes that are repeated to one peer at once.
const REPEATED_AT_ONCE: usize = 1000;

/// Advances coarse time and checks links, loads and writes. Runs until the node ends.
pub(super) async fn tick(context: Arc<NodeContext>) {
    let _close = CloseOnDrop(Arc::clone(&context));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n: u64 = 0;
    let mut was_connected = false;
    loop {
        ticks.tick().await;
        let was_late = matches!(context.local.clock.tick(), Punctuality::Late(_));
        if was_late {
            context.local.counters.late_ticks.up();
        }
        let now_ms = context.now_ms();
        context.local.writes.tick(now_ms);
        if context.local.writes.take_may_have_missed() {
            tracing::warn!(
                "this node was away for long: values from before are dropped, because writes may be forgotten"
            );
            context.changes.record(Change::Absence, now_ms);
        }
        let (mut in_flight, mut is_connected) = (0, false);
        for link in context.links() {
            link.sweep(now_ms, was_late);
            in_flight += link.in_flight();
            is_connected |= link.admits();
        }
        if is_connected && !was_connected {
            // The first connection shows that this node was away, and not its peers. The other links need not wait.
            for link in context.links().iter().filter(|link| !link.admits()) {
                link.retry_soon(Arrival::OfAnyPeer);
            }
        }
        was_connected = is_connected;
        context.local.in_flight.store(in_flight, Relaxed);
        n += 1;
        if n.is_multiple_of(SETTLE_EVERY) {
            context.local.writes.settle_by_time(now_ms);
        }
        if n.is_multiple_of(WATCH_EVERY) {
            context.registry.all().iter().for_each(|group| group.watch());
            context.local.writes.sweep(now_ms);
            context.local.quarantine.sweep(now_ms);
            repeat_writes(&context);
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

/// Sends the writes once more that connected peers have not acknowledged for a second: peers of an earlier release, and
/// peers that do not dial this node, so that they cannot ask for them.
fn repeat_writes(context: &NodeContext) {
    for (_, link) in &context.connected_links() {
        let Some(peer) = link.instance() else { continue };
        let indices = context.local.hello();
        for entry in context.local.writes.unacknowledged(&peer, REPEATED_AT_ONCE, context.now_ms()) {
            let sent = SentWrite::new(Arc::clone(&context.local), entry.number);
            let index = indices.groups.iter().find(|group| group.name == entry.group).map(|group| group.index);
            let Some(group) = index else {
                // The peer cannot be told of a group that this node has removed.
                continue;
            };
            let op = if entry.key.is_some() { Op::Remove { hold: Duration::ZERO } } else { Op::Clear };
            let deadline_ms = later(context.local.clock.read_ms(), INVALIDATION);
            let (key, chain) = (entry.key.unwrap_or_else(|| "".into()), LoadChain::EMPTY);
            let number = if link.has_log() { entry.number } else { 0 };
            let (rank, known) = (0, Vec::new());
            sent.send(link, |reply| Call {
                op,
                group,
                key,
                deadline_ms,
                rank,
                chain,
                number,
                known,
                strikes: None,
                reply,
            });
        }
    }
}

/// Frees the memory of expired entries. Runs until the node ends.
pub(super) async fn sweep(context: Arc<NodeContext>) {
    // On the runtime of the user, without which the node loads nothing.
    let _close = CloseOnDrop(Arc::clone(&context));
    loop {
        sleep(SWEEP).await;
        context.handover.sweep(context.now_ms());
        for group in context.registry.all() {
            group.sweep().await;
        }
    }
}

/// Sends the Hello again on every connection when it has changed. Runs until the node ends.
pub(super) async fn announce(context: Arc<NodeContext>, server: Server) {
    let mut changes = context.local.changes();
    while changes.changed().await.is_ok() {
        context.links().iter().for_each(|link| link.nudge());
        server.nudge();
    }
}
