//! The walk over everything that a node measures, for exporters.

use std::{sync::Arc, time::Duration};

use crate::{
    identity::NodeState,
    node::{Node, inspect::DiscoveryInfo},
    runtime::stats::{Family, GroupStats, Kind, Labels, Latencies, NodeStats, Reading, Sample, Unit},
    telemetry::GroupInfo,
};

/// Exponents of the first and the last end of the buckets of a latency: 64 µs, below which memory answers, and 67 s,
/// twice the default deadline of a load.
const LATENCY_ENDS: std::ops::RangeInclusive<u32> = 6..=26;

/// Exponents of the first and the last end of the buckets of an age: 66 ms and 19 h. Each bucket is four times as long as
/// the one before. An end of 67 s makes the alert on young evictions exact.
const AGE_ENDS: std::ops::RangeInclusive<u32> = 16..=36;

/// Names of the counters that are one family, with the rest of their names as the label `reason`.
const REASONS: &str = "groupcache_missed_";

/// States of members, each of which has a measurement even if no member has the state.
const STATES: [NodeState; 3] = [NodeState::Joining, NodeState::Ready, NodeState::Draining];

impl Node {
    /// Returns everything that the node measures, for exporters: the counters of the node and of its groups, latencies,
    /// memory, members, discovery and writes.
    ///
    /// Each family appears once, with one measurement for each group where it has a label `group`. The help texts are
    /// the documentation of [`GroupStats`](crate::stats::GroupStats) and [`NodeStats`](crate::stats::NodeStats). Labels
    /// name groups, and never keys or peers. The crate `groupcache-metrics` exports the measurements. A call for 100
    /// groups takes one or two milliseconds.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
    /// # let node = groupcache_core::Node::builder().start().await?;
    /// let families = node.measure();
    /// let members = families.iter().find(|family| family.name == "groupcache_members").expect("each node has it");
    /// println!("{}: {} kinds of members", members.help, members.samples.len());
    /// # node.shutdown().await?; Ok(()) }
    /// ```
    pub fn measure(&self) -> Vec<Family> {
        let mut families = of_groups(&self.groups());
        families.extend(self.measure_node());
        families.extend(self.measure_cluster());
        families.extend(of_discovery(&self.discovery()));
        families.extend(self.measure_writes());
        families
    }

    /// Returns the counters of the node, its loads and its requests, and its names.
    fn measure_node(&self) -> Vec<Family> {
        let stats = self.stats();
        let mut families = counters("groupcache_node_", NodeStats::MEANINGS);
        for (family, (name, value)) in families.iter_mut().zip(stats.iter()) {
            family.samples.push(sample(&no_labels(), counted(name, value)));
        }
        let loads = self.loads();
        let gauges = [
            ("groupcache_loads_running", "Loads that run.", loads.running),
            ("groupcache_loads_queued", "Loads that wait for a permit.", loads.queued),
            ("groupcache_requests_in_flight", "Requests that peers have not answered yet.", self.in_flight()),
        ];
        families.extend(gauges.map(|(name, help, count)| gauge(name, Unit::Number, help, whole(count))));
        let (id, identity) = (self.id(), &self.inner.identity);
        let info: [(&'static str, Arc<str>); 4] = [
            ("id", id.as_str().into()),
            ("cluster", identity.cluster().into()),
            ("zone", identity.zone().into()),
            ("version", env!("CARGO_PKG_VERSION").into()),
        ];
        let samples = vec![sample(&Labels::from(info), Reading::Whole(1))];
        let help = "Names of the node and version of its library; always 1.";
        families.push(Family { samples, ..family("groupcache_node_info", Kind::Gauge, Unit::Number, help) });
        families
    }

    /// Returns the members, the ring, and the peers that cannot be reached.
    fn measure_cluster(&self) -> Vec<Family> {
        let (members, view) = (self.members(), self.inner.context.view());
        let of_state = |state: NodeState| {
            let labels = Labels::from([("state", Arc::from(state.to_string()))]);
            sample(&labels, whole(members.iter().filter(|member| member.state == state).count()))
        };
        let samples = STATES.map(of_state).into();
        let help = "Members in the view of this node, itself included.";
        let states = Family { samples, ..family("groupcache_members", Kind::Gauge, Unit::Number, help) };
        // A member can be unreachable before an attempt to connect has failed, and a target need not be a member.
        let failed = self.unconnected();
        let is_failed = |id| failed.iter().any(|peer| peer.id.as_ref() == Some(id));
        let unreachable = members.iter().filter(|member| !member.reachable && !is_failed(&member.id)).count();
        // The upper 52 bits, because a sample of Prometheus has 53.
        let ring = (view.fingerprint() >> 12) as f64;
        let number = Unit::Number;
        vec![
            states,
            gauge(
                "groupcache_peers_unreachable",
                number,
                "Members and listed targets that are not connected.",
                whole(failed.len() + unreachable),
            ),
            gauge(
                "groupcache_ring_hash",
                number,
                "Hash of the ring; nodes with equal hashes agree about every owner.",
                Reading::Real(ring),
            ),
            gauge(
                "groupcache_ring_share",
                Unit::Ratio,
                "Part of all keys that this node owns.",
                Reading::Real(view.local_share()),
            ),
            gauge(
                "groupcache_view_age",
                Unit::Seconds,
                "Time since the view of this node changed.",
                seconds(self.inner.context.view_age()),
            ),
            gauge(
                "groupcache_view_epoch",
                number,
                "Number of the view, which grows with each change.",
                Reading::Whole(view.epoch),
            ),
        ]
    }

    /// Returns what is known of writes, the horizon and the acknowledgements, and the number of quarantined keys.
    fn measure_writes(&self) -> Vec<Family> {
        let pending = self.inner.context.local.writes.unacknowledged_by_some();
        let age = self.horizon().borrow().age;
        vec![
            gauge(
                "groupcache_pending_writes",
                Unit::Number,
                "Writes of this node that some node has not acknowledged yet.",
                Reading::Whole(pending),
            ),
            gauge(
                "groupcache_horizon_age",
                Unit::Seconds,
                "Time within which a write of another node may be unknown here; about a second while all peers are heard.",
                seconds(age),
            ),
            gauge(
                "groupcache_quarantined_keys",
                Unit::Number,
                "Keys that no node loads, because processes ended while they loaded them.",
                whole(self.quarantined().len()),
            ),
        ]
    }
}

/// Returns the counters, the memory and the latencies of all groups.
fn of_groups(groups: &[GroupInfo]) -> Vec<Family> {
    let labelled: Vec<_> =
        groups.iter().map(|group| (Labels::from([("group", Arc::clone(&group.name))]), group)).collect();
    let mut families = counters("groupcache_", GroupStats::MEANINGS);
    for (labels, group) in &labelled {
        for (family, (name, value)) in families.iter_mut().zip(group.stats.iter()) {
            family.samples.push(sample(labels, counted(name, value)));
        }
    }
    join_reasons(&mut families);
    let each = |of: Family, read: fn(&GroupInfo) -> Reading| {
        let samples = labelled.iter().map(|(labels, group)| sample(labels, read(group))).collect();
        Family { samples, ..of }
    };
    let (bytes, seconds_unit) = (Unit::Bytes, Unit::Seconds);
    families.extend([
        each(family("groupcache_memory", Kind::Gauge, bytes, "Accounted bytes of the entries in memory."), |group| {
            Reading::Whole(group.bytes)
        }),
        each(family("groupcache_capacity", Kind::Gauge, bytes, "Budget of the group in bytes."), |group| {
            Reading::Whole(group.capacity_bytes)
        }),
        entries(&labelled),
        each(
            family("groupcache_load_deadline", Kind::Gauge, seconds_unit, "Maximum time of a load, with its retries."),
            |group| seconds(group.load_deadline),
        ),
        each(
            family(
                "groupcache_oldest_load",
                Kind::Gauge,
                seconds_unit,
                "Time since the beginning of the oldest load that has not ended; 0 if nothing is loaded.",
            ),
            |group| seconds(group.oldest_load.unwrap_or_default()),
        ),
        each(
            family(
                "groupcache_load_duration",
                Kind::Histogram,
                seconds_unit,
                "Durations of the calls of the loader, including failed calls.",
            ),
            |group| latencies(&group.load_latencies),
        ),
        each(
            family(
                "groupcache_peer_duration",
                Kind::Histogram,
                seconds_unit,
                "Times until another node answered a get of this node, including its load.",
            ),
            |group| latencies(&group.peer_latencies),
        ),
        each(
            family(
                "groupcache_eviction_age",
                Kind::Histogram,
                seconds_unit,
                "Ages of the entries that were evicted for want of room, since the time up to which their values contain every write, \
                 which usually is that of their load.",
            ),
            |group| Reading::Distribution(group.eviction_ages.folded(AGE_ENDS, 2)),
        ),
    ]);
    families
}

/// Joins the counters of the reasons for misses to one family.
fn join_reasons(families: &mut Vec<Family>) {
    let help = "Gets and requests of peers that memory did not answer, by reason.";
    let mut reasons = family("groupcache_miss_reasons", Kind::Counter, Unit::Number, help);
    families.retain(|family| {
        let Some(reason) = family.name.strip_prefix(REASONS) else { return true };
        let reason: Arc<str> = reason.into();
        reasons.samples.extend(family.samples.iter().map(|sample| {
            let labels = sample.labels.iter().cloned().chain([("reason", Arc::clone(&reason))]).collect();
            Sample { labels, reading: sample.reading.clone() }
        }));
        false
    });
    families.push(reasons);
}

/// Returns the numbers of entries, owned ones and replicas apart, because a difference of two readings may step back.
fn entries(labelled: &[(Labels, &GroupInfo)]) -> Family {
    let of = |(_, group): &(Labels, &GroupInfo)| {
        [("owned", group.owned_entries), ("replica", group.replicas)].map(|(kind, count)| {
            let labels = Labels::from([("group", Arc::clone(&group.name)), ("kind", kind.into())]);
            sample(&labels, whole(count))
        })
    };
    let help = "Entries in memory, including expired ones that were not swept yet.";
    Family {
        samples: labelled.iter().flat_map(of).collect(),
        ..family("groupcache_entries", Kind::Gauge, Unit::Number, help)
    }
}

/// Returns the counters and the state of discovery, with the name of the provider as a label.
fn of_discovery(discovery: &DiscoveryInfo) -> Vec<Family> {
    let provider = discovery.provider.clone().unwrap_or_else(|| "none".into());
    let labels = Labels::from([("provider", provider)]);
    let one = |family: Family, reading| Family { samples: vec![sample(&labels, reading)], ..family };
    let counts = [
        (
            "suspended_removals",
            "Complete peer sets that lacked most peers at once, so that removals were suspended.",
            discovery.suspended_removals,
        ),
        (
            "ignored_goodbyes",
            "Goodbyes and departure notices that did not remove a peer at once, because the peer still answered or had \
             started again.",
            discovery.ignored_goodbyes,
        ),
        (
            "ignored_addresses",
            "New addresses that were ignored, because the peer still answered at an earlier one.",
            discovery.ignored_addresses,
        ),
        (
            "refusals",
            "Connections that one side refused: another cluster, another id, no common version, or no trust.",
            discovery.refusals,
        ),
        ("stale_incarnations", "Hellos of a stale incarnation of a connected peer.", discovery.stale_incarnations),
        ("resolves", "Requests to the provider to read its source again.", discovery.resolves),
        ("removals", "Peers that have left the view.", discovery.removals),
    ];
    let mut families: Vec<_> = counts
        .into_iter()
        .map(|(name, help, count)| {
            let name = format!("groupcache_discovery_{name}");
            one(family(name, Kind::Counter, Unit::Number, help), Reading::Whole(count))
        })
        .collect();
    let is_healthy = u64::from(discovery.stale.is_none() && !discovery.self_unlisted);
    let number = |name, help| family(name, Kind::Gauge, Unit::Number, help);
    families.push(one(
        number(
            "groupcache_discovery_healthy",
            "Whether the source of the provider is fresh and lists this node: 1 or 0.",
        ),
        Reading::Whole(is_healthy),
    ));
    families.push(one(
        number("groupcache_unlisted_peers", "Peers that are connected while discovery does not list them."),
        whole(discovery.unlisted.len()),
    ));
    families.push(one(
        number("groupcache_unanswered_targets", "Listed targets where no peer has answered."),
        whole(discovery.unanswered_targets),
    ));
    let help = "Time since the last complete peer set; absent before the first one.";
    let age = family("groupcache_discovery_last_set_age", Kind::Gauge, Unit::Seconds, help);
    families.push(match discovery.last_set_age {
        Some(last_set_age) => one(age, seconds(last_set_age)),
        None => age,
    });
    families
}

/// Returns the families of counters, without measurements. A name that ends with a unit loses it.
fn counters(prefix: &str, meanings: &'static [(&str, &str)]) -> Vec<Family> {
    let counter = |(name, help): &(&'static str, &'static str)| {
        let (name, unit) = match (name.strip_suffix("_bytes"), name.strip_suffix("_ms")) {
            (Some(name), _) => (name, Unit::Bytes),
            (_, Some(name)) => (name, Unit::Seconds),
            (None, None) => (*name, Unit::Number),
        };
        family(format!("{prefix}{name}"), Kind::Counter, unit, help.trim_start())
    };
    meanings.iter().map(counter).collect()
}

/// Returns the value of a counter in its base unit.
fn counted(name: &str, value: u64) -> Reading {
    if name.ends_with("_ms") { seconds(Duration::from_millis(value)) } else { Reading::Whole(value) }
}

fn family(name: impl Into<String>, kind: Kind, unit: Unit, help: &'static str) -> Family {
    Family { name: name.into(), help, kind, unit, samples: Vec::new() }
}

/// Returns a gauge without labels.
fn gauge(name: &str, unit: Unit, help: &'static str, reading: Reading) -> Family {
    Family { samples: vec![sample(&no_labels(), reading)], ..family(name, Kind::Gauge, unit, help) }
}

fn sample(labels: &Labels, reading: Reading) -> Sample {
    Sample { labels: Arc::clone(labels), reading }
}

fn no_labels() -> Labels {
    Labels::from([])
}

fn whole(count: usize) -> Reading {
    Reading::Whole(count as u64)
}

fn seconds(time: Duration) -> Reading {
    Reading::Real(time.as_secs_f64())
}

fn latencies(latencies: &Latencies) -> Reading {
    Reading::Distribution(latencies.folded(LATENCY_ENDS, 1))
}
