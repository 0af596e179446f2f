//! Table of the peers that have sent messages. Pure, with the time as an argument.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::{
    PeerId,
    discovery::{Address, Incarnation, Peer},
};
use tokio::time::Instant;

use crate::announcement::Announcement;

/// Maximum number of peers: a node takes 2,000 from a provider, and one of them is the node itself.
const MAX_PEERS: usize = 1_999;
/// Maximum number of announcers of one id. A restarted node has two for some seconds, and the others are inventions.
const MAX_ANNOUNCERS: usize = 4;
/// Maximum number of addresses of one peer.
const MAX_ADDRESSES: usize = 8;

/// Peers of one cluster.
///
/// Any program that may publish can announce any id at any address, with any incarnation. Therefore the announcements of one
/// id are kept beside each other, by the run that made them, and a full table keeps the peers that the node reaches.
#[derive(Debug, Default)]
pub(crate) struct Table {
    known: BTreeMap<PeerId, Vec<Known>>,
}

/// Last announcement of one run.
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
    /// Stale incarnation of a known announcer, or a peer beyond the limit.
    Ignored,
}

impl Table {
    /// Takes an announcement. `reaches` returns whether the node has a live connection to a member.
    pub(crate) fn hear(&mut self, said: Announcement, now: Instant, reaches: impl Fn(&PeerId) -> bool) -> Heard {
        if !self.known.contains_key(&said.id) && self.known.len() >= MAX_PEERS && !self.make_room(&said.id, reaches) {
            return Heard::Ignored;
        }
        let of_id = self.known.entry(said.id.clone()).or_default();
        // Anybody may repeat the number of a run. A run that changes both its incarnation and its addresses counts as
        // another announcer, so that a false record hides no true one.
        let is_same_announcer = |known: &&mut Known| {
            known.said.from == said.from
                && (known.said.incarnation == said.incarnation || known.said.addresses == said.addresses)
        };
        let Some(known) = of_id.iter_mut().find(is_same_announcer) else {
            if of_id.len() >= MAX_ANNOUNCERS {
                let longest_silent = of_id.iter().enumerate().min_by_key(|(_, known)| known.heard).map(|(at, _)| at);
                longest_silent.map(|at| of_id.swap_remove(at));
            }
            of_id.push(Known { said, heard: now });
            return Heard::News;
        };
        if said.incarnation < known.said.incarnation {
            return Heard::Ignored;
        }
        let is_same = known.said.peer() == said.peer();
        *known = Known { said, heard: now };
        if is_same { Heard::Same } else { Heard::News }
    }

    /// Removes a peer that the node does not reach, for a newcomer that it does reach. A newcomer that it does not
    /// reach waits until a place is free.
    fn make_room(&mut self, newcomer: &PeerId, reaches: impl Fn(&PeerId) -> bool) -> bool {
        let unreached = || self.known.keys().find(|id| !reaches(id)).cloned();
        let Some(unreached) = reaches(newcomer).then(unreached).flatten() else { return false };
        self.known.remove(&unreached).is_some()
    }

    /// Removes the announcement of a run that says goodbye, or all announcements of the peer if no run is named.
    /// Returns whether there was one, and not of a newer incarnation.
    pub(crate) fn goodbye(&mut self, id: &PeerId, incarnation: Incarnation, from: Option<&str>) -> bool {
        let Some(of_id) = self.known.get_mut(id) else { return false };
        let before = of_id.len();
        of_id.retain(|known| known.said.incarnation > incarnation || from.is_some_and(|from| known.said.from != from));
        let is_removed = of_id.len() < before;
        self.known.retain(|_, of_id| !of_id.is_empty());
        is_removed
    }

    /// Removes the announcements that were silent for their time to live while all messages were received, from `since`
    /// until `until`. Silence at other times proves nothing. Returns the number of removed announcements.
    pub(crate) fn expire(&mut self, until: Instant, since: Instant) -> usize {
        let count = |table: &Self| table.known.values().map(Vec::len).sum::<usize>();
        let before = count(self);
        self.known.values_mut().for_each(|of_id| of_id.retain(|known| !known.is_silent(until, since)));
        self.known.retain(|_, of_id| !of_id.is_empty());
        before - count(self)
    }

    /// Returns whether a peer would expire if all messages had been received until then.
    pub(crate) fn is_any_silent(&self, until: Instant, since: Instant) -> bool {
        self.known.values().flatten().any(|known| known.is_silent(until, since))
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = Peer> {
        self.known.values().filter_map(|of_id| peer(of_id))
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

/// Returns one record of all announcements of an id. The first addresses of all of them come before their second ones,
/// so that no announcement pushes out another.
fn peer(of_id: &[Known]) -> Option<Peer> {
    let mut newest_first: Vec<_> = of_id.iter().map(|known| &known.said).collect();
    newest_first.sort_by_key(|said| std::cmp::Reverse(said.incarnation));
    let newest = *newest_first.first()?;
    let rank = |at: usize| newest_first.iter().filter_map(move |said| said.addresses.get(at));
    let mut addresses: Vec<Address> = Vec::new();
    for address in (0..MAX_ADDRESSES).flat_map(rank) {
        if addresses.len() < MAX_ADDRESSES && !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    let peer = Peer::member(newest.id.clone(), addresses);
    Some(peer.with_incarnation(newest.incarnation).with_state(newest.state))
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
    use groupcache_core::discovery::NodeState;

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

    fn of_run(from: &str, announcement: Announcement) -> Announcement {
        Announcement { from: from.to_owned(), ..announcement }
    }

    /// Takes an announcement at a node that reaches nobody.
    fn hear(table: &mut Table, said: Announcement, now: Instant) -> Heard {
        table.hear(said, now, |_| false)
    }

    fn ids(table: &Table) -> Vec<String> {
        table.peers().filter_map(|peer| peer.id().map(PeerId::to_string)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_peer_expires_after_its_time_to_live() {
        let (mut table, start) = (Table::default(), Instant::now());
        assert_eq!(hear(&mut table, announcement("a", 1, "h:1"), start), Heard::News);
        assert_eq!(hear(&mut table, announcement("b", 1, "h:2"), start), Heard::News);
        assert_eq!(hear(&mut table, announcement("a", 1, "h:1"), start + TTL / 2), Heard::Same);
        assert_eq!(table.expire(start + TTL - Duration::from_millis(1), start), 0);
        assert_eq!(table.expire(start + TTL, start), 1);
        assert_eq!(ids(&table), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_while_nothing_is_received_expires_no_peer() {
        let (mut table, start) = (Table::default(), Instant::now());
        hear(&mut table, announcement("a", 1, "h:1"), start);
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
                    Some(false) => _ = hear(&mut table, announcement("a", 1, "h:1"), now),
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
        hear(&mut table, announcement("a", 2, "h:1"), now);
        assert_eq!(hear(&mut table, announcement("a", 1, "h:1"), now + TTL), Heard::Ignored);
        assert!(!table.goodbye(&PeerId::new("a").unwrap(), Incarnation(1), Some("n")));
        assert_eq!(table.expire(now + TTL, now), 1, "the stale incarnation does not keep the peer alive");
        assert_eq!(
            hear(&mut table, announcement("a", 1, "h:1"), now + TTL),
            Heard::News,
            "the older incarnation is accepted after the newer one has expired"
        );
        assert!(table.goodbye(&PeerId::new("a").unwrap(), Incarnation(1), Some("n")));
        assert_eq!(table.len(), 0);
    }

    /// Checks that a record with the number of a living run, a higher incarnation and a dead address hides no true one.
    #[tokio::test(start_paused = true)]
    async fn record_of_a_copied_run_hides_no_true_one() {
        let (mut table, now) = (Table::default(), Instant::now());
        hear(&mut table, announcement("a", 7, "h:1"), now);
        hear(&mut table, announcement("a", u64::MAX, "dead:1"), now);
        assert_eq!(hear(&mut table, announcement("a", 7, "h:1"), now), Heard::Same, "the living run is heard");
        let listed: Vec<_> = table.peers().flat_map(|peer| peer.addresses().to_vec()).collect();
        assert_eq!(listed, ["dead:1", "h:1"].map(|address| Address::new(address).unwrap()));
    }

    /// Checks that an invention of an id, with the highest incarnation and eight dead addresses, hides neither the
    /// living run nor its end.
    #[tokio::test(start_paused = true)]
    async fn invented_incarnation_does_not_hide_the_living_run() {
        let (mut table, now) = (Table::default(), Instant::now());
        let mut invented = of_run("liar", announcement("a", u64::MAX, "dead:1"));
        invented.addresses = (1..=8).map(|port| Address::new(format!("dead:{port}")).unwrap()).collect();
        hear(&mut table, invented, now);
        assert_eq!(hear(&mut table, of_run("living", announcement("a", 7, "h:1")), now), Heard::News);
        let listed: Vec<_> = table.peers().flat_map(|peer| peer.addresses().to_vec()).collect();
        assert_eq!(listed.len(), 8);
        assert_eq!(listed[1], Address::new("h:1").unwrap(), "{listed:?}");

        let a = PeerId::new("a").unwrap();
        assert!(!table.goodbye(&a, Incarnation(u64::MAX), Some("another liar")), "only the run itself says goodbye");
        assert!(table.goodbye(&a, Incarnation(7), Some("living")));
        assert_eq!(table.expire(now + TTL, now), 1);
        assert_eq!(table.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn announcers_of_one_id_are_few_and_the_last_is_kept() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..1_000 {
            let said = of_run(&format!("run-{n}"), announcement("a", 1, &format!("h:{}", n + 1)));
            hear(&mut table, said, now + Duration::from_millis(n));
        }
        let listed: Vec<_> = table.peers().flat_map(|peer| peer.addresses().to_vec()).collect();
        assert_eq!(listed.len(), MAX_ANNOUNCERS);
        assert!(listed.contains(&Address::new("h:1000").unwrap()), "{listed:?}");
    }

    /// Checks that inventions in a full table make room for peers that the node reaches, and never the other way round.
    #[tokio::test(start_paused = true)]
    async fn full_table_keeps_the_peers_that_are_reached() {
        let (mut table, now) = (Table::default(), Instant::now());
        let is_real = |id: &PeerId| id.as_str().starts_with("real");
        for n in 0..MAX_PEERS {
            hear(&mut table, announcement(&format!("p{n}"), 1, "h:1"), now);
        }
        for n in 0..100 {
            let real = announcement(&format!("real{n}"), 1, "h:1");
            assert_eq!(table.hear(real, now, is_real), Heard::News, "a peer with a connection is no invention");
        }
        for n in 0..3_000 {
            let invented = announcement(&format!("another{n}"), 1, "h:1");
            assert_eq!(table.hear(invented, now, is_real), Heard::Ignored);
        }
        assert_eq!(table.len(), MAX_PEERS);
        assert_eq!(ids(&table).iter().filter(|id| id.starts_with("real")).count(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_beyond_the_limit_is_ignored() {
        let (mut table, now) = (Table::default(), Instant::now());
        for n in 0..MAX_PEERS + 5 {
            hear(&mut table, announcement(&format!("p{n}"), 1, "h:1"), now);
        }
        assert_eq!(table.len(), MAX_PEERS);
        assert_eq!(
            hear(&mut table, announcement("p0", 2, "h:1"), now),
            Heard::News,
            "messages of known peers are still accepted"
        );
    }
}
