//! Slots for the loads of one key: a write separates the loads before it from those after it, so that a key that is
//! written often and loads slowly would have any number of loads side by side.
//!
//! A load without a slot waits. A later one for the same key takes its place, because a value that is loaded later is
//! good for all waiters. The load that is replaced follows it, so that its waiters get an outcome which began after
//! their own flights did.
//!
//! A load that another load waits for does not wait, because the loads with slots may wait for a permit that the other
//! load holds. The load of a suspect does not wait, because suspects have turns.

use std::sync::Arc;

use dashmap::{DashMap, Entry};

use crate::{
    engine::{Engine, GroupFlight, load_task},
    runtime::sync::{Keyed, sharded},
    value::Value,
};

/// Maximum number of loads of one key that run at once on a node: one from before a write, one from after it, and one
/// that makes up for a loader that hangs.
pub(crate) const PER_KEY: usize = 3;

/// Slots of all keys of a group that are loaded now.
pub(crate) struct LoadSlots<V: Value> {
    keys: DashMap<Arc<str>, KeyLoads<V>, Keyed>,
}

struct KeyLoads<V: Value> {
    running: usize,
    /// Newest load without a slot.
    waiting: Option<WaitingLoad<V>>,
}

struct WaitingLoad<V: Value> {
    flight: GroupFlight<V>,
    /// Time since which the key has had a load that waits.
    since_ms: u64,
    begin: Box<dyn FnOnce(LoadSlot<V>) + Send + Sync>,
}

/// Slot of a running load. Its drop begins the load that waits for the key.
pub(crate) struct LoadSlot<V: Value> {
    slots: Arc<LoadSlots<V>>,
    key: Arc<str>,
}

impl<V: Value> LoadSlots<V> {
    pub(crate) fn new(hasher: Keyed) -> Arc<Self> {
        Arc::new(Self { keys: sharded(hasher) })
    }

    /// Begins a load at once if its key has a slot or the load may not wait, and otherwise when it has one. Returns the
    /// load that waited before, which follows the new one.
    pub(crate) fn begin(
        self: &Arc<Self>,
        flight: &GroupFlight<V>,
        may_wait: bool,
        now_ms: u64,
        begin: impl FnOnce(LoadSlot<V>) + Send + Sync + 'static,
    ) -> Option<GroupFlight<V>> {
        let key = flight.key();
        let mut loads = self.keys.entry(Arc::clone(key)).or_insert(KeyLoads { running: 0, waiting: None });
        // Under the lock, so that a load which comes to wait for this one sees it wait, or is seen here.
        let waits = loads.running >= PER_KEY && may_wait && !is_needed(flight) && !mutant!(NoLoadSlots);
        if waits {
            flight.context.load_context().iter().for_each(|load| load.waits_for_slot());
            let since_ms = loads.waiting.as_ref().map_or(now_ms, |waiting| waiting.since_ms);
            let waiting = WaitingLoad { flight: Arc::clone(flight), since_ms, begin: Box::new(begin) };
            let replaced = loads.waiting.replace(waiting);
            drop(loads);
            return replaced.map(|replaced| replaced.flight);
        }
        loads.running += 1;
        drop(loads);
        begin(self.slot(key));
        None
    }

    /// Begins the waiting load of a key, beyond the number of slots, if another load waits for it.
    pub(crate) fn begin_needed(self: &Arc<Self>, key: &Arc<str>) {
        self.begin_waiting(key, |waiting| is_needed(&waiting.flight));
    }

    /// Begins each load that has waited since `since_ms`, beyond the number of slots, because the loads with slots do not
    /// end.
    pub(crate) fn begin_stuck(self: &Arc<Self>, since_ms: u64) {
        let is_stuck = |waiting: &WaitingLoad<V>| waiting.since_ms <= since_ms;
        let stuck = self.keys.iter().filter(|loads| loads.waiting.as_ref().is_some_and(is_stuck));
        let stuck: Vec<_> = stuck.map(|loads| Arc::clone(loads.key())).collect();
        stuck.iter().for_each(|key| self.begin_waiting(key, is_stuck));
    }

    fn begin_waiting(self: &Arc<Self>, key: &Arc<str>, is_wanted: impl FnOnce(&WaitingLoad<V>) -> bool) {
        let next = self.keys.get_mut(&**key).and_then(|mut loads| {
            let next = loads.waiting.take_if(|waiting| is_wanted(waiting))?;
            loads.running += 1;
            Some(next)
        });
        if let Some(next) = next {
            (next.begin)(self.slot(key));
        }
    }

    fn slot(self: &Arc<Self>, key: &Arc<str>) -> LoadSlot<V> {
        LoadSlot { slots: Arc::clone(self), key: Arc::clone(key) }
    }
}

/// Returns whether another load waits for a load.
fn is_needed<V: Value>(flight: &GroupFlight<V>) -> bool {
    flight.context.load_context().is_some_and(|load| load.depth() > 0)
}

impl<V: Value> Drop for LoadSlot<V> {
    fn drop(&mut self) {
        let next = {
            let Entry::Occupied(mut entry) = self.slots.keys.entry(Arc::clone(&self.key)) else { return };
            let loads = entry.get_mut();
            loads.running -= 1;
            let next = if loads.running < PER_KEY { loads.waiting.take() } else { None };
            loads.running += usize::from(next.is_some());
            if loads.running == 0 {
                entry.remove();
            }
            next
        };
        if let Some(next) = next {
            (next.begin)(self.slots.slot(&self.key));
        }
    }
}

/// Completes a load that has no slot with the outcome of a later one, in a task.
pub(crate) fn follow<V: Value>(engine: &Arc<Engine<V>>, earlier: GroupFlight<V>, later: GroupFlight<V>) {
    let engine = Arc::clone(engine);
    let guard = load_task::complete_on_drop(&engine, &earlier);
    let contexts = earlier.context.load_context().cloned().zip(later.context.load_context().cloned());
    if let Some((earlier, later)) = &contexts {
        earlier.follow(later); // the answer is as old as what the later loader reads
    }
    engine.load_slots.begin_needed(later.key());
    let tasks = Arc::clone(&engine.context);
    tasks.tasks.load(async move {
        let called = async {
            if let Some((earlier, later)) = &contexts {
                later.called().await;
                earlier.calls();
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = later.outcome() => outcome,
            () = called => later.outcome().await,
        };
        engine.flights.complete(&earlier, outcome, 0, || ());
        guard.defuse();
    });
}
