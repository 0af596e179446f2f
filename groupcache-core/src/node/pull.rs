//! Pull: asks peers for the writes that this node lacks, and answers such requests of peers.
//!
//! A writer sends each write once. A write that does not arrive, because a connection was broken or a limit was reached,
//! is pulled: the pongs of every peer show which writes there are, and any peer that has applied a write passes it on. A
//! node that holds no value yet begins each log at the position that it is shown.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    context::NodeContext,
    identity::{Instance, PeerId},
    peer::{
        client::{call::Outcome, link::Link},
        server::service::LogRequest,
    },
    protocol::message::{LogPart, Op, Response, WriteName},
    runtime::clock::later,
    write::{logs, pulls::Pull},
};

/// Interval at which due pulls are looked for while a log lacks entries.
const STEP: Duration = Duration::from_millis(20);

/// Shortest time between two pings beside those of every second: two ticks of the coarse clock.
const PING_PAUSE: Duration = Duration::from_millis(20);

/// Time limit of a request for entries. Another peer is asked after that.
const PATIENCE: Duration = Duration::from_secs(1);

/// Maximum number of requests for one pull. Each answer has some thousand entries.
const MAX_PARTS: usize = 100;

/// Number of entries that are applied before other tasks run: some hundred microseconds of work.
const APPLIED_AT_ONCE: usize = 256;

/// Pulls the entries that this node lacks. Runs until the node ends.
pub(super) async fn pull(context: Arc<NodeContext>) {
    let writes = &context.local.writes;
    loop {
        if !writes.is_lacking() {
            writes.lacks.notified().await;
        }
        let now_ms = context.local.clock.read_ms();
        begin_logs(&context, now_ms);
        // Collected before, because links are locked while they show what this node knows of writes.
        let reachable = context.connected_links().into_iter().map(|(id, _)| id).collect();
        for pull in writes.due_pulls(now_ms, &reachable) {
            context.tasks.run(run_pull(Arc::clone(&context), pull));
        }
        sleep(STEP).await;
    }
}

/// Pings all peers when this node has news for them, or needs to hear from them. Runs until the node ends.
pub(super) async fn ping_all(context: Arc<NodeContext>) {
    loop {
        let is_strike = tokio::select! {
            () = context.local.writes.ping_all.notified() => false,
            () = context.local.quarantine.changed.notified() => true,
        };
        // News of writes wait before the ping, because a ping counts for a node that has entered only if it leaves later,
        // by the coarse clock. News of strikes leave at once, because the key may end the next process.
        if !is_strike {
            sleep(PING_PAUSE).await;
        }
        context.connected_links().iter().for_each(|(_, link)| link.ping_now());
        if is_strike {
            sleep(PING_PAUSE).await;
        }
    }
}

/// Begins the logs that this node is shown for the first time, if it holds no value.
///
/// The bases are announced first, so that a flight which begins from here on names them, and the flights that run are
/// detached after that. The logs begin last.
fn begin_logs(context: &NodeContext, now_ms: u64) {
    let writes = &context.local.writes;
    let unbegun = writes.unbegun(now_ms);
    if !unbegun.is_empty() && context.registry.all().iter().all(|group| group.is_empty()) {
        begin_at(context, &unbegun, now_ms);
    }
}

/// Begins logs without their entries, which counts as a write of all keys of all groups.
fn begin_at(context: &NodeContext, bases: &[(Instance, u64)], now_ms: u64) {
    let writes = &context.local.writes;
    if !mutant!(BaseIsNoWrite) {
        writes.announce_bases(bases, now_ms);
    }
    if !mutant!(BaseKeepsFlights) {
        context.registry.all().iter().for_each(|group| group.forget());
    }
    writes.begin_at(bases, now_ms);
}

/// Pull that runs. Dropping it makes the logs due again.
struct RunningPull {
    context: Arc<NodeContext>,
    pull: Pull,
}

impl Drop for RunningPull {
    fn drop(&mut self) {
        let local = &self.context.local;
        local.writes.pulled(&self.pull, local.clock.read_ms());
    }
}

/// Asks one peer for entries until it has no more, and applies them.
async fn run_pull(context: Arc<NodeContext>, pull: Pull) {
    let running = RunningPull { context, pull };
    let (context, mut after) = (&running.context, running.pull.after.clone());
    for _ in 0..MAX_PARTS {
        let Some(link) = context.link_by_id(&running.pull.from) else { return };
        let Some(parts) = ask(context, &link, after.clone()).await else { return };
        if parts.is_empty() {
            break;
        }
        for part in parts {
            apply(context, part).await;
        }
        let writes = &context.local.writes;
        after.iter_mut().for_each(|name| name.number = writes.position(&name.writer));
    }
}

/// Requests the entries after the given ones from a peer.
async fn ask(context: &NodeContext, link: &Link, after: Vec<WriteName>) -> Option<Vec<LogPart>> {
    let end_ms = later(context.local.clock.read_ms(), PATIENCE);
    let pending = link.request(Op::ReadLogs(after), 0, &"".into(), end_ms, 0)?;
    match timeout(PATIENCE, pending).await {
        Ok(Ok(Outcome::Answered(Response::Logs(parts)))) => Some(parts),
        _ => None,
    }
}

/// Applies entries in their order, each once, and moves the position after them.
async fn apply(context: &NodeContext, part: LogPart) {
    let LogPart { writer, through, base, entries } = part;
    let writes = &context.local.writes;
    if base > writes.position(&writer) && !mutant!(YoungLogIsWhole) {
        // No node has the entries up to the base.
        tracing::warn!(writer = %writer.id, "writes of a node are lost; this node drops all its values");
        begin_at(context, &[(writer.clone(), base)], context.local.clock.read_ms());
    }
    let mut applied = 0;
    for entry in &entries {
        let now_ms = context.local.clock.read_ms();
        let Some(entry) = writes.begin(&writer, logs::of_wire(entry, now_ms), now_ms) else { continue };
        if let Some(group) = context.registry.get(&entry.group) {
            match &entry.key {
                Some(key) => group.invalidate(key),
                None => group.clear(),
            }
        }
        writes.commit(&writer, entry, now_ms);
        applied += 1;
        if applied % APPLIED_AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
    }
    writes.reach(&writer, through, context.local.clock.read_ms());
    writes.count_pulled(applied);
}

/// Answers the requests of peers for writes. Runs until the node ends.
pub(super) async fn answer(context: Arc<NodeContext>, mut requests: mpsc::Receiver<LogRequest>) {
    while let Some(request) = requests.recv().await {
        let writes = &context.local.writes;
        let is_whole = request.after.iter().all(|name| writes.sources_before_base(name).is_empty());
        if is_whole {
            let _ = request.answer.send(writes.parts(&request.after, context.local.clock.read_ms()));
        } else {
            context.tasks.run(fill_and_answer(Arc::clone(&context), request));
        }
    }
}

/// Asks others for the entries before the bases of this node, and then answers a request.
async fn fill_and_answer(context: Arc<NodeContext>, request: LogRequest) {
    let writes = &context.local.writes;
    for name in &request.after {
        for source in writes.sources_before_base(name) {
            if fill(&context, &source, name).await {
                break;
            }
        }
    }
    let _ = request.answer.send(writes.parts(&request.after, context.local.clock.read_ms()));
}

/// Asks one peer for the entries of a log before the base of this node. Returns whether the peer had them.
async fn fill(context: &NodeContext, source: &PeerId, name: &WriteName) -> bool {
    let Some(link) = context.link_by_id(source) else { return false };
    let Some(parts) = ask(context, &link, vec![name.clone()]).await else { return false };
    let writes = &context.local.writes;
    parts.iter().for_each(|part| writes.fill(part, name.number, context.local.clock.read_ms()));
    writes.sources_before_base(name).is_empty()
}
