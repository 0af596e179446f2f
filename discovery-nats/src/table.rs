//! Who has been heard of: pure, told what time it is.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::{Incarnation, Peer, PeerId};
use tokio::time::Instant;

use crate::announcement::Announcement;

/// Most peers; a node takes no more from a provider.
const MAX_PEERS: usize = 2_000;

/// The peers of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Table {
    known: BTreeMap<PeerId, Known>,
}

#[derive(Debug)]
struct Known {
    said: Announcement,
    heard: Instant,
}

/// What a message has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A peer that is new, or says something new of itself.
    News,
    /// Nothing new: it is still there.
    Same,
    /// An older life of a peer that is there, or one peer too many.
    Ignored,
}

impl Table {
    pub(crate) fn hear(&mut self, said: Announcement, now: Instant) -> Heard {
        let is_full = self.known.len() >= MAX_PEERS;
        match self.known.get_mut(&said.id) {
            Some(known) if said.incarnation < known.said.incarnation => Heard::Ignored,
            Some(known) => {
                // Another run of the provider is no news.
                let is_same = known.said.peer() == said.peer();
                *known = Known { said, heard: now };
                if is_same { Heard::Same } else { Heard::News }
            }
            None if is_full => Heard::Ignored,
            None => {
                self.known.insert(said.id.clone(), Known { said, heard: now });
                Heard::News
            }
        }
    }

    /// A goodbye; tells whether it was of a life that is known.
    pub(crate) fn goodbye(&mut self, id: &PeerId, incarnation: Incarnation) -> bool {
        let is_current = self.known.get(id).is_some_and(|known| known.said.incarnation <= incarnation);
        if is_current {
            self.known.remove(id);
        }
        is_current
    }

    /// Forgets those who have not been heard of for their time to live, counted from `since` at the earliest: what
    /// was not heard before then says nothing. Tells how many.
    pub(crate) fn expire(&mut self, now: Instant, since: Instant) -> usize {
        let before = self.known.len();
        self.known.retain(|_, known| now.duration_since(known.heard.max(since)) < known.said.ttl);
        before - self.known.len()
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = Peer> {
        self.known.values().map(|known| known.said.peer())
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

/// Times that fit each other: how often a node announces itself, and how long it is there after each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) heartbeat: Duration,
    pub(crate) ttl: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self::every(Duration::from_secs(2))
    }
}

impl Pace {
    /// Four missed heartbeats are the end of a peer.
    pub(crate) fn every(heartbeat: Duration) -> Self {
        Self { heartbeat, ttl: heartbeat * 4 }
    }
}

#[cfg(test)]
mod tests {
    use groupcache_core::{Address, NodeState};

    use super::*;

    const TTL: Duration = Duration::from_secs(8);

    fn said(id: &str, incarnation: u64, address: &str) -> Announcement {
        Announcement {
            id: PeerId::new(id).unwrap(),
            incarnation: Incarnation(incarnation),
            addresses: vec![Address::new(address).unwrap()],
            state: NodeState::Ready,
            zone: String::new(),
            weight: 1,
            ttl: TTL,
            from: "n".to_owned(),
        }
    }

    fn ids(table: &Table) -> Vec<String> {
        table.peers().filter_map(|peer| peer.id().map(PeerId::to_string)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_heard_of_for_its_time_to_live_is_gone() {
        let (mut table, start) = (Table::default(), Instant::now());
        assert_eq!(table.hear(said("a", 1, "h:1"), start), Heard::News);
        assert_eq!(table.hear(said("b", 1, "h:2"), start), Heard::News);
        assert_eq!(table.hear(said("a", 1, "h:1"), start + TTL / 2), Heard::Same);
        assert_eq!(table.expire(start + TTL - Duration::from_millis(1), start), 0);
        assert_eq!(table.expire(start + TTL, start), 1);
        assert_eq!(ids(&table), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_heard_while_nothing_was_heard_says_nothing() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.hear(said("a", 1, "h:1"), start);
        let back = start + 10 * TTL;
        assert_eq!(table.expire(back + TTL - Duration::from_millis(1), back), 0, "a time to live from then on");
        assert_eq!(table.expire(back + TTL, back), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_life_changes_nothing_and_says_no_goodbye_for_the_newer_one() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.hear(said("a", 2, "h:2"), now);
        assert_eq!(table.hear(said("a", 1, "h:1"), now + TTL), Heard::Ignored);
        assert!(!table.goodbye(&PeerId::new("a").unwrap(), Incarnation(1)));
        assert_eq!(table.expire(now + TTL, now), 1, "nor does the older one keep it alive");
        assert_eq!(table.hear(said("a", 1, "h:1"), now + TTL), Heard::News, "when it is gone the other may be there");
        assert!(table.goodbye(&PeerId::new("a").unwrap(), Incarnation(1)));
        assert_eq!(table.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn peers_have_a_limit() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..MAX_PEERS + 5 {
            table.hear(said(&format!("p{n}"), 1, "h:1"), now);
        }
        assert_eq!(table.len(), MAX_PEERS);
        assert_eq!(table.hear(said("p0", 2, "h:1"), now), Heard::News, "those who are known are heard");
    }
}
