//! Facts of a group for tools.

use std::{sync::Arc, time::Duration};

use crate::{
    engine::{Engine, GroupFlight},
    flight::Kind as Table,
    telemetry::{GroupInfo, GroupLoads, RunningLoad},
    value::Value,
};

impl<V: Value> Engine<V> {
    /// Returns the loads that run, and the last ones that have ended.
    pub(super) fn group_loads(&self) -> GroupLoads {
        let now_ms = self.context.local.clock.read_ms();
        let running = |flight: GroupFlight<V>| RunningLoad {
            key: Arc::clone(flight.key()),
            age: Duration::from_millis(now_ms.saturating_sub(flight.begun_ms)),
        };
        let mut running: Vec<_> = self.flights.all(Table::Load).into_iter().map(running).collect();
        running.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.key.cmp(&b.key)));
        GroupLoads { running, recent: self.recent_loads.list(now_ms) }
    }

    /// Returns the facts of the group at this moment.
    pub(super) fn group_info(&self) -> GroupInfo {
        let now_ms = self.context.now_ms();
        let since = |begun_ms: u64| Duration::from_millis(now_ms.saturating_sub(begun_ms));
        GroupInfo {
            name: Arc::clone(&self.settings.name),
            format: self.settings.format,
            stats: self.counters.snapshot(),
            bytes: self.cache.bytes(),
            capacity_bytes: self.cache.capacity(),
            max_entry_bytes: self.cache.owned.max_entry_bytes(),
            owned_entries: self.cache.owned.len(),
            replicas: self.cache.replicas_len(),
            load_latencies: self.loads.latencies.snapshot(),
            peer_latencies: self.peer_latencies.snapshot(),
            eviction_ages: self.cache.eviction_ages.snapshot(),
            load_deadline: self.settings.load_deadline,
            oldest_load: self.flights.oldest_ms(Table::Load).map(since),
        }
    }
}
