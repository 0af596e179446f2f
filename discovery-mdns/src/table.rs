//! Table: the records of the peers. A pure state machine; callers pass the time.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::{PeerId, discovery::Peer};
use tokio::time::Instant;

use crate::record::Record;

/// Maximum number of records. A node accepts 2,000 peers from a provider, and one of them is the node itself.
const MAX_RECORDS: usize = 1_999;
/// Time to collect lost records before their peers are dropped, because this node may lose its own record with them.
const SETTLE: Duration = Duration::from_millis(100);
/// Time that the connection to a peer without a record must be down before the peer is dropped. A shorter interruption
/// may be a reconnection.
const RECONNECTING: Duration = Duration::from_secs(3);

/// Records of the cluster, by instance name.
#[derive(Debug, Default)]
pub(crate) struct Table {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    record: Record,
    /// Number of the last listing that contained the record.
    listing: u64,
    lost: Option<Lost>,
}

/// Loss of a record.
#[derive(Clone, Copy, Debug)]
struct Lost {
    since: Instant,
    /// Last time at which the node had a connection to the peer after the loss.
    reached: Option<Instant>,
}

/// Effect of a received record on the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Record of a new peer, or a changed record.
    News,
    /// Record without a change.
    Same,
    /// Record beyond [`MAX_RECORDS`], which is not kept.
    Ignored,
}

impl Table {
    /// Takes a record. `reaches` returns whether the node has a live connection to a member. Anybody on the segment may
    /// announce any id, so that a full table keeps the peers that the node reaches, and lets newcomers wait that it
    /// does not reach.
    pub(crate) fn hear(
        &mut self,
        instance: &str,
        record: Record,
        listing: u64,
        reaches: impl Fn(&PeerId) -> bool,
    ) -> Heard {
        let is_new = !self.known.contains_key(instance);
        let is_full = is_new && self.known.len() >= MAX_RECORDS && !self.make_room(&record.id, reaches);
        match self.known.get_mut(instance) {
            Some(known) => {
                let is_same = known.record == record;
                *known = Known { record, listing, lost: None };
                if is_same { Heard::Same } else { Heard::News }
            }
            None if is_full => Heard::Ignored,
            None => {
                self.known.insert(instance.to_owned(), Known { record, listing, lost: None });
                Heard::News
            }
        }
    }

    fn make_room(&mut self, newcomer: &PeerId, reaches: impl Fn(&PeerId) -> bool) -> bool {
        let unreached =
            || self.known.iter().find(|(_, known)| !reaches(&known.record.id)).map(|(name, _)| name.clone());
        let Some(unreached) = reaches(newcomer).then(unreached).flatten() else { return false };
        self.known.remove(&unreached).is_some()
    }

    /// Marks a record as lost. Returns whether the record was known and not lost.
    pub(crate) fn lose(&mut self, instance: &str, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(instance).filter(|known| known.lost.is_none()) else { return false };
        known.lost = Some(Lost { since: now, reached: None });
        true
    }

    /// Marks the records as lost that the finished listing did not contain. Returns their number.
    pub(crate) fn listed(&mut self, listing: u64, now: Instant) -> usize {
        let missing = |known: &&mut Known| known.lost.is_none() && known.listing < listing;
        let lost = Some(Lost { since: now, reached: None });
        self.known.values_mut().filter(missing).map(|known| known.lost = lost).count()
    }

    /// Drops peers with a lost record that the node does not reach, after [`SETTLE`], or [`RECONNECTING`] after the
    /// last connection. Returns their number.
    pub(crate) fn drop_gone(&mut self, now: Instant, reaches: impl Fn(&PeerId) -> bool) -> usize {
        let before = self.known.len();
        self.known.retain(|_, known| {
            let Some(lost) = &mut known.lost else { return true };
            if reaches(&known.record.id) {
                lost.reached = Some(now);
            }
            match lost.reached {
                Some(reached) => now < reached + RECONNECTING,
                None => now < lost.since + SETTLE,
            }
        });
        before - self.known.len()
    }

    /// Returns the instance names of a peer, without lost records.
    pub(crate) fn instances_of(&self, id: &PeerId) -> Vec<String> {
        let is_of = |(_, known): &(&String, &Known)| known.record.id == *id && known.lost.is_none();
        self.known.iter().filter(is_of).map(|(instance, _)| instance.clone()).collect()
    }

    /// Returns one peer for each id.
    pub(crate) fn peers(&self) -> impl Iterator<Item = Peer> {
        let mut by_id: BTreeMap<&PeerId, Vec<&Record>> = BTreeMap::new();
        for known in self.known.values() {
            by_id.entry(&known.record.id).or_default().push(&known.record);
        }
        by_id.into_values().filter_map(Record::peer_of)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use groupcache_core::discovery::{Address, Incarnation, NodeState};

    use super::*;

    fn record(id: &str, incarnation: u64) -> Record {
        Record {
            id: PeerId::new(id).unwrap(),
            incarnation: Incarnation(incarnation),
            state: NodeState::Ready,
            addresses: vec![Address::new("10.0.0.7:1").unwrap()],
            is_at_own_name: true,
        }
    }

    fn ids(table: &Table) -> Vec<String> {
        table.peers().filter_map(|peer| peer.id().map(PeerId::to_string)).collect()
    }

    fn reaches_none(_: &PeerId) -> bool {
        false
    }

    fn reaches_only(name: &'static str) -> impl Fn(&PeerId) -> bool {
        move |id| id.as_str() == name
    }

    /// Returns a table with `a` and `b` from the first listing, and the current time.
    fn table_of_two() -> (Table, Instant) {
        let mut table = Table::default();
        assert_eq!(table.hear("a.local.", record("a", 1), 1, |_| false), Heard::News);
        assert_eq!(table.hear("b.local.", record("b", 1), 1, |_| false), Heard::News);
        (table, Instant::now())
    }

    /// Checks that an unreachable peer is dropped `SETTLE` after its record was lost, and a loss counts once.
    #[tokio::test(start_paused = true)]
    async fn unreachable_peer_is_dropped_with_its_record() {
        let (mut table, now) = table_of_two();
        assert!(table.lose("a.local.", now) && !table.lose("a.local.", now) && !table.lose("unknown.local.", now));
        assert_eq!(table.drop_gone(now + SETTLE / 2, reaches_none), 0, "other losses may follow within this time");
        assert_eq!(table.drop_gone(now + SETTLE, reaches_none), 1);
        assert_eq!(ids(&table), ["b"]);
    }

    /// Checks that a connected peer stays without a record, and is dropped `RECONNECTING` after its connection ended.
    #[tokio::test(start_paused = true)]
    async fn reachable_peer_stays_without_a_record() {
        let (mut table, now) = table_of_two();
        table.lose("a.local.", now);
        for second in 0..600 {
            let now = now + Duration::from_secs(second);
            assert_eq!(table.drop_gone(now, reaches_only("a")), 0);
        }
        let down = now + Duration::from_secs(599);
        assert_eq!(table.drop_gone(down + RECONNECTING - Duration::from_millis(1), reaches_none), 0);
        assert_eq!(table.drop_gone(down + RECONNECTING, reaches_none), 1);
    }

    /// Checks that a record received again undoes its loss without counting as news.
    #[tokio::test(start_paused = true)]
    async fn returned_record_undoes_its_loss() {
        let (mut table, now) = table_of_two();
        table.lose("a.local.", now);
        assert!(table.instances_of(&PeerId::new("a").unwrap()).is_empty());
        assert_eq!(table.hear("a.local.", record("a", 1), 1, |_| false), Heard::Same);
        assert_eq!(table.drop_gone(now + SETTLE, reaches_none), 0);
        assert_eq!(table.instances_of(&PeerId::new("a").unwrap()), ["a.local."]);
        assert_eq!(table.hear("a.local.", record("a", 2), 1, |_| false), Heard::News);
    }

    #[tokio::test(start_paused = true)]
    async fn record_missing_from_a_later_listing_is_lost() {
        let (mut table, now) = table_of_two();
        table.hear("b.local.", record("b", 1), 2, |_| false);
        assert_eq!((table.listed(1, now), table.listed(2, now), table.listed(2, now)), (0, 1, 0));
        table.drop_gone(now + SETTLE, reaches_none);
        assert_eq!(ids(&table), ["b"]);
    }

    #[test]
    fn new_records_beyond_the_limit_are_ignored() {
        let mut table = Table::default();
        for n in 0..MAX_RECORDS {
            table.hear(&format!("p{n}"), record(&format!("p{n}"), 1), 1, |_| false);
        }
        assert_eq!(table.hear("one more", record("x", 1), 1, |_| false), Heard::Ignored);
        assert_eq!(
            table.hear("p0", record("p0", 2), 1, |_| false),
            Heard::News,
            "known peers may still change their records"
        );
    }

    /// Checks that inventions of an id at other names, with higher incarnations and dead addresses, hide neither the
    /// address nor the existence of the living node.
    #[test]
    fn invented_instances_do_not_hide_the_living_node() {
        let mut table = Table::default();
        table.hear("a.local.", record("a", 1), 1, |_| false);
        for n in 0..100_u16 {
            let addresses = (1..=8).map(|at| Address::new(format!("10.0.{n}.{at}:1")).unwrap()).collect();
            let invented = Record { addresses, is_at_own_name: false, ..record("a", u64::MAX) };
            assert_eq!(table.hear(&format!("a-{n}.local."), invented, 1, |_| false), Heard::News);
        }
        let peers: Vec<_> = table.peers().collect();
        assert!(matches!(&peers[..], [a] if a.addresses().len() == 8 && a.addresses()[0].as_str() == "10.0.0.7:1"));
    }

    /// Checks that inventions in a full table make room for peers that the node reaches, and never the other way round.
    #[test]
    fn full_table_keeps_the_peers_that_are_reached() {
        let mut table = Table::default();
        let is_real = |id: &PeerId| id.as_str().starts_with("real");
        let mut hear = |name: String| table.hear(&format!("{name}.local."), record(&name, 1), 1, is_real);
        for n in 0..MAX_RECORDS {
            assert_eq!(hear(format!("p{n}")), Heard::News);
        }
        for n in 0..100 {
            assert_eq!(hear(format!("real{n}")), Heard::News, "a peer with a connection is no invention");
        }
        for n in 0..3_000 {
            assert_eq!(hear(format!("another{n}")), Heard::Ignored);
        }
        assert_eq!(table.known.len(), MAX_RECORDS);
        assert_eq!(table.peers().filter(|peer| peer.id().is_some_and(is_real)).count(), 100);
    }
}
