//! Slots for the loads of one key: a write separates the loads before it from those after it, so that a key that is
//! written often and loads slowly would have any number of loads side by side.
//!
//! A load without a slot waits, unless another load waits for it. A later one for the same key takes its place, because a value that is loaded later is
//! good for all waiters. The loads that it replaces follow it: their waiters get its outcome, which began after their
//! own flights did.

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

    /// Begins a load at once if its key has a slot, and otherwise when it has one. Returns the load that waited before,
    /// which follows the new one.
    pub(crate) fn begin(
        self: &Arc<Self>,
        flight: &GroupFlight<V>,
        begin: impl FnOnce(LoadSlot<V>) + Send + Sync + 'static,
    ) -> Option<GroupFlight<V>> {
        let key = flight.key();
        let replaced = {
            let mut loads = self.keys.entry(Arc::clone(key)).or_insert(KeyLoads { running: 0, waiting: None });
            if loads.running >= PER_KEY {
                flight.context.load_context().iter().for_each(|load| load.waits_for_turn());
                Some(loads.waiting.replace(WaitingLoad { flight: Arc::clone(flight), begin: Box::new(begin) }))
            } else {
                loads.running += 1;
                drop(loads);
                begin(LoadSlot { slots: Arc::clone(self), key: Arc::clone(key) });
                None
            }
        };
        replaced.flatten().map(|waiting| waiting.flight)
    }

    /// Begins a load that waits for a slot, beyond the number of slots, because another load waits for it.
    pub(crate) fn begin_now(self: &Arc<Self>, flight: &GroupFlight<V>) {
        let key = flight.key();
        let next = {
            let Some(mut loads) = self.keys.get_mut(&**key) else { return };
            if !loads.waiting.as_ref().is_some_and(|waiting| Arc::ptr_eq(&waiting.flight, flight)) {
                return;
            }
            loads.running += 1;
            loads.waiting.take()
        };
        if let Some(next) = next {
            (next.begin)(LoadSlot { slots: Arc::clone(self), key: Arc::clone(key) });
        }
    }
}

impl<V: Value> Drop for LoadSlot<V> {
    fn drop(&mut self) {
        let next = {
            let Entry::Occupied(mut loads) = self.slots.keys.entry(Arc::clone(&self.key)) else { return };
            let next = loads.get_mut().waiting.take();
            if next.is_none() {
                loads.get_mut().running -= 1;
                if loads.get().running == 0 {
                    loads.remove();
                }
            }
            next
        };
        if let Some(next) = next {
            (next.begin)(Self { slots: Arc::clone(&self.slots), key: Arc::clone(&self.key) });
        }
    }
}

/// Completes a load that has no slot with the outcome of a later one, in a task.
pub(crate) fn follow<V: Value>(engine: &Arc<Engine<V>>, earlier: GroupFlight<V>, later: GroupFlight<V>) {
    let engine = Arc::clone(engine);
    let guard = load_task::complete_on_drop(&engine, &earlier);
    if let (Some(earlier), Some(later)) = (earlier.context.load_context(), later.context.load_context()) {
        earlier.follow(later); // the answer is as old as what the later loader reads
    }
    let tasks = Arc::clone(&engine.context);
    tasks.tasks.load(async move {
        let outcome = later.outcome().await;
        engine.flights.complete(&earlier, outcome, 0, || ());
        guard.defuse();
    });
}
