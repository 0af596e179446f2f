//! Writes and related calls: ten times a second, a call other than `get`.

use groupcache_discovery::RemoveOptions;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use chaos::{NODES, clock};
use groupcache_discovery::{Error, WriteOutcome};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    World,
    floors::{CLEARED, KEYS},
    gets::judge,
    tally::kind,
};

const EVERY: Duration = Duration::from_millis(100);

/// Number of operations, which take turns.
const OPERATIONS: usize = 8;

pub(crate) async fn run(world: Arc<World>) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for turn in 0.. {
        tick.tick().await;
        if world.rate.load(Relaxed) > 0 {
            world.tally.begins();
            operate(&world, turn).await;
            world.tally.ended();
        }
    }
}

async fn operate(world: &World, turn: usize) {
    // Each key has a single writer, so that the order of its writes is known.
    let column = (turn % (KEYS / NODES)) * NODES + world.number;
    let (group, key) = (&world.written, format!("written-{column}"));
    let begun = Begun { at: clock::nanoseconds(), members: world.node.members().len() };
    match turn % OPERATIONS {
        0 => record_write(world, "remove", &[column], begun, group.remove(&key).await),
        1 => record_write(world, "set", &[column], begun, group.set(&key, begun.at.to_string()).await),
        2 => {
            let columns = [column, (column + NODES) % (KEYS / NODES * NODES)];
            let keys = columns.map(|column| format!("written-{column}"));
            record_write(world, "remove_many", &columns, begun, group.remove_many(keys).await);
        }
        3 => record_write(
            world,
            "remove with hold",
            &[column],
            begun,
            group.remove_with(&key, RemoveOptions::new().hold(EVERY)).await,
        ),
        4 => record_write(world, "clear", &[CLEARED], begun, world.cleared.clear().await),
        5 => record_call(
            world,
            "remove owner_only",
            group.remove_with(&key, RemoveOptions::new().owner_only()).await.err().as_ref(),
        ),
        6 => record_call(world, "peek", group.peek(&key).await.err().as_ref()),
        _ => get_many(world).await,
    }
}

/// Records a write. Once a write has reached every node, no get may return an older value.
///
/// The floor of a key rises only if the view held all nodes at the beginning and at the end of the write, because a
/// complete write promises nothing about nodes outside the writer's view.
fn record_write(world: &World, what: &str, columns: &[usize], begun: Begun, outcome: Result<WriteOutcome, Error>) {
    let members = begun.members.min(world.node.members().len());
    match outcome {
        Ok(done) if done.is_complete() => {
            if members == NODES {
                columns.iter().for_each(|column| world.floors.raise(world.number, *column, begun.at));
                return world.tally.wrote(format!("{what} complete"));
            }
            world.tally.wrote(format!("{what} complete among {members}"));
        }
        Ok(_) => world.tally.wrote(format!("{what} incomplete")),
        Err(e) => world.tally.wrote(format!("{what} {}", kind(&e))),
    }
}

/// Time of the call of a write, and the number of members in the view at that time.
#[derive(Clone, Copy)]
struct Begun {
    at: u64,
    members: usize,
}

fn record_call(world: &World, what: &str, error: Option<&Error>) {
    world.tally.wrote(format!("{what} {}", error.map_or("complete", kind)));
}

/// Gets eight keys at once. A key that fails counts as a failed get.
async fn get_many(world: &World) {
    let columns: Vec<_> = (0..8).map(|_| fastrand::usize(..KEYS)).collect();
    let floors: Vec<_> = columns.iter().map(|column| world.floors.of(*column)).collect();
    let keys: Vec<_> = columns.iter().map(|column| format!("written-{column}")).collect();
    let values = world.written.get_many(&keys).await;
    for ((key, floor), value) in keys.iter().zip(floors).zip(values) {
        match value {
            Ok(value) => judge(world, &world.written, key, floor, &value),
            Err(e) => world.tally.failed(&world.written, key, &e),
        }
    }
    record_call(world, "get_many", None);
}
