//! Who has been heard of: pure, told what time it is.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::{Peer, PeerId};
use tokio::time::Instant;

use crate::record::Record;

/// Most records; a node takes no more peers from a provider.
const MAX_RECORDS: usize = 2_000;
/// Records that are lost together are judged together: this node may have lost its own with them.
const SETTLE: Duration = Duration::from_millis(100);
/// A peer whose record is gone and that is reached for all that is not dropped before its connection has been down
/// for this long: it may only be connecting anew.
const RECONNECTING: Duration = Duration::from_secs(3);

/// The records of the cluster, by the name of their instance.
#[derive(Debug, Default)]
pub(crate) struct Table {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    record: Record,
    /// The last listing that it was in.
    listing: u64,
    lost: Option<Lost>,
}

/// The record is no more.
#[derive(Clone, Copy, Debug)]
struct Lost {
    since: Instant,
    /// When the node had a connection to the peer, though.
    reached: Option<Instant>,
}

/// What a record has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A peer that is new, or says something new of itself.
    News,
    /// Nothing new: it is still there.
    Same,
    /// One record too many.
    Ignored,
}

impl Table {
    pub(crate) fn hear(&mut self, instance: &str, record: Record, listing: u64) -> Heard {
        let is_full = self.known.len() >= MAX_RECORDS;
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

    /// The record is gone. Tells whether it was known, and not known to be gone.
    pub(crate) fn lose(&mut self, instance: &str, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(instance).filter(|known| known.lost.is_none()) else { return false };
        known.lost = Some(Lost { since: now, reached: None });
        true
    }

    /// A listing is over: what was not in it is gone. Tells how many those are.
    pub(crate) fn listed(&mut self, listing: u64, now: Instant) -> usize {
        let missing = |known: &&mut Known| known.lost.is_none() && known.listing < listing;
        let lost = Some(Lost { since: now, reached: None });
        self.known.values_mut().filter(missing).map(|known| known.lost = lost).count()
    }

    /// Forgets those whose record was gone and that the node does not reach. Tells how many.
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

    /// The instances of a peer that are not known to be gone.
    pub(crate) fn instances_of(&self, id: &PeerId) -> Vec<String> {
        let is_of = |(_, known): &(&String, &Known)| known.record.id == *id && known.lost.is_none();
        self.known.iter().filter(is_of).map(|(instance, _)| instance.clone()).collect()
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = Peer> {
        self.known.values().map(|known| known.record.peer())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use groupcache_core::{Address, Incarnation, NodeState};

    use super::*;

    fn record(id: &str, life: u64) -> Record {
        Record {
            id: PeerId::new(id).unwrap(),
            incarnation: Incarnation(life),
            state: NodeState::Ready,
            zone: String::new(),
            addresses: vec![Address::new("10.0.0.7:1").unwrap()],
        }
    }

    fn ids(table: &Table) -> Vec<String> {
        table.peers().filter_map(|peer| peer.id().map(PeerId::to_string)).collect()
    }

    fn nobody(_: &PeerId) -> bool {
        false
    }

    fn only(name: &'static str) -> impl Fn(&PeerId) -> bool {
        move |id| id.as_str() == name
    }

    /// `a` and `b` in the first listing, at the time that is told.
    fn two() -> (Table, Instant) {
        let mut table = Table::default();
        assert_eq!(table.hear("a.local.", record("a", 1), 1), Heard::News);
        assert_eq!(table.hear("b.local.", record("b", 1), 1), Heard::News);
        (table, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_is_gone_takes_its_peer_with_it_when_nobody_reaches_that() {
        let (mut table, now) = two();
        assert!(table.lose("a.local.", now) && !table.lose("a.local.", now) && !table.lose("stranger.local.", now));
        assert_eq!(table.drop_gone(now + SETTLE / 2, nobody), 0, "what goes with it is waited for");
        assert_eq!(table.drop_gone(now + SETTLE, nobody), 1);
        assert_eq!(ids(&table), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_reached_stays_without_a_record_until_its_connection_is_down_for_good() {
        let (mut table, now) = two();
        table.lose("a.local.", now);
        for second in 0..600 {
            let now = now + Duration::from_secs(second);
            assert_eq!(table.drop_gone(now, only("a")), 0);
        }
        let down = now + Duration::from_secs(599);
        assert_eq!(table.drop_gone(down + RECONNECTING - Duration::from_millis(1), nobody), 0);
        assert_eq!(table.drop_gone(down + RECONNECTING, nobody), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_is_back_is_as_good_as_before() {
        let (mut table, now) = two();
        table.lose("a.local.", now);
        assert!(table.instances_of(&PeerId::new("a").unwrap()).is_empty());
        assert_eq!(table.hear("a.local.", record("a", 1), 1), Heard::Same);
        assert_eq!(table.drop_gone(now + SETTLE, nobody), 0);
        assert_eq!(table.instances_of(&PeerId::new("a").unwrap()), ["a.local."]);
        assert_eq!(table.hear("a.local.", record("a", 2), 1), Heard::News);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_from_a_later_listing_is_gone() {
        let (mut table, now) = two();
        table.hear("b.local.", record("b", 1), 2);
        assert_eq!((table.listed(1, now), table.listed(2, now), table.listed(2, now)), (0, 1, 0));
        table.drop_gone(now + SETTLE, nobody);
        assert_eq!(ids(&table), ["b"]);
    }

    #[test]
    fn records_have_a_limit() {
        let mut table = Table::default();
        for n in 0..MAX_RECORDS {
            table.hear(&format!("p{n}"), record(&format!("p{n}"), 1), 1);
        }
        assert_eq!(table.hear("one more", record("x", 1), 1), Heard::Ignored);
        assert_eq!(table.hear("p0", record("p0", 2), 1), Heard::News, "those who are known are heard");
    }
}
