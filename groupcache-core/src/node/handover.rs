//! The hand-over of a node: receives values from previous owners, and waits until new owners have received the values
//! of this node.
//!
//! A change of owners starts a transfer from each previous owner: group by group, a page at a time. Each request for a
//! page waits until the connected peers agree about the owners, so that the peer sends the values that this node owns.
//! At most one transfer per peer runs at a time. The peers are chosen in [`crate::handover`], and pages are built and
//! stored in `engine/send.rs` and `engine/receive.rs`.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use crate::node::Node;
use crate::{
    context::NodeContext,
    identity::PeerId,
    limits::HANDOVER,
    peer::{
        client::{call::Outcome, link::Link},
        group_service::{GroupService, PageRequest, Progress},
    },
    protocol::message::{GroupName, NO_MORE, Op, Page, Response},
    runtime::{clock::later, sync::Mutex},
};

/// Interval at which the agreement of the views and the progress of the hand-over are checked.
const POLL: Duration = Duration::from_millis(20);

/// Time without a change after which the cold entries are requested too. Peers consider the ring quiet by then.
const QUIET: Duration = Duration::from_secs(35);

/// Maximum time until the connected peers agree about the owners.
const AGREE: Duration = Duration::from_secs(10);

/// Time limit of a request for a page: the peer may search all of its entries first, and sends pages at a limited rate.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of requests for one page, while the peer is overloaded or cannot be reached. When all of them fail,
/// the keys that the peer has not sent yet are loaded again.
const ATTEMPTS: u32 = 50;

/// Pause before another request to an unreachable peer. An overloaded peer names the pause itself.
const PAUSE: Duration = Duration::from_millis(100);

/// Maximum number of restarts of a peer's queues within one transfer. The queues start again when the peer's ring
/// changes.
const MAX_RESTARTS: u32 = 100;

/// Interval of the log lines about the progress of the hand-over.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Number of characters of the progress bar in the log.
const BAR: usize = 20;

/// The transfers that run, by peer, and whether each starts again at its end.
type Transfers = Arc<Mutex<BTreeMap<PeerId, bool>>>;

/// Receives values from previous owners after each change of the owners. Runs until the node ends.
pub(super) async fn receive_values(context: Arc<NodeContext>) {
    let mut updates = context.handover.updates();
    let transfers = Transfers::default();
    let mut is_due = false;
    loop {
        let is_quiet = async {
            match is_due {
                true => sleep(QUIET).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = updates.changed() => match changed {
                Ok(()) => is_due = true,
                Err(_) => return,
            },
            () = is_quiet => {
                is_due = false;
                context.tasks.run_user_code(receive_cold_entries(Arc::clone(&context), Arc::clone(&transfers)));
                continue;
            }
        }
        for peer in context.handover.sources() {
            if try_begin(&transfers, &peer) {
                context.tasks.run_user_code(receive_from(Arc::clone(&context), Arc::clone(&transfers), peer));
            }
        }
    }
}

/// Returns whether a transfer may begin. A transfer that runs already is marked, and starts again at its end.
fn try_begin(transfers: &Transfers, peer: &PeerId) -> bool {
    match transfers.lock().entry(peer.clone()) {
        Entry::Occupied(mut again) => {
            again.insert(true);
            false
        }
        Entry::Vacant(free) => {
            free.insert(false);
            true
        }
    }
}

/// Receives the entries that have not been used lately, and those of earlier changes, from all members. No caller waits
/// for them, so the members are asked one after the other.
async fn receive_cold_entries(context: Arc<NodeContext>, transfers: Transfers) {
    let number = context.handover.number();
    for member in context.view().members().iter().filter(|member| member.dial.is_some()) {
        // After a change, all members are asked again once the ring is quiet.
        if context.handover.number() != number {
            return;
        }
        if try_begin(&transfers, &member.id) {
            receive_from(Arc::clone(&context), Arc::clone(&transfers), member.id.clone()).await;
        }
    }
}

/// Receives all groups from a previous owner, and starts again if a change of the owners asked for it meanwhile.
async fn receive_from(context: Arc<NodeContext>, transfers: Transfers, peer: PeerId) {
    let mut transfer = Transfer { transfers, peer, is_over: false };
    while !transfer.is_over {
        receive_groups(&context, &transfer.peer).await;
        let mut transfers = transfer.transfers.lock();
        match transfers.get_mut(&transfer.peer) {
            Some(again) if *again => *again = false,
            _ => {
                transfers.remove(&transfer.peer);
                transfer.is_over = true;
            }
        }
    }
}

/// A transfer that runs. A transfer that ends by a panic in the code of a value is removed too, so that the next may
/// begin.
struct Transfer {
    transfers: Transfers,
    peer: PeerId,
    is_over: bool,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.is_over {
            self.transfers.lock().remove(&self.peer);
        }
    }
}

/// Receives all groups from a previous owner, one after the other.
async fn receive_groups(context: &Arc<NodeContext>, peer: &PeerId) {
    let since_ms = context.local.clock.read_ms();
    let (mut kept, mut bytes) = (0, 0);
    for group in context.registry.names() {
        let Some(served) = context.registry.get(&group.name) else { continue };
        let (more, all) = receive_group(context, peer, &group, &served, since_ms).await;
        kept += more;
        bytes += all;
    }
    if kept > 0 {
        tracing::info!(%peer, kept, bytes, "received values from a previous owner");
    }
}

/// Returns whether all connected members agree about the owners.
fn is_agreed(context: &NodeContext) -> bool {
    let view = context.view();
    let is_same = |link: Arc<Link>| !link.admits() || link.fingerprint() == view.fingerprint();
    view.members().iter().all(|member| context.link(member).is_none_or(is_same))
}

/// Waits until the connected members agree about the owners. Returns `false` if they do not within [`AGREE`].
async fn wait_for_agreement(context: &NodeContext) -> bool {
    let writes = &context.local.writes;
    let agreed = async {
        // A group with a bound keeps no value of a peer before every node was heard since the last one entered.
        while !is_agreed(context) || writes.has_bounds.load(Relaxed) && !writes.vouches_for_others() {
            sleep(POLL).await;
        }
    };
    timeout(AGREE, agreed).await.is_ok()
}

/// Receives one group from a previous owner, and returns the number of kept entries and their bytes.
async fn receive_group(
    context: &Arc<NodeContext>,
    peer: &PeerId,
    group: &GroupName,
    served: &Arc<dyn GroupService>,
    since_ms: u64,
) -> (u64, u64) {
    let (mut kept, mut bytes, mut restarts, room) = (0, 0, 0, served.room());
    let ask = async |cursor| {
        if !wait_for_agreement(context).await {
            return None;
        }
        // The time and the changes are read before the request, so that the page does not undo later writes.
        let (asked_ms, changes) = (context.local.clock.read_ms(), context.changes.number());
        let has_log = context.link_by_id(peer).is_some_and(|link| link.has_log());
        let request = PageRequest { peer: peer.clone(), asked_ms, changes, since_ms, has_log };
        Some((cursor, request_page(context, peer, group, cursor).await?, request))
    };
    let mut asked = ask(0).await;
    while let Some((cursor, page, request)) = asked {
        let (next, sent) = (page.next, page.entries.iter().map(|handed| handed.bytes.len() as u64).sum());
        let store = Arc::clone(served).store_page(page, request);
        // Other upper bits mean that the peer's ring has changed, and that the peer has begun with other queues.
        let restarts_now = next >> 32 != cursor >> 32 && next > 0;
        restarts += u32::from(restarts_now);
        // The page is the last one, or the cursors of the peer do not advance.
        if next <= cursor && !restarts_now || restarts > MAX_RESTARTS {
            let stored = store.await;
            return (kept + stored.kept, bytes + stored.bytes);
        }
        // The next page is requested while this one is stored.
        let following = async {
            context.handover.receive_rate.spend(sent).await;
            ask(next).await
        };
        let (following, stored) = tokio::join!(following, store);
        kept += stored.kept;
        bytes += stored.bytes;
        if stored.is_over || bytes >= room {
            // Otherwise a draining peer would wait for the next request of this node.
            request_page(context, peer, group, NO_MORE).await;
            break;
        }
        asked = following;
    }
    (kept, bytes)
}

/// Returns the link to a peer that takes part in the hand-over, if the peer can be reached.
fn link_to(context: &NodeContext, peer: &PeerId) -> Option<Arc<Link>> {
    let view = context.view();
    let member = view.members().iter().find(|member| member.id == *peer)?;
    context.link(member).filter(|link| link.admits() && link.hands_over())
}

/// Requests a page, again while the peer is overloaded or unreachable. Repeating a request is safe, because only the
/// cursor of the next one tells the peer that the page has arrived.
async fn request_page(context: &NodeContext, peer: &PeerId, group: &GroupName, cursor: u64) -> Option<Page> {
    for attempt in 0..ATTEMPTS {
        // The views may differ by now, and then the peer sends other values.
        if attempt > 0 && !wait_for_agreement(context).await {
            return None;
        }
        // A member that has left the view, or that does not have the group, is not asked again.
        let member = context.view().members().iter().find(|member| member.id == *peer)?.clone();
        let link = context.link(&member)?;
        if link.admits() && !(link.hands_over() && link.offers(&group.name, group.format)) {
            return None;
        }
        let end_ms = later(context.local.clock.read_ms(), PAGE_TIMEOUT);
        let outcome = match link.request(Op::ReadPage { cursor }, group.index, &"".into(), end_ms, 0) {
            Some(pending) => pending.await.ok()?,
            None => Outcome::Unreachable,
        };
        match outcome {
            Outcome::Answered(Response::Page(page)) => return Some(page),
            Outcome::Answered(Response::Overloaded { retry_after }) => sleep(retry_after.min(PAGE_TIMEOUT)).await,
            Outcome::Unreachable | Outcome::Died { .. } => sleep(PAUSE).await,
            Outcome::Answered(_) | Outcome::Expired => return None,
        }
    }
    None
}

impl Node {
    /// Waits until the new owners have received the values of this node, for `limit` at most. Logs the progress.
    pub(super) async fn send_values_within(&self, limit: Duration) {
        let context = &self.inner.context;
        if !context.handover.is_on {
            return;
        }
        let begun = context.timers.now();
        let mut last = Progress::default();
        let sent = async {
            let mut logged = begun;
            loop {
                last = progress(context).await;
                if last.waits_for == 0 {
                    return;
                }
                if context.timers.now().saturating_duration_since(logged) >= LOG_INTERVAL {
                    logged = context.timers.now();
                    tracing::info!("hand-over runs: {}", bar(&last));
                }
                context.timers.sleep(POLL).await;
            }
        };
        let is_done = context.timers.timeout(limit, sent).await.is_some();
        if is_done && last.all > 0 {
            tracing::info!(entries = last.all, took = ?context.timers.now().saturating_duration_since(begun), "hand-over complete: {}", bar(&last));
        } else if !is_done {
            tracing::warn!(
                after = ?limit,
                "hand-over incomplete at its time limit: {}; allow more time, or raise handover_bytes_per_second",
                bar(&last)
            );
        }
    }
}

/// Returns the progress of the hand-over of all groups, and builds the transfer plans that are missing.
async fn progress(context: &Arc<NodeContext>) -> Progress {
    let mut all = Progress::default();
    for group in context.registry.names() {
        let Some(served) = context.registry.get(&group.name) else { continue };
        let is_reached =
            |peer: &PeerId| link_to(context, peer).is_some_and(|link| link.offers(&group.name, group.format));
        let found = match served.progress(&is_reached) {
            Some(found) => Some(found),
            None => {
                Arc::clone(&served).build_plan().await;
                served.progress(&is_reached)
            }
        };
        // The ring may have changed since the plan was built.
        all.add(&found.unwrap_or(Progress { waits_for: 1, ..Progress::default() }));
    }
    all
}

/// Formats the progress as a bar and in numbers.
fn bar(progress: &Progress) -> String {
    let Progress { arrived, all, waits_for } = *progress;
    let hashes = (arrived * BAR).checked_div(all).unwrap_or(BAR).min(BAR);
    let percent = (arrived * 100).checked_div(all).unwrap_or(100);
    format!("[{:-<BAR$}] {percent} %, {arrived} of {all} entries, {waits_for} queues left", "#".repeat(hashes))
}

/// Returns the time limit of the hand-over: two thirds of the time that is left until the node must end, and at most
/// [`HANDOVER`]. The last third is for owed responses and loads.
pub(super) fn handover_limit(left: Duration) -> Duration {
    HANDOVER.min(left / 3 * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the bar is filled in proportion to the arrived entries.
    #[test]
    fn progress_bar_shows_share_of_arrived_entries() {
        let bar = |arrived, all| super::bar(&Progress { arrived, all, waits_for: 1 });
        assert_eq!(bar(0, 0), "[####################] 100 %, 0 of 0 entries, 1 queues left");
        assert_eq!(bar(1, 4), "[#####---------------] 25 %, 1 of 4 entries, 1 queues left");
    }
}
