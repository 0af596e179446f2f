//! Helpers of the interleavings: a scheduler that runs a scene under many orders of locks and atomics, and a node
//! without a network. `make interleavings` runs the tests.

use std::{sync::Arc, time::Duration};

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    context::{NodeContext, tasks::Runtimes},
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

/// Number of orders in which each of the two schedulers runs a scene.
const SCHEDULES: usize = 5_000;

/// Number of times that the second scheduler changes the priority of tasks within one order.
const PRIORITY_CHANGES: usize = 3;

/// Bytes of the stack of a task, which holds a whole get of a build without optimisation.
const STACK_BYTES: usize = 1 << 20;

/// Runs a scene in many orders. A failure prints the order, for `shuttle::replay`. A scene in which all tasks wait
/// fails too, because no timer fires.
///
/// Half of the orders choose a random task at each step. Random orders hardly ever delay one task for a hundred steps
/// in a row. The other half delay few tasks, and each of them for long.
pub(crate) fn check<F: Future<Output = ()> + 'static>(scene: impl Fn() -> F + Clone + Send + Sync + 'static) {
    // Only the clock of the tokio runtime is used, and scenes move it. The runtime is leaked, because its shutdown
    // would wake the remaining tasks of a failed scene outside of any scene.
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    let _entered = runtime.enter();
    run(RandomScheduler::new(SCHEDULES), scene.clone());
    run(PctScheduler::new(PRIORITY_CHANGES, SCHEDULES), scene);
}

/// Runs a scene in the orders of one scheduler.
fn run<F: Future<Output = ()> + 'static>(
    scheduler: impl Scheduler + 'static,
    scene: impl Fn() -> F + Send + Sync + 'static,
) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    let schedules = Runner::new(scheduler, config).run(move || shuttle::future::block_on(scene()));
    assert_eq!(schedules, SCHEDULES);
}

/// Advances the clock, and the coarse time of the node.
pub(crate) async fn pass(local: &LocalNode, time: Duration) {
    tokio::time::advance(time).await;
    local.clock.tick();
}

/// Returns a local node with id `a`.
pub(crate) fn local() -> Arc<LocalNode> {
    Arc::new(LocalNode::new(hello("a"), Limits::default(), Security::Open { is_insecure: true }, Arc::default()))
}

/// Returns the context of a node with id `a` that is alone in its view.
pub(crate) fn alone() -> Arc<NodeContext> {
    let view = View::new(1, MemberSet { members: vec![member("a", None, 1)] });
    let runtimes = Runtimes { serving: Handle::current(), of_user: Handle::current() };
    Arc::new(NodeContext::new(local(), view, runtimes, false, fastrand::Rng::with_seed(7)))
}

/// Returns a view of the local node `a` and of a peer `b`, in which `owner` owns every key.
pub(crate) fn owned_by(epoch: u64, owner: &str) -> View {
    let share = |id| u8::from(id == owner);
    View::new(
        epoch,
        MemberSet { members: vec![member("a", None, share("a")), member("b", Some(DialId(1)), share("b"))] },
    )
}

/// Returns a Ready member; the local node without a dial.
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
