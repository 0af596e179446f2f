//! Statistics: counters of a node and of its groups, latencies, and all of them as measurements for exporters.

pub use crate::runtime::{
    histogram::Latencies,
    measurement::{Distribution, Family, Kind, Labels, Reading, Sample, Unit},
};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of cells of a counter. Threads spread over the cells, so that two cores rarely write to one cache line.
const CELLS: usize = 8;

thread_local! {
    /// Byte with an address that differs between threads; only the address is used.
    static HERE: u8 = const { 0 };
}

#[derive(Debug, Default)]
#[repr(align(128))] // two cache lines, because the neighbouring line is prefetched
struct Cell(AtomicU64);

/// Counter that many threads may add to.
#[derive(Debug, Default)]
pub(crate) struct Counter([Cell; CELLS]);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        // The thread-local areas of two threads are pages apart.
        let cell = HERE.with(|here| (std::ptr::from_ref(here) as usize >> 12) % CELLS);
        if let Some(cell) = self.0.get(cell) {
            cell.0.fetch_add(n, Relaxed);
        }
    }

    pub(crate) fn up(&self) {
        self.add(1);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Relaxed)).sum()
    }
}

/// Declares live counters, the public snapshot of them, and sums of two counters, from one list.
macro_rules! counters {
    (
        $(#[$live_doc:meta])* $live:ident,
        $(#[$doc:meta])* $snapshot:ident { $($(#[doc = $field_doc:literal])* $field:ident,)* }
        $(and { $($(#[doc = $sum_doc:literal])* $sum:ident = $first:ident + $second:ident,)* })?
    ) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $live { $(pub(crate) $field: Counter,)* }

        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $snapshot {
            $($($(#[doc = $sum_doc])* pub $sum: u64,)*)?
            $($(#[doc = $field_doc])* pub $field: u64,)*
        }

        impl $live {
            pub(crate) fn snapshot(&self) -> $snapshot {
                $(let $field = self.$field.get();)*
                $snapshot { $($($sum: $first + $second,)*)? $($field,)* }
            }
        }

        impl $snapshot {
            /// Names and doc comments of the counters, in the order of [`iter`](Self::iter).
            pub(crate) const MEANINGS: &[(&str, &str)] = &[
                $($((stringify!($sum), concat!($($sum_doc),*)),)*)?
                $((stringify!($field), concat!($($field_doc),*)),)*
            ];

            /// Returns the name and the value of each counter, for exporters.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$($((stringify!($sum), self.$sum),)*)? $((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Live counters of a group.
    GroupCounters,
    /// Counters of one group on this node, since the group was built.
    ///
    /// All counters only grow.
    GroupStats {
        /// Gets answered from this node's memory.
        hits,
        /// Gets that were not answered from this node's memory.
        misses,
        /// Gets and requests of peers that memory did not answer, because another node owns the key.
        missed_remote,
        /// Gets and requests of peers that memory did not answer, because it had no value and had not evicted one lately.
        missed_absent,
        /// Gets and requests of peers that memory did not answer, because the value was evicted lately for want of room.
        missed_evicted,
        /// Gets and requests of peers that memory did not answer, because the time to live of the value had ended.
        missed_expired,
        /// Gets and requests of peers that memory did not answer, because the value may lack a write, or does not decode.
        missed_unusable,
        /// Hits on replicas.
        replica_hits,
        /// Hits, of gets and of requests from peers, on stale values, which are served while a newer value is loaded.
        stale_hits,
        /// Refreshes that began: loads in the background of values that were stale, or about to become stale.
        refreshes,
        /// Loads that failed, and for which the previous value was returned.
        stale_on_error,
        /// Fetches that began for callers of this node. A fetch may send several requests.
        fetches,
        /// Requests of fetches to peers that were unreachable or declined, and fetches that ended with an error: not
        /// found, failed, overloaded, timed out.
        fetch_errors,
        /// Gets that peers requested from this node.
        peer_requests,
        /// Gets that peers requested and that were answered from this node's memory.
        peer_request_hits,
        /// Calls of the loader on this node, retries included. A call of a batch loader counts once for each of its
        /// keys.
        loads,
        /// Calls of the batch loader, each for one or many keys.
        batches,
        /// Calls of the loader for keys that this node does not own, because the owner did not answer or its value did
        /// not decode here. Included in `loads`.
        fallback_loads,
        /// Requests to previous owners for a value, before a load.
        previous_owner_reads,
        /// Values that a previous owner had, so that no load was needed.
        previous_owner_hits,
        /// Values sent to their present owners, in pages or for previous-owner reads.
        handover_sent,
        /// Encoded bytes of the values of `handover_sent`.
        handover_sent_bytes,
        /// Values received in pages from their previous owners, and kept.
        handover_received,
        /// Encoded bytes of the values of `handover_received`.
        handover_received_bytes,
        /// Calls of the loader that ended with an error, a panic or a timeout. A batch counts each key that ends with
        /// an error once, after its retries.
        load_errors,
        /// Retries: attempts after the first one, of loads with a transient error.
        retries,
        /// Loads that did not begin because the breaker of the group was open.
        breaker_rejections,
        /// Gets and requests that joined a running flight.
        shared_flights,
        /// Values that were loaded, or read from a previous owner, and not kept because of a write since their flight
        /// began.
        discarded_after_write,
        /// Values that were returned and not kept because they exceed the largest size of an entry.
        too_large_to_keep,
        /// Entries that were evicted for want of room.
        evictions,
        /// Owned entries that were evicted for want of room and that nobody had read since they were loaded, set or refreshed.
        evicted_unread,
        /// Entries that were evicted because of their age.
        expired,
        /// Gets that ended because their deadline, or that of the load at the owner, had passed.
        timeouts,
        /// Gets and loads that were refused because a limit was reached, here or at the owner.
        overloaded,
        /// Strikes that this node has recorded: requests to peers whose processes ended while they may have loaded the
        /// key.
        strikes,
        /// Gets that were refused because processes ended while they loaded the key.
        quarantined,
        /// Loads that have run more than 1 s past their deadline, because their loader blocks its thread.
        overdue_loads,
        /// Values of peers that did not decode at this node and were loaded instead.
        decode_failures,
        /// Writes that callers of this node made: sets, removes and clears.
        writes,
        /// Gets that found a value older than `max_staleness` allows, and loaded or fetched it again.
        too_stale,
        /// Entries that writes dropped from this node's memory, whichever node made the write.
        invalidations,
    } and {
        // A sum and not a counter, so that a hit writes to one counter only.
        /// Gets that callers of this node made: `hits` and `misses`.
        gets = hits + misses,
    }
}

counters! {
    /// Live counters of a node.
    NodeCounters,
    /// Counters of one node, since its start.
    ///
    /// All counters only grow.
    NodeStats {
        /// Connections to peers that completed their Hello.
        connected,
        /// Connections that broke.
        lost,
        /// Connections that were closed because the task that serves or reads them panicked.
        connection_panics,
        /// Connections that were closed because no byte arrived for 1 s while a ping was outstanding, or because a ping
        /// had no pong for 10 s.
        ping_timeouts,
        /// Attempts to connect that failed.
        connect_failed,
        /// Attempts to connect that either side refused: another cluster, another id, another protocol version, no
        /// trust.
        refused,
        /// Frames with requests that were sent to peers.
        frames_sent,
        /// Requests that were sent to peers.
        requests_sent,
        /// Second attempts within a get that the fallback budget allowed.
        fallback_attempts,
        /// Second attempts within a get that the fallback budget refused, so that this node loaded the value.
        fallback_refused,
        /// Pending responses received, for loads at their owners that took longer than 100 ms.
        pending,
        /// Responses with a status that this node does not know, or with a page that this node cannot read.
        unknown_answers,
        /// Views that were installed.
        views,
        /// Changes of a peer's fingerprint to one that differs from this node's.
        fingerprint_differences,
        /// Connections from peers that were accepted.
        accepted,
        /// Connections from peers that were refused or closed because the peer broke the protocol or a limit.
        rejected,
        /// Requests that were refused because their sender did not prove its identity.
        unauthenticated,
        /// Connections to this node that were refused because one side speaks TLS and the other does not.
        refused_plain,
        /// Connections to this node that were refused because of another version of TLS, or TLS without HTTP/2.
        refused_tls,
        /// Connections to this node that were refused because the certificate is absent, expired, or of an unknown
        /// authority.
        refused_certificates,
        /// Connections to this node that were refused because no name of a valid certificate is let in.
        refused_names,
        /// Connections to this node that ended because the other side refused this node's certificate.
        refused_by_peers,
        /// Connections to this node that did not finish their handshake within 5 s.
        handshake_timeouts,
        /// Connections to this node that broke, or sent invalid bytes, during their handshake.
        handshakes_broken,
        /// Connections to this node that the other side closed before its first byte, as health checks of a TCP port do.
        probes,
        /// Connections to this node that were closed to make room for others.
        connections_evicted,
        /// Responses to peers that became `overloaded`, because peers had not read the ones before.
        answers_without_room,
        /// Connections to this node that were closed because the bytes received on all of them exceeded their budget.
        connections_over_budget,
        /// Connections to this node that were closed because headers, or another frame without a message, exceeded 16 KiB.
        large_frames,
        /// Connections in both directions that use the cluster key without stretching it, as release 0.1 does.
        old_keys,
        /// Ticks that were more than 100 ms late, because this process stood still.
        late_ticks,
        /// Writes of this node that every node had acknowledged by their deadline.
        writes_complete,
        /// Writes of this node that settled after their deadline, while a caller waited for that.
        writes_settled,
        /// Milliseconds that those writes took to settle, all together.
        settling_ms,
        /// Sets that were carried out as removes for want of room for their values: sets of this node to a peer that is
        /// slow, and sets of a peer while too many values wait to be decoded here.
        sets_without_room,
        /// Writes of other nodes that this node asked for, because they did not arrive from their writers.
        pulled_writes,
        /// Runs of a provider that ended with an error, a panic or a return, and were started again.
        provider_restarts,
        /// Complete peer sets that the provider published.
        provider_sets,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_sums_all_threads() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| counter.up()));
            }
        });
        assert_eq!(counter.get(), 4000);
    }

    #[test]
    fn snapshot_names_its_counters() {
        let counters = GroupCounters::default();
        counters.loads.add(3);
        assert_eq!(counters.snapshot().loads, 3);
        assert!(counters.snapshot().iter().any(|(name, n)| name == "loads" && n == 3));
        counters.hits.add(5);
        counters.misses.add(2);
        assert_eq!(counters.snapshot().gets, 7);
        assert_eq!(counters.snapshot().iter().next(), Some(("gets", 7)));
    }
}
