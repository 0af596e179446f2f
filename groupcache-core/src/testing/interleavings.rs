//! What tests of interleavings share: a scheduler that tries the orders in which tasks may take their locks and
//! atomics, and a node without a network for it to try them on. `make interleavings` runs them.

use std::{sync::Arc, time::Duration};

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    context::NodeContext,
    identity::{Incarnation, NodeState, PeerId},
    limits::Limits,
    membership::{
        stabilizer::{DialId, Member, MemberSet},
        view::View,
    },
    peer::local::LocalNode,
    testing::unit::hello,
    transport::Security,
};

/// Orders that each scene is run in, by each of two schedulers.
const SCHEDULES: usize = 5_000;

/// How often, within one order, the second of them lets others overtake the task that is ahead.
const OVERTAKINGS: usize = 3;

/// A task's stack: a whole get of a build without optimisation is on it.
const STACK_BYTES: usize = 1 << 20;

/// Runs a scene in many orders; a failure prints the order, for `shuttle::replay`. A scene in which everybody waits is
/// a failure too: no timer ever fires.
///
/// Half of the orders draw lots at each step; of tasks that are delayed by one step a hundred times in a row they find
/// none. In the other half few tasks are delayed, and for long.
pub(crate) fn check<F: Future<Output = ()> + 'static>(scene: impl Fn() -> F + Clone + Send + Sync + 'static) {
    // Of tokio's runtime only the clock is used, and it moves when a scene says so. It is never shut down: what a scene
    // that failed has left in it would be woken then, outside of any scene.
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    let _entered = runtime.enter();
    run(RandomScheduler::new(SCHEDULES), scene.clone());
    run(PctScheduler::new(OVERTAKINGS, SCHEDULES), scene);
}

fn run<F: Future<Output = ()> + 'static>(
    scheduler: impl Scheduler + 'static,
    scene: impl Fn() -> F + Send + Sync + 'static,
) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    let schedules = Runner::new(scheduler, config).run(move || shuttle::future::block_on(scene()));
    assert_eq!(schedules, SCHEDULES);
}

/// Time passes, and the node notices.
pub(crate) async fn pass(local: &LocalNode, time: Duration) {
    tokio::time::advance(time).await;
    local.clock.tick();
}

/// What a node says of itself, and its clock.
pub(crate) fn local() -> Arc<LocalNode> {
    Arc::new(LocalNode::new(hello("a"), Limits::default(), Security::Open { is_insecure: true }))
}

/// A node that knows nobody else.
pub(crate) fn alone() -> Arc<NodeContext> {
    let view = View::new(1, MemberSet { members: vec![member("a", None, 1)] });
    Arc::new(NodeContext::new(local(), view, Handle::current(), false, fastrand::Rng::with_seed(7)))
}

/// A view of `a`, which is this node, and `b`, of whom one owns every key.
pub(crate) fn owned_by(epoch: u64, owner: &str) -> View {
    let share = |id| u8::from(id == owner);
    View::new(
        epoch,
        MemberSet { members: vec![member("a", None, share("a")), member("b", Some(DialId(1)), share("b"))] },
    )
}

fn member(id: &str, dial: Option<DialId>, share: u8) -> Member {
    Member {
        id: PeerId::new(id).expect("a good id"),
        incarnation: Incarnation(1),
        state: NodeState::Ready,
        weight: share,
        share,
        zone: "".into(),
        addresses: Vec::new(),
        dial,
    }
}
