//! What tests of interleavings share: a scheduler that tries the orders in which tasks may take their locks and
//! atomics, and a node without a network for it to try them on. `make interleavings` runs them.

use std::{sync::Arc, time::Duration};

use shuttle::{Config, Runner, scheduler::RandomScheduler};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    config::Limits,
    identity::{Incarnation, NodeState, PeerId},
    membership::{
        stabilizer::{DialId, Member, MemberSet},
        view::View,
    },
    net::Security,
    peer::hello::Local,
    shared::Shared,
    testing::hello,
};

/// Orders that each scene is run in.
const SCHEDULES: usize = 10_000;

/// A task's stack: a whole get of a build without optimisation is on it.
const STACK_BYTES: usize = 1 << 20;

/// Runs a scene in [`SCHEDULES`] orders; a failure prints the order, for `shuttle::replay`. A scene in which everybody
/// waits is a failure too: no timer ever fires.
pub(crate) fn check<F: Future<Output = ()> + 'static>(scene: impl Fn() -> F + Send + Sync + 'static) {
    // Of tokio's runtime only the clock is used, and it moves when a scene says so. It is never shut down: what a scene
    // that failed has left in it would be woken then, outside of any scene.
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let runtime: &'static Runtime = Box::leak(Box::new(runtime));
    let _entered = runtime.enter();
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    let runner = Runner::new(RandomScheduler::new(SCHEDULES), config);
    assert_eq!(runner.run(move || shuttle::future::block_on(scene())), SCHEDULES);
}

/// Time passes, and the node notices.
pub(crate) async fn pass(local: &Local, time: Duration) {
    tokio::time::advance(time).await;
    local.clock.tick();
}

/// What a node says of itself, and its clock.
pub(crate) fn local() -> Arc<Local> {
    Arc::new(Local::new(hello("a"), Limits::default(), Security::Open { is_insecure: true }))
}

/// A node that knows nobody else.
pub(crate) fn alone() -> Arc<Shared> {
    let view = View::new(1, MemberSet { members: vec![member("a", None, 1)] });
    Arc::new(Shared::new(local(), view, Handle::current(), fastrand::Rng::with_seed(7)))
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
