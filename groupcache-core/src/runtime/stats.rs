//! Statistics: counters of a node and of its groups, and latencies.

pub use crate::runtime::histogram::Latencies;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Cells of a counter; threads spread over them, so that two cores rarely write to one cache line.
const CELLS: usize = 8;

thread_local! {
    /// Only its address is used: it differs between threads.
    static HERE: u8 = const { 0 };
}

#[derive(Debug, Default)]
#[repr(align(128))] // two cache lines: the neighbour is prefetched
struct Cell(AtomicU64);

/// A counter that many threads may add to.
#[derive(Debug, Default)]
pub(crate) struct Counter([Cell; CELLS]);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        // Thread-local areas are pages apart.
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

/// Declares live counters and the snapshot that users see, with sums of two of them, from one list.
macro_rules! counters {
    (
        $(#[$live_doc:meta])* $live:ident,
        $(#[$doc:meta])* $snapshot:ident { $($(#[$field_doc:meta])* $field:ident,)* }
        $(and { $($(#[$sum_doc:meta])* $sum:ident = $first:ident + $second:ident,)* })?
    ) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $live { $(pub(crate) $field: Counter,)* }

        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $snapshot {
            $($($(#[$sum_doc])* pub $sum: u64,)*)?
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $live {
            pub(crate) fn snapshot(&self) -> $snapshot {
                $(let $field = self.$field.get();)*
                $snapshot { $($($sum: $first + $second,)*)? $($field,)* }
            }
        }

        impl $snapshot {
            /// Name and value of each counter, for exporters.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$($((stringify!($sum), self.$sum),)*)? $((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Live counters of a group.
    GroupCounters,
    /// Counters of one group on this node, since it was built.
    GroupStats {
        /// Gets answered from this node's memory.
        hits,
        /// Gets that were not.
        misses,
        /// Hits on copies of hot values that other nodes own.
        replica_hits,
        /// Hits on values past their time to live, which are served while a younger one is loaded.
        stale_hits,
        /// Loads that nobody waited for: values that were stale, or would be soon.
        refreshes,
        /// Loads that failed, and for which an older value was handed out.
        stale_on_error,
        /// Exchanges with peers that were begun for callers of this node.
        fetches,
        /// Answers of peers that were no value: unreachable, declined, failed, overloaded.
        fetch_errors,
        /// Requests of peers.
        peer_requests,
        /// Requests of peers that were answered from this node's memory.
        peer_request_hits,
        /// Loads that were begun on this node: the calls of its loader.
        loads,
        /// Calls of a batch loader, each for one or many of the loads.
        batches,
        /// Loads of keys that this node does not own, because no peer could answer.
        fallback_loads,
        /// Former owners that were asked for a value before it would be loaded.
        previous_owner_reads,
        /// Values that a former owner had: loads that were spared.
        previous_owner_hits,
        /// Values that were handed over to the nodes that own them now, one by one or in pages.
        handover_sent,
        /// The bytes of those, encoded.
        handover_sent_bytes,
        /// Values that were taken over in pages from nodes that owned them before.
        handover_received,
        /// The bytes of those, encoded.
        handover_received_bytes,
        /// Loads that ended with an error, a panic or a time-out.
        load_errors,
        /// Attempts after the first, of loads that failed and may succeed.
        retries,
        /// Loads that were not begun because the group's breaker was open.
        breaker_rejections,
        /// Gets and requests that found a flight already under way and shared its outcome.
        shared_flights,
        /// Values that were loaded and not kept because a write had passed them.
        discarded_after_write,
        /// Values that were returned and not kept because they are larger than one entry may be.
        too_large_to_keep,
        /// Entries that left because others needed the room.
        evictions,
        /// Entries that left because they were too old to be of use, before their room was needed.
        expired,
        /// Gets that ended by their deadline.
        timeouts,
        /// Gets and requests that were refused because a limit was reached.
        overloaded,
        /// Loads that have run more than a second past their deadline: their loader blocks its thread.
        overdue_loads,
        /// Values of peers that could not be decoded here and were loaded instead.
        decode_failures,
        /// Writes made here: `set` and `remove`.
        writes,
        /// Entries that were dropped because a peer said that they had changed.
        invalidations,
    } and {
        /// Gets that callers of this node made. It has no counter: a hit writes to one, not to two.
        gets = hits + misses,
    }
}

counters! {
    /// Live counters of a node.
    NodeCounters,
    /// Counters of one node, since it was started.
    NodeStats {
        /// Connections to peers that completed their Hello.
        connected,
        /// Connections that broke.
        lost,
        /// Connections that were given up because the peer said nothing for a second while a ping was outstanding.
        ping_timeouts,
        /// Attempts to connect that failed.
        connect_failed,
        /// Peers that were refused, or refused us: another cluster, another id, another protocol version.
        refused,
        /// Frames with requests that were sent.
        frames_sent,
        /// Requests that were sent in them.
        requests_sent,
        /// Second attempts within one get that the fallback budget allowed.
        fallback_attempts,
        /// Second attempts that it did not allow; the value was loaded here instead.
        fallback_refused,
        /// Pending answers received: loads at their owners that took longer than 100 ms.
        pending,
        /// Answers with a status or to a request that this node does not know.
        unknown_answers,
        /// Views that were installed.
        views,
        /// Frames whose fingerprint was not that of this node's ring.
        fingerprint_differences,
        /// Connections that peers opened here.
        accepted,
        /// Connections that were closed because a peer broke the protocol or a limit.
        rejected,
        /// Requests that were refused because nobody knows who sent them.
        unauthenticated,
        /// Connections to this node that were refused: one side speaks TLS and the other does not.
        refused_plain,
        /// Connections to this node that were refused: another version of TLS, or no HTTP/2 in it.
        refused_tls,
        /// Connections to this node that were refused: no certificate, an expired one, one of a stranger's authority.
        refused_certificates,
        /// Connections to this node that were refused: a good certificate, and none of its names is let in.
        refused_names,
        /// Connections to this node whose other side refused this node's certificate.
        refused_by_peers,
        /// Connections to this node that did not finish their handshake within 5 s.
        handshake_timeouts,
        /// Connections to this node that broke, or spoke nonsense, during their handshake.
        handshakes_broken,
        /// Connections to this node that had to make room for others.
        connections_evicted,
        /// Ticks that were more than 100 ms late: this process stood still.
        late_ticks,
        /// Times that this node found that writes may have passed it by: it stood still, or lost all its peers.
        partitions,
        /// Runs of the provider that ended with an error and were started again.
        provider_restarts,
        /// Complete sets that the provider published.
        provider_sets,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_add_up() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| counter.up()));
            }
        });
        assert_eq!(counter.get(), 4000);
    }

    #[test]
    fn a_snapshot_names_its_counters() {
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
