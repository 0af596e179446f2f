//! The tick: coarse time, deadlines, silence, and the announcing of what has changed.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::node::replay::replay;
use crate::{
    cache::revalidation::Change, context::NodeContext, limits::TICK, peer::server::Server, runtime::clock::Punctuality,
};

/// How often what has expired is looked for: one look at a million entries takes a seventh of a second of one core.
const SWEEP: Duration = Duration::from_secs(10);

/// A tick that is later than this may mean that peers have given this node up, and told it nothing since.
const CUT_OFF: Duration = Duration::from_secs(2);

/// Ticks between two looks at loads that run too long: about a second.
const WATCH_EVERY: u64 = 100;

/// Runs until the node ends.
pub(super) async fn tick(context: Arc<NodeContext>) {
    let _end = CloseOnDrop(Arc::clone(&context));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n: u64 = 0;
    let mut was_connected = false;
    loop {
        ticks.tick().await;
        let late = context.local.clock.tick();
        let we_stood_still = matches!(late, Punctuality::Late(_));
        if we_stood_still {
            context.local.counters.late_ticks.up();
        }
        let now_ms = context.now_ms();
        // A node that knows nobody else hears of every write.
        let is_alone = context.view_ref().members().len() <= 1;
        if matches!(late, Punctuality::Late(by) if by > CUT_OFF) && !is_alone {
            on_partitioned(&context, "this process stood still");
        }
        let (mut in_flight, mut connected, mut lost) = (0, 0, 0);
        for link in context.links() {
            link.sweep(now_ms, we_stood_still);
            in_flight += link.in_flight();
            connected += usize::from(link.admits());
            lost += usize::from(link.is_lost(now_ms));
        }
        if connected == 0 && was_connected && lost > 0 {
            context.is_partitioned.store(true, Relaxed);
            on_partitioned(&context, "no peer can be reached");
        }
        if connected > 0 && !was_connected {
            // It was not the others that were away.
            context.links().iter().filter(|link| !link.admits()).for_each(|link| link.retry_soon());
        }
        was_connected = connected > 0;
        if connected > 0 || lost == 0 {
            context.is_partitioned.store(false, Relaxed);
        }
        context.local.in_flight.store(in_flight, Relaxed);
        n += 1;
        if n.is_multiple_of(WATCH_EVERY) {
            context.registry.all().iter().for_each(|group| group.watch());
            catch_up_with_those_who_missed(&context);
        }
    }
}

/// The node ends, or its runtime does, under callers who have another one: nothing would ever end what they wait for.
struct CloseOnDrop(Arc<NodeContext>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
        self.0.tasks.close(); // first, so that fetches which lose their link now do not begin to load here
        self.0.links().iter().for_each(|link| link.close());
    }
}

/// A write may not have been taken though the connection lives: a limit was reached, or a deadline passed.
fn catch_up_with_those_who_missed(context: &Arc<NodeContext>) {
    let is_here = |group: &str| context.registry.get(group).is_some();
    for member in context.view().members() {
        if context.missed_writes.has_missed(&member.id, is_here)
            && let Some(link) = context.link(member).filter(|link| link.admits())
        {
            context.tasks.run(replay(Arc::clone(context), member.id.clone(), link));
        }
    }
}

/// Gives back the memory of what has expired. Runs until the node ends.
pub(super) async fn sweep(context: Arc<NodeContext>) {
    loop {
        sleep(SWEEP).await;
        context.handover.sweep(context.now_ms());
        for group in context.registry.all() {
            group.sweep().await;
        }
    }
}

/// Writes may have passed this node by: what it holds is served for a short time only.
fn on_partitioned(context: &NodeContext, why: &str) {
    context.changes.record(Change::Partitioned, context.now_ms());
    context.local.counters.partitions.up();
    tracing::warn!("{why}: what this node holds may have changed meanwhile, and is served for a short time only");
}

/// Sends the Hello again on every connection when it has changed.
pub(super) async fn announce(context: Arc<NodeContext>, server: Server) {
    let mut changes = context.local.changes();
    while changes.changed().await.is_ok() {
        context.links().iter().for_each(|link| link.nudge());
        server.nudge();
    }
}
