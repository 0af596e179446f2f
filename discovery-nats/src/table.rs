//! Table of the peers that have sent messages. Pure, with the time as an argument.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::{
    PeerId,
    discovery::{Incarnation, Peer},
};
use tokio::time::Instant;

use crate::announcement::Announcement;

/// Maximum number of peers, which is also the most that a node takes from a provider.
const MAX_PEERS: usize = 2_000;

/// Peers of one cluster.
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

/// Effect of a message on the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Peer that is new, or that announces a change of itself.
    News,
    /// Peer that is known and unchanged.
    Same,
    /// Stale incarnation of a known peer, or a peer beyond the limit.
    Ignored,
}

impl Table {
    pub(crate) fn hear(&mut self, said: Announcement, now: Instant) -> Heard {
        let is_full = self.known.len() >= MAX_PEERS;
        match self.known.get_mut(&said.id) {
            Some(known) if said.incarnation < known.said.incarnation => Heard::Ignored,
            Some(known) => {
                // Another run of the provider with the same record is not a change.
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

    /// Removes a peer that says goodbye. Returns whether it was known, and not by a newer incarnation.
    pub(crate) fn goodbye(&mut self, id: &PeerId, incarnation: Incarnation) -> bool {
        let is_current = self.known.get(id).is_some_and(|known| known.said.incarnation <= incarnation);
        if is_current {
            self.known.remove(id);
        }
        is_current
    }

    /// Removes the peers that were silent for their time to live while all messages were received, from `since` until
    /// `until`. Silence at other times proves nothing. Returns the number of removed peers.
    pub(crate) fn expire(&mut self, until: Instant, since: Instant) -> usize {
        let before = self.known.len();
        self.known.retain(|_, known| !known.is_silent(until, since));
        before - self.known.len()
    }

    /// Returns whether a peer would expire if all messages had been received until then.
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

/// Time between two heartbeats, and the time to live that fits it.
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
    /// Returns the times for a heartbeat. A peer expires after four missed heartbeats.
    pub(crate) fn every(heartbeat: Duration) -> Self {
        Self { heartbeat, ttl: heartbeat * 4 }
    }
}

#[cfg(test)]
mod tests {
    use groupcache_core::discovery::{Address, NodeState};

    use super::*;
    use crate::path::Path;

    const TTL: Duration = Duration::from_secs(8);

    fn announcement(id: &str, incarnation: u64, address: &str) -> Announcement {
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
    async fn silent_peer_expires_after_its_time_to_live() {
        let (mut table, start) = (Table::default(), Instant::now());
        assert_eq!(table.hear(announcement("a", 1, "h:1"), start), Heard::News);
        assert_eq!(table.hear(announcement("b", 1, "h:2"), start), Heard::News);
        assert_eq!(table.hear(announcement("a", 1, "h:1"), start + TTL / 2), Heard::Same);
        assert_eq!(table.expire(start + TTL - Duration::from_millis(1), start), 0);
        assert_eq!(table.expire(start + TTL, start), 1);
        assert_eq!(ids(&table), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_while_nothing_is_received_expires_no_peer() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.hear(announcement("a", 1, "h:1"), start);
        let back = start + 10 * TTL;
        assert_eq!(
            table.expire(back + TTL - Duration::from_millis(1), back),
            0,
            "the time to live starts again when messages are received"
        );
        assert_eq!(table.expire(back + TTL, back), 1);
    }

    /// Returns the time at which a node expires a peer, if it does. The node announces itself every 6 s, and the peer
    /// every 2 s until it dies, over a server that is paused for some time. All times are in milliseconds.
    fn expiry_time(pause: std::ops::Range<u64>, dies: u64) -> Option<u64> {
        let (mut table, start) = (Table::default(), Instant::now());
        let mut path = Path::new(Duration::from_secs(9), start);
        for ms in (0..60_000).step_by(50) {
            let now = start + Duration::from_millis(ms);
            let has_come = |said: &u64| ms == if pause.contains(said) { pause.end } else { *said };
            // The messages that the server held back arrive all at once, those of the peer last. The table is checked
            // after each.
            let own = (0..=ms).step_by(6_000).filter(has_come).map(|_| true);
            let others = (300..=ms.min(dies)).step_by(2_000).filter(has_come).map(|_| false);
            for is_own in own.chain(others).map(Some).chain([None]) {
                match is_own {
                    Some(true) => _ = path.echo(now),
                    Some(false) => _ = table.hear(announcement("a", 1, "h:1"), now),
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

    /// Checks that a paused server costs no peer, although the node and the peer have different heartbeat intervals.
    #[tokio::test(start_paused = true)]
    async fn paused_server_expires_no_peer_of_another_pace() {
        for begin in (12_000..18_000).step_by(500) {
            for pause in [3_000, 7_000, 8_000, 8_500, 9_000, 10_000, 12_000, 20_000] {
                let pause = begin + 50..begin + 50 + pause;
                assert_eq!(expiry_time(pause.clone(), u64::MAX), None, "{pause:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dead_peer_expires_at_first_echo_after_time_to_live() {
        // The last message of the peer arrives at 20.3 s. Echoes arrive at 24 s and at 30 s.
        assert_eq!(expiry_time(0..0, 22_000), Some(30_150));
    }

    /// Checks that a stale incarnation neither updates a peer nor says goodbye for the newer incarnation.
    #[tokio::test(start_paused = true)]
    async fn stale_incarnation_changes_nothing_until_newer_expires() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.hear(announcement("a", 2, "h:2"), now);
        assert_eq!(table.hear(announcement("a", 1, "h:1"), now + TTL), Heard::Ignored);
        assert!(!table.goodbye(&PeerId::new("a").unwrap(), Incarnation(1)));
        assert_eq!(table.expire(now + TTL, now), 1, "the stale incarnation does not keep the peer alive");
        assert_eq!(
            table.hear(announcement("a", 1, "h:1"), now + TTL),
            Heard::News,
            "the older incarnation is accepted after the newer one has expired"
        );
        assert!(table.goodbye(&PeerId::new("a").unwrap(), Incarnation(1)));
        assert_eq!(table.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_beyond_the_limit_is_ignored() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..MAX_PEERS + 5 {
            table.hear(announcement(&format!("p{n}"), 1, "h:1"), now);
        }
        assert_eq!(table.len(), MAX_PEERS);
        assert_eq!(
            table.hear(announcement("p0", 2, "h:1"), now),
            Heard::News,
            "messages of known peers are still accepted"
        );
    }
}
