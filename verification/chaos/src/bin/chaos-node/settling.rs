//! Settling: ten removes a second at each node, each followed until it settles, and gets of the same keys.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use chaos::{GROUPS, NODES, Stage, WriteEvent, clock};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{World, versions::KEYS};

const EVERY: Duration = Duration::from_millis(100);

/// Removes keys, one every [`EVERY`], in each group by turns, whether earlier removes have returned or not.
pub(crate) async fn run(world: Arc<World>) {
    meet(&world).await;
    world.has_met.store(true, Relaxed);
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for number in 0.. {
        tick.tick().await;
        if world.rate.load(Relaxed) > 0 {
            tokio::spawn(remove(Arc::clone(&world), number));
        }
    }
}

/// Waits until every node of the company was heard once after the first one was met.
///
/// Nothing is promised about a process before that: a write of a node that nobody has met is complete at once, and so
/// is the write of another node that has not met this one.
async fn meet(world: &World) {
    let mut horizon = world.node.horizon();
    let mut met_at = None;
    loop {
        let now = horizon.borrow_and_update().clone();
        match (now.held_back_by, met_at) {
            (None, _) => met_at = None,
            (Some(_), None) => met_at = Some(Instant::now()),
            (Some(_), Some(at)) if now.age < at.elapsed() => return,
            (Some(_), Some(_)) => {}
        }
        if horizon.changed().await.is_err() {
            return;
        }
    }
}

async fn remove(world: Arc<World>, number: usize) {
    let group = number % GROUPS.len();
    // Each key has a single writer.
    let column = (number / GROUPS.len() % (KEYS / NODES)) * NODES + world.number;
    let row = group * KEYS + column;
    let record = |stage| {
        let at = clock::milliseconds();
        world.tally.settling(WriteEvent { process: std::process::id(), number, group, at, stage });
    };
    world.tally.begins();
    let version = world.versions.change(row);
    record(Stage::Called);
    let outcome = world.settling[group].remove(&row.to_string()).await;
    world.versions.returned(row, version);
    world.tally.ended();
    let Ok(outcome) = outcome else { return record(Stage::Failed) };
    // The floor rises first: a stage in a sample is true for every later get.
    if outcome.is_complete() {
        world.versions.raise(row, version);
        record(Stage::Complete);
    } else {
        outcome.settled().await;
        world.versions.raise(row, version);
        record(Stage::Settled);
    }
}

/// Starts a get of a key that is removed again and again, and judges the version that it returns.
pub(crate) fn get(world: &Arc<World>) {
    if !world.has_met.load(Relaxed) {
        return;
    }
    let world = Arc::clone(world);
    world.tally.begins();
    tokio::spawn(async move {
        let row = fastrand::usize(..GROUPS.len() * KEYS);
        let (group, key) = (&world.settling[row / KEYS], row.to_string());
        let floor = world.versions.floor(row);
        let (begun, began) = (Instant::now(), clock::nanoseconds());
        let got = group.get(&key).await;
        if let Ok(version) = &got {
            let version: u64 = version.parse().unwrap();
            world.tally.lacks(row / KEYS, world.versions.lacking(row, version, began));
            if version < floor {
                let why = group.inspect().explain(&key);
                let name = group.name();
                world.tally.is_stale(format!("{name} {key}: version {version}, after version {floor} settled; {why}"));
            }
        }
        world.tally.ends(group, &key, begun.elapsed(), got.err());
    });
}
