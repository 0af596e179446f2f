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

impl Known {
    fn is_silent(&self, until: Instant, since: Instant) -> bool {
        until.duration_since(self.heard.max(since)) >= self.said.ttl
    }
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

    /// Forgets those who were not heard of for their time to live while everything was heard, from `since` until
    /// `until`: what was not heard at other times says nothing. Tells how many.
    pub(crate) fn expire(&mut self, until: Instant, since: Instant) -> usize {
        let before = self.known.len();
        self.known.retain(|_, known| !known.is_silent(until, since));
        before - self.known.len()
    }

    /// Whether there are some who would expire if everything had been heard until then.
    pub(crate) fn is_any_silent(&self, until: Instant, since: Instant) -> bool {
        self.known.values().any(|known| known.is_silent(until, since))
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
    use crate::path::Path;

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

    /// A node that announces itself every 6 s, and a peer that does every 2 s until it dies, over a server that is
    /// paused for some time: whether the node forgets the peer, and when. All in milliseconds.
    fn forgotten(pause: std::ops::Range<u64>, dies: u64) -> Option<u64> {
        let (mut table, start) = (Table::default(), Instant::now());
        let mut path = Path::new(Duration::from_secs(9), start);
        for ms in (0..60_000).step_by(50) {
            let now = start + Duration::from_millis(ms);
            let has_come = |said: &u64| ms == if pause.contains(said) { pause.end } else { *said };
            // What the server has held back comes all at once, the peer's words last; it is looked after each.
            let own = (0..=ms).step_by(6_000).filter(has_come).map(|_| true);
            let others = (300..=ms.min(dies)).step_by(2_000).filter(has_come).map(|_| false);
            for is_own in own.chain(others).map(Some).chain([None]) {
                match is_own {
                    Some(true) => _ = path.echo(now),
                    Some(false) => _ = table.hear(said("a", 1, "h:1"), now),
                    None => {}
                }
                path.turned_bad(now);
                if path.heard(now).is_some_and(|(since, until)| table.expire(until, since) > 0) {
                    return Some(ms);
                }
            }
        }
        assert_eq!(table.len(), 1);
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_pauses_costs_nobody_whose_pace_is_another() {
        for begin in (12_000..18_000).step_by(500) {
            for pause in [3_000, 7_000, 8_000, 8_500, 9_000, 10_000, 12_000, 20_000] {
                let pause = begin + 50..begin + 50 + pause;
                assert_eq!(forgotten(pause.clone(), u64::MAX), None, "{pause:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_dies_is_gone_with_the_first_echo_after_its_time_to_live() {
        // Heard of for the last time at 20.3 s; there are echoes at 24 s and at 30 s.
        assert_eq!(forgotten(0..0, 22_000), Some(30_150));
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
