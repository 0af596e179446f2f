//! Load: starts gets at a steady rate, whether earlier gets have ended or not.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use chaos::{NODES, clock};
use groupcache_discovery::Group;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    World,
    floors::{CLEARED, KEYS},
    settling,
};

const TICK: Duration = Duration::from_millis(10);
/// Number of ticks in a second.
const TICKS: u64 = 100;

/// Number of keys that all nodes get again and again, by Zipf's law.
const WORKING_SET: usize = 2000;

/// Interval between two new keys, in milliseconds. All nodes get a new key within it.
const FRESH_MS: u64 = 50;
/// Interval between two new keys while values are large, in milliseconds.
const LARGE_FRESH_MS: u64 = 10;

pub(crate) async fn run(world: Arc<World>) {
    let shares = shares();
    let mut tick = interval(TICK);
    // A process that was stopped does not make up for the gets that it missed.
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut owed, mut last_fresh) = (0, 0);
    loop {
        tick.tick().await;
        let rate = world.rate.load(Relaxed);
        if rate == 0 {
            continue;
        }
        owed += rate;
        let every = if world.backend.are_large.load(Relaxed) { LARGE_FRESH_MS } else { FRESH_MS };
        let fresh = clock::milliseconds() / every * every;
        if fresh != last_fresh {
            last_fresh = fresh;
            get(&world, format!("fresh-{fresh}"));
            owed = owed.saturating_sub(TICKS);
        }
        if owed >= TICKS {
            // A few keys are hot, so that every node has replicas of them.
            let is_hot = fastrand::bool();
            get_stamped(&world, if is_hot { fastrand::usize(..NODES) } else { fastrand::usize(..=KEYS) });
            owed -= TICKS;
        }
        // At 300 gets a second and more, each tick has a get of a key that is removed again and again.
        if owed >= TICKS {
            settling::get(&world);
            owed -= TICKS;
        }
        while owed >= TICKS {
            let at = fastrand::f64();
            get(&world, format!("key-{}", shares.partition_point(|share| *share < at)));
            owed -= TICKS;
        }
    }
}

/// Returns for each key of the working set the share of gets for it and all keys before it, by Zipf's law.
fn shares() -> Vec<f64> {
    let total: f64 = (1..=WORKING_SET).map(|rank| 1.0 / rank as f64).sum();
    let mut sum = 0.0;
    let share = |rank| {
        sum += 1.0 / rank as f64 / total;
        sum
    };
    (1..=WORKING_SET).map(share).collect()
}

fn get(world: &Arc<World>, key: String) {
    let world = Arc::clone(world);
    world.tally.begins();
    tokio::spawn(async move {
        let begun = Instant::now();
        let got = world.read.get(&key).await;
        world.tally.ends(&world.read, &key, begun.elapsed(), got.err());
    });
}

/// Starts a get, and checks that the value is not older than the last write that had reached every node when the get
/// began.
fn get_stamped(world: &Arc<World>, column: usize) {
    let world = Arc::clone(world);
    world.tally.begins();
    tokio::spawn(async move {
        let (group, key) = match column {
            CLEARED => (&world.cleared, format!("cleared-{}", fastrand::usize(..8))),
            _ => (&world.written, format!("written-{column}")),
        };
        let floor = world.floors.of(column);
        let begun = Instant::now();
        let got = group.get(&key).await;
        if let Ok(value) = &got {
            judge(&world, group, &key, floor, value);
        }
        world.tally.ends(group, &key, begun.elapsed(), got.err());
    });
}

pub(crate) fn judge(world: &World, group: &Group<String>, key: &str, floor: u64, value: &str) {
    let stamp: u64 = value.parse().unwrap();
    if stamp < floor {
        let ago = |at: u64| clock::nanoseconds().saturating_sub(at) / 1_000_000;
        let (began, written) = (ago(stamp), ago(floor));
        let why = group.inspect().explain(key);
        world.tally.is_stale(format!("{key}: a value of {began} ms ago, before the write of {written} ms ago; {why}"));
    }
}
