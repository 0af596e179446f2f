//! Slots: the calls in flight by id. An id holds a slot and its generation, so that a late response to a slot which was
//! given away is recognised.

use crate::peer::client::in_flight::InFlight;

/// Slot with at most one call.
struct Slot {
    generation: u32,
    call: Option<InFlight>,
}

impl Slot {
    fn id(&self, at: usize) -> u64 {
        u64::from(self.generation) << 32 | at as u64
    }
}

/// Calls in flight to one peer. A free slot is used again before their number grows.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
    /// Number of slots that were looked at.
    #[cfg(test)]
    visits: std::cell::Cell<usize>,
}

/// Returns the index of the slot of an id.
fn index(id: u64) -> usize {
    (id & 0xffff_ffff) as usize
}

impl Slots {
    /// Returns the number of calls.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Counts slots that are looked at, for tests.
    fn visit(&self, _slots: usize) {
        #[cfg(test)]
        self.visits.set(self.visits.get() + _slots);
    }

    #[cfg(test)]
    pub(super) fn visits(&self) -> usize {
        self.visits.get()
    }

    /// Adds a call and returns its id.
    pub(super) fn add(&mut self, call: InFlight) -> u64 {
        self.in_flight += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, call: None });
            self.slots.len() as u32 - 1
        }) as usize;
        match self.slots.get_mut(at) {
            Some(slot) => {
                slot.generation = slot.generation.wrapping_add(1);
                slot.call = Some(call);
                slot.id(at)
            }
            None => 0, // not reached: the slot was made or freed before
        }
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut InFlight> {
        self.visit(1);
        let slot = self.slots.get_mut(index(id)).filter(|slot| slot.id(index(id)) == id)?;
        slot.call.as_mut()
    }

    /// Returns whether the call with this id waits.
    pub(super) fn has(&self, id: u64) -> bool {
        self.visit(1);
        self.slots.get(index(id)).is_some_and(|slot| slot.call.is_some() && slot.id(index(id)) == id)
    }

    pub(super) fn take(&mut self, id: u64) -> Option<InFlight> {
        self.visit(1);
        let at = index(id);
        let call = self.slots.get_mut(at).filter(|slot| slot.id(at) == id)?.call.take()?;
        self.in_flight -= 1;
        self.free.push(at as u32);
        Some(call)
    }

    pub(super) fn calls_mut(&mut self) -> impl Iterator<Item = &mut InFlight> {
        self.visit(self.slots.len());
        self.slots.iter_mut().filter_map(|slot| slot.call.as_mut())
    }

    /// Returns the ids of all calls.
    pub(super) fn ids(&self) -> Vec<u64> {
        self.visit(self.slots.len());
        let waiting = self.slots.iter().enumerate().filter(|(_, slot)| slot.call.is_some());
        waiting.map(|(at, slot)| slot.id(at)).collect()
    }
}
