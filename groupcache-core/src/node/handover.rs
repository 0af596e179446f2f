//! Taking over from former owners what is this node's now, and waiting until others have taken over what was.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use crate::node::Node;
use crate::{
    context::NodeContext,
    identity::PeerId,
    limits::HANDOVER,
    peer::{
        client::{link::Link, request_table::Outcome},
        group_service::{GroupService, PageRequest, Progress},
    },
    protocol::message::{GroupName, NO_MORE, Op, Page, Response},
    runtime::{clock::later, sync::Mutex},
};

/// How often it is looked whether all nodes agree on who owns what.
const LOOK: Duration = Duration::from_millis(20);

/// When the rest is asked for, of which only what was used lately has come: the others take the ring for quiet by then.
const REST: Duration = Duration::from_secs(35);

/// How long that may take.
const AGREE: Duration = Duration::from_secs(10);

/// How long a page may take: its entries are looked for among all others, and pages are sent at a limited rate.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a peer is asked again for a page that is overloaded, or cannot be reached for a moment: once it is given up,
/// what it has left is loaded anew.
const ATTEMPTS: u32 = 50;

/// The pause before that, for a peer that names none.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a peer may begin again with its lists, the first time included: each is a change of its ring.
const BEGINNINGS: u32 = 100;

/// How often the log is told how far the hand-over is.
const TELL: Duration = Duration::from_secs(1);

/// The hashes of a bar in the log.
const BAR: usize = 20;

/// The peers that are pulled from, and whether there is a reason to begin again at the end.
type Pulls = Arc<Mutex<BTreeMap<PeerId, bool>>>;

/// Pulls from former owners whenever there are any. Runs until the node ends.
pub(super) async fn take_over(context: Arc<NodeContext>) {
    let mut updates = context.handover.updates();
    let pulls = Pulls::default();
    let mut is_due = false;
    loop {
        let is_quiet = async {
            match is_due {
                true => sleep(REST).await,
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
                context.tasks.run(pull_the_rest(Arc::clone(&context), Arc::clone(&pulls)));
                continue;
            }
        }
        for peer in context.handover.sources() {
            if begins(&pulls, &peer) {
                context.tasks.run(pull_from(Arc::clone(&context), Arc::clone(&pulls), peer));
            }
        }
    }
}

/// Whether a pull is to begin; one that runs begins again at its end.
fn begins(pulls: &Pulls, peer: &PeerId) -> bool {
    match pulls.lock().entry(peer.clone()) {
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

/// Whoever stays may have more than it has handed over, of whatever change before. Nobody waits for it: one after the other.
async fn pull_the_rest(context: Arc<NodeContext>, pulls: Pulls) {
    let number = context.handover.number();
    for member in context.view().members().iter().filter(|member| member.dial.is_some()) {
        // All of them are asked again when the ring is quiet once more.
        if context.handover.number() != number {
            return;
        }
        if begins(&pulls, &member.id) {
            pull_from(Arc::clone(&context), Arc::clone(&pulls), member.id.clone()).await;
        }
    }
}

async fn pull_from(context: Arc<NodeContext>, pulls: Pulls, peer: PeerId) {
    let mut pulling = Pulling { pulls, peer, is_over: false };
    while !pulling.is_over {
        pull_all_from(&context, &pulling.peer).await;
        let mut pulls = pulling.pulls.lock();
        match pulls.get_mut(&pulling.peer) {
            Some(again) if *again => *again = false,
            _ => {
                pulls.remove(&pulling.peer);
                pulling.is_over = true;
            }
        }
    }
}

/// A pull that runs. One that ends by a panic of what belongs to a value does not keep the next from beginning.
struct Pulling {
    pulls: Pulls,
    peer: PeerId,
    is_over: bool,
}

impl Drop for Pulling {
    fn drop(&mut self) {
        if !self.is_over {
            self.pulls.lock().remove(&self.peer);
        }
    }
}

/// All groups of one former owner, one after the other.
async fn pull_all_from(context: &Arc<NodeContext>, peer: &PeerId) {
    let since_ms = context.local.clock.read_ms();
    let (mut kept, mut bytes) = (0, 0);
    for group in context.registry.names() {
        let Some(served) = context.registry.get(&group.name) else { continue };
        let (more, all) = pull(context, peer, &group, &served, since_ms).await;
        kept += more;
        bytes += all;
    }
    if kept > 0 {
        tracing::info!(%peer, kept, bytes, "took over from a former owner");
    }
}

/// Whether everyone who is connected has the same owners in mind: then everyone tells this node what is written.
fn is_agreed(context: &NodeContext) -> bool {
    let view = context.view();
    let is_same = |link: Arc<Link>| !link.admits() || link.fingerprint() == view.fingerprint();
    view.members().iter().all(|member| context.link(member).is_none_or(is_same))
}

async fn agreed(context: &NodeContext) -> bool {
    let agreed = async {
        while !is_agreed(context) {
            sleep(LOOK).await;
        }
    };
    timeout(AGREE, agreed).await.is_ok()
}

/// One group of one former owner; returns how many entries were kept, and their bytes.
async fn pull(
    context: &Arc<NodeContext>,
    peer: &PeerId,
    group: &GroupName,
    served: &Arc<dyn GroupService>,
    since_ms: u64,
) -> (u64, u64) {
    let (mut kept, mut bytes, mut beginnings, room) = (0, 0, 0, served.room());
    let ask = async |cursor| {
        if !agreed(context).await {
            return None;
        }
        // Before it is asked: what is written from now on is not undone by what comes.
        let (asked_ms, changes) = (context.local.clock.read_ms(), context.changes.number());
        let pulled = PageRequest { peer: peer.clone(), asked_ms, changes, since_ms };
        Some((cursor, page(context, peer, group, cursor).await?, pulled))
    };
    let mut asked = ask(0).await;
    while let Some((cursor, found, pulled)) = asked {
        let (next, sent) = (found.next, found.entries.iter().map(|handed| handed.bytes.len() as u64).sum());
        let take = Arc::clone(served).store_page(found, pulled);
        // Its ring has changed, and it has begun again with other lists.
        let begins_again = next >> 32 != cursor >> 32 && next > 0;
        beginnings += u32::from(begins_again);
        // The last page, or a peer that goes round in circles.
        if next <= cursor && !begins_again || beginnings > BEGINNINGS {
            let taken = take.await;
            return (kept + taken.kept, bytes + taken.bytes);
        }
        // While one is stored the next is on its way.
        let following = async {
            context.handover.receive_rate.spend(sent).await;
            ask(next).await
        };
        let (following, taken) = tokio::join!(following, take);
        kept += taken.kept;
        bytes += taken.bytes;
        if taken.is_over || bytes >= room {
            // Or who leaves would wait for this node to ask on.
            page(context, peer, group, NO_MORE).await;
            break;
        }
        asked = following;
    }
    (kept, bytes)
}

fn link_to(context: &NodeContext, peer: &PeerId) -> Option<Arc<Link>> {
    let view = context.view();
    let member = view.members().iter().find(|member| member.id == *peer)?;
    context.link(member).filter(|link| link.admits() && link.hands_over())
}

/// A page may be asked for again: only the cursor of the next one says that it has arrived.
async fn page(context: &NodeContext, peer: &PeerId, group: &GroupName, cursor: u64) -> Option<Page> {
    for attempt in 0..ATTEMPTS {
        // Views may differ by now, and then a write need not reach this node.
        if attempt > 0 && !agreed(context).await {
            return None;
        }
        // It is gone, or has never had the group, and not only out of reach.
        let member = context.view().members().iter().find(|member| member.id == *peer)?.clone();
        let link = context.link(&member)?;
        if link.admits() && !(link.hands_over() && link.offers(&group.name, group.format)) {
            return None;
        }
        let end_ms = later(context.local.clock.read_ms(), PATIENCE);
        let outcome = match link.request(Op::ReadPage { cursor }, group.index, &"".into(), end_ms, 0) {
            Some(pending) => pending.await.ok()?,
            None => Outcome::Unreachable,
        };
        match outcome {
            Outcome::Answered(Response::Page(page)) => return Some(page),
            Outcome::Answered(Response::Overloaded { retry_after }) => sleep(retry_after.min(PATIENCE)).await,
            Outcome::Unreachable => sleep(PAUSE).await,
            Outcome::Answered(_) | Outcome::Expired => return None,
        }
    }
    None
}

impl Node {
    /// Waits until those that own now what this node has have taken it over, at most so long.
    pub(super) async fn send_values_within(&self, limit: Duration) {
        let context = &self.inner.context;
        if !context.handover.is_on {
            return;
        }
        let begun = Instant::now();
        let mut last = Progress::default();
        let handed_over = async {
            let mut told = begun;
            loop {
                last = progress(context).await;
                if last.waits_for == 0 {
                    return;
                }
                if told.elapsed() >= TELL {
                    told = Instant::now();
                    tracing::info!("handing over {}", bar(&last));
                }
                sleep(LOOK).await;
            }
        };
        let is_done = timeout(limit, handed_over).await.is_ok();
        if is_done && last.all > 0 {
            tracing::info!(entries = last.all, took = ?begun.elapsed(), "handed over {}", bar(&last));
        } else if !is_done {
            tracing::warn!(after = ?limit, "not all was handed over in time: {}", bar(&last));
        }
    }
}

/// How far the hand-over of all groups is. Makes the lists where there are none.
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
        // The ring may have changed in this moment.
        all.add(&found.unwrap_or(Progress { waits_for: 1, ..Progress::default() }));
    }
    all
}

/// A bar of twenty hashes, and the numbers.
fn bar(progress: &Progress) -> String {
    let Progress { arrived, all, waits_for } = *progress;
    let hashes = (arrived * BAR).checked_div(all).unwrap_or(BAR).min(BAR);
    let percent = (arrived * 100).checked_div(all).unwrap_or(100);
    format!("[{:-<BAR$}] {percent} %, {arrived} of {all} entries, {waits_for} lists to go", "#".repeat(hashes))
}

/// How long a hand-over may take of what is left until the node must be gone: a third is for what is owed afterwards.
pub(super) fn share_of(left: Duration) -> Duration {
    HANDOVER.min(left / 3 * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_the_hand_over_is_far() {
        let bar = |arrived, all| super::bar(&Progress { arrived, all, waits_for: 1 });
        assert_eq!(bar(0, 0), "[####################] 100 %, 0 of 0 entries, 1 lists to go");
        assert_eq!(bar(1, 4), "[#####---------------] 25 %, 1 of 4 entries, 1 lists to go");
    }
}
