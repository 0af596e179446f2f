//! Connections that peers have opened: who they are, whether they are of use, and when they are closed.
//!
//! A connection that has not carried an accepted request may be anybody's. Such connections have few places, the
//! newest takes that of the oldest, and their time is short; so one that never gets beyond its handshake costs a
//! place for seconds and keeps no peer out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    runtime::sync::Mutex,
    transport::handshake::{Caller, HandshakeError},
};

/// Connections that have not carried an accepted request yet.
pub(crate) const MAX_UNPROVEN: usize = 512;

/// How long a connection may carry nothing: before its first accepted request, whatever it says, and between unary gets.
const UNUSED: Duration = Duration::from_secs(10);

/// No byte for this long on a connection with a stream of frames: a peer pings every second. A client of the unary
/// service has nothing to say while it waits.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Connections that were made with certificates or keys that have been replaced end within this time, one by one.
pub(crate) const RETIRE_WITHIN: Duration = Duration::from_secs(30);

/// Those that are still there then are cut: what was replaced may have been stolen.
const RETIRE_LAST: Duration = Duration::from_secs(50);

/// How often it is looked whether all have ended.
const LOOK: Duration = Duration::from_millis(5);

/// One connection that a peer opened.
#[derive(Debug)]
pub(crate) struct Session {
    number: u64,
    pub(crate) remote: SocketAddr,
    /// Who it is and of which generation of certificates, from the end of the handshake on.
    proof: OnceLock<(Caller, u64)>,
    /// Accepted requests that are under way, and how many there have been.
    uses: AtomicUsize,
    begun_uses: AtomicU64,
    bytes: AtomicU64,
    /// Its stream of frames has begun: it is a peer's, and peers ping.
    has_stream: AtomicBool,
    cut: CancellationToken,
    retired: CancellationToken,
}

impl Session {
    /// Who is at the other end.
    pub(crate) fn caller(&self) -> Caller {
        self.proof.get().map_or(Caller::Unknown, |(caller, _)| caller.clone())
    }

    /// The handshake is over.
    pub(crate) fn authenticated_as(&self, caller: Caller, generation: u64) {
        let _ = self.proof.set((caller, generation));
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Closes it at once.
    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }

    /// Cancelled when it is to be closed at once.
    pub(crate) fn is_cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Cancelled when its streams should end, answers that are owed first.
    pub(crate) fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    /// Its one stream of frames begins; `false` when it has one already.
    pub(crate) fn takes_its_stream(&self) -> bool {
        !self.has_stream.swap(true, Relaxed)
    }

    /// It has carried an accepted request.
    fn is_proven(&self) -> bool {
        self.begun_uses.load(Relaxed) > 0
    }

    /// Who it is has been checked.
    fn is_verified(&self) -> bool {
        matches!(self.proof.get(), Some((Caller::Verified { .. }, _)))
    }

    /// Connections of one remote count together: its address, or the network of its IPv6 address.
    fn origin(&self) -> [u8; 8] {
        // A listener for both families sees IPv4 as a part of IPv6.
        let [a, b, c, d, e, f, g, h, ..] = match self.remote.ip().to_canonical() {
            // In the half that is looked at.
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                return [0, 0, 0, 0, a, b, c, d];
            }
            IpAddr::V6(v6) => v6.octets(),
        };
        [a, b, c, d, e, f, g, h]
    }
}

/// A request that was accepted; its connection is of use for as long as there is one.
#[derive(Debug)]
pub(crate) struct RequestGuard(Arc<Session>);

impl RequestGuard {
    pub(crate) fn begin(session: &Arc<Session>) -> Self {
        session.begun_uses.fetch_add(1, Relaxed);
        session.uses.fetch_add(1, Relaxed);
        Self(Arc::clone(session))
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.uses.fetch_sub(1, Relaxed);
    }
}

/// All connections that peers have open here.
#[derive(Debug)]
pub(crate) struct Sessions {
    open: Mutex<Open>,
    max: usize,
}

#[derive(Debug, Default)]
struct Open {
    sessions: BTreeMap<u64, Watch>,
    next: u64,
}

/// What was seen of a connection, and when.
#[derive(Debug)]
struct Watch {
    session: Arc<Session>,
    bytes: u64,
    heard_ms: u64,
    uses: u64,
    used_ms: u64,
    /// Since when it is one that replaced certificates let in.
    old_since_ms: Option<u64>,
}

impl Sessions {
    /// At most `max` that have proven to be of use.
    pub(crate) fn new(max: usize) -> Self {
        Self { open: Mutex::default(), max }
    }

    /// Waits until none is left.
    pub(crate) async fn all_gone(&self) {
        while !self.open.lock().sessions.is_empty() {
            sleep(LOOK).await;
        }
    }

    /// All of them, at once: the node has gone.
    pub(crate) fn cut_all(&self) {
        self.open.lock().sessions.values().for_each(|watch| watch.session.cut());
    }

    /// A place for a connection that was accepted, and the connection that had to go for it.
    pub(crate) fn admit(
        &self,
        remote: SocketAddr,
        now_ms: u64,
    ) -> Result<(Arc<Session>, Option<Arc<Session>>), HandshakeError> {
        let mut open = self.open.lock();
        if open.sessions.len() >= self.max && open.proven() >= self.max {
            return Err(HandshakeError::CrowdedOut);
        }
        let connections_evicted = if open.sessions.len() >= MAX_UNPROVEN { open.one_too_many() } else { None };
        open.next += 1;
        let session = Arc::new(Session {
            number: open.next,
            remote,
            proof: OnceLock::new(),
            uses: AtomicUsize::new(0),
            begun_uses: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            has_stream: AtomicBool::new(false),
            cut: CancellationToken::new(),
            retired: CancellationToken::new(),
        });
        let watch = Watch {
            session: Arc::clone(&session),
            bytes: 0,
            heard_ms: now_ms,
            uses: 0,
            used_ms: now_ms,
            old_since_ms: None,
        };
        open.sessions.insert(session.number, watch);
        if let Some(connections_evicted) = &connections_evicted {
            connections_evicted.cut();
        }
        Ok((session, connections_evicted))
    }

    /// Want of descriptors: the oldest connection that is of no use yet makes room.
    pub(crate) fn make_room(&self) {
        let open = self.open.lock();
        if let Some(oldest) = open.unproven().find(|session| !session.is_verified()).or_else(|| open.unproven().next())
        {
            oldest.cut();
        }
    }

    pub(crate) fn forget(&self, session: &Session) {
        self.open.lock().sessions.remove(&session.number);
    }

    /// Closes what is of no use, what is dead, and what was let in by certificates that have been replaced since.
    /// Called about once a second.
    pub(crate) fn sweep(&self, now_ms: u64, generation: u64) {
        let mut open = self.open.lock();
        for watch in open.sessions.values_mut() {
            watch.look(now_ms);
            let session = &watch.session;
            // Who reads a long answer slowly says how far it has come, after the get itself is over.
            let last_ms = if session.is_proven() { watch.used_ms.max(watch.heard_ms) } else { watch.used_ms };
            let is_unused = now_ms.saturating_sub(last_ms) >= ms(UNUSED);
            let is_dead = session.has_stream.load(Relaxed) && now_ms.saturating_sub(watch.heard_ms) >= ms(IDLE_LIMIT);
            if session.proof.get().is_some_and(|(_, of)| *of != generation) {
                watch.old_since_ms.get_or_insert(now_ms);
            }
            let old_for = watch.old_since_ms.map(|since_ms| now_ms.saturating_sub(since_ms));
            // Spread by its number, so that not everybody connects anew in one moment.
            if old_for.is_some_and(|old_for| old_for >= session.number.wrapping_mul(7919) % ms(RETIRE_WITHIN)) {
                session.retired.cancel();
            }
            if is_unused || is_dead || old_for.is_some_and(|old_for| old_for >= ms(RETIRE_LAST)) {
                session.cut();
            }
        }
    }
}

impl Open {
    /// How many have carried an accepted request.
    fn proven(&self) -> usize {
        self.sessions.values().filter(|watch| watch.session.is_proven()).count()
    }

    /// When there are as many without an accepted request as there may be: the one that should go. Whoever has the most
    /// of them loses the oldest, so that many from one place crowd out each other; those that are verified go last.
    fn one_too_many(&self) -> Option<Arc<Session>> {
        if self.unproven().count() < MAX_UNPROVEN {
            return None;
        }
        let mut of: BTreeMap<[u8; 8], (usize, &Arc<Session>)> = BTreeMap::new();
        for session in self.unproven().filter(|session| !session.is_verified()) {
            of.entry(session.origin()).or_insert((0, session)).0 += 1;
        }
        // The oldest of those that have the same number, too: numbers grow.
        let busiest = of.into_values().max_by_key(|(n, oldest)| (*n, std::cmp::Reverse(oldest.number)));
        busiest.map(|(_, oldest)| oldest).or_else(|| self.unproven().next()).cloned()
    }

    /// Those that have carried no accepted request, oldest first.
    fn unproven(&self) -> impl Iterator<Item = &Arc<Session>> {
        let sessions = self.sessions.values().map(|watch| &watch.session);
        sessions.filter(|session| !session.is_proven() && !session.cut.is_cancelled())
    }
}

impl Watch {
    fn look(&mut self, now_ms: u64) {
        let (bytes, uses) = (self.session.bytes.load(Relaxed), self.session.begun_uses.load(Relaxed));
        if bytes != self.bytes {
            (self.bytes, self.heard_ms) = (bytes, now_ms);
        }
        if uses != self.uses || self.session.uses.load(Relaxed) > 0 {
            (self.uses, self.used_ms) = (uses, now_ms);
        }
    }
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn admit(sessions: &Sessions, now_ms: u64) -> Arc<Session> {
        sessions.admit(REMOTE, now_ms).expect("a place").0
    }

    #[test]
    fn the_newest_takes_the_place_of_the_oldest_that_is_of_no_use_yet() {
        let sessions = Sessions::new(4);
        let proven = admit(&sessions, 0);
        let _use = RequestGuard::begin(&proven);
        let first = admit(&sessions, 0);
        for _ in 1..MAX_UNPROVEN {
            assert_eq!(sessions.admit(REMOTE, 0).expect("a place").1.map(|s| s.number), None);
        }
        let (_, connections_evicted) = sessions.admit(REMOTE, 0).expect("a place");
        assert_eq!(connections_evicted.map(|s| s.number), Some(first.number));
        assert!(first.is_cut().is_cancelled() && !proven.is_cut().is_cancelled());
    }

    #[test]
    fn many_from_one_place_crowd_out_each_other() {
        let sessions = Sessions::new(4);
        // As a listener for both families sees them.
        let at = |host: u8| SocketAddr::from((std::net::Ipv4Addr::new(10, 0, 0, host).to_ipv6_mapped(), 1));
        let peer = sessions.admit(at(1), 0).expect("a place").0;
        let verified = admit(&sessions, 0);
        verified.authenticated_as(Caller::Verified { ids: None }, 1);
        let flood: Vec<_> = (0..3 * MAX_UNPROVEN).map(|_| sessions.admit(at(2), 0).expect("a place").0).collect();
        assert!(!peer.is_cut().is_cancelled() && !verified.is_cut().is_cancelled());
        let cut = flood.iter().filter(|session| session.is_cut().is_cancelled()).count();
        assert_eq!(cut, 2 * MAX_UNPROVEN + 2, "places are what they were");
        let is_oldest_first = flood.is_sorted_by_key(|session| !session.is_cut().is_cancelled());
        assert!(is_oldest_first);
    }

    #[test]
    fn what_was_cut_and_is_not_gone_yet_takes_no_place() {
        let sessions = Sessions::new(2);
        let _all: Vec<_> = (0..2000).map(|_| admit(&sessions, 0)).collect();
    }

    #[test]
    fn connections_of_use_have_a_limit_of_their_own() {
        let sessions = Sessions::new(2);
        let _uses: Vec<_> = (0..2).map(|_| RequestGuard::begin(&admit(&sessions, 0))).collect();
        assert_eq!(sessions.admit(REMOTE, 0).map(drop), Err(HandshakeError::CrowdedOut));
    }

    #[test]
    fn what_is_of_no_use_or_dead_is_closed() {
        let sessions = Sessions::new(8);
        let (unused, unary, silent, alive) =
            (admit(&sessions, 0), admit(&sessions, 0), admit(&sessions, 0), admit(&sessions, 0));
        let _uses = [RequestGuard::begin(&silent), RequestGuard::begin(&alive)];
        assert!(silent.takes_its_stream() && alive.takes_its_stream());
        for now_ms in (0..=30_000).step_by(1000) {
            alive.read(1);
            unused.read(1); // however much it says
            if now_ms == 9_000 {
                drop(RequestGuard::begin(&unary)); // between two looks
                unary.read(1);
            }
            sessions.sweep(now_ms, 0);
            let cut = |session: &Session| session.is_cut().is_cancelled();
            let expected = (now_ms >= 10_000, now_ms >= 19_000, now_ms >= 30_000, false);
            assert_eq!((cut(&unused), cut(&unary), cut(&silent), cut(&alive)), expected, "after {now_ms} ms");
        }
    }

    #[test]
    fn a_client_that_says_nothing_while_it_waits_for_its_answer_is_not_dead() {
        let sessions = Sessions::new(8);
        let client = admit(&sessions, 0);
        let mut waits = Some(RequestGuard::begin(&client));
        for now_ms in (0..=80_000).step_by(1000) {
            if now_ms == 60_000 {
                waits = None;
            }
            sessions.sweep(now_ms, 0);
            assert_eq!(client.is_cut().is_cancelled(), now_ms >= 69_000, "after {now_ms} ms, {waits:?}");
        }
    }

    #[test]
    fn a_client_that_reads_its_answer_slowly_is_not_cut_off() {
        let sessions = Sessions::new(8);
        let client = admit(&sessions, 0);
        drop(RequestGuard::begin(&client));
        for now_ms in (0..=60_000).step_by(1000) {
            if now_ms <= 40_000 && now_ms % 5_000 == 0 {
                client.read(13); // it has room for more
            }
            sessions.sweep(now_ms, 0);
            assert_eq!(client.is_cut().is_cancelled(), now_ms >= 50_000, "after {now_ms} ms");
        }
    }

    #[test]
    fn what_old_certificates_let_in_retires_one_by_one_and_is_cut_in_the_end() {
        let sessions = Sessions::new(100);
        let all: Vec<_> = (0..20).map(|_| admit(&sessions, 0)).collect();
        let _uses: Vec<_> = all.iter().map(RequestGuard::begin).collect();
        all.iter().for_each(|session| session.authenticated_as(Caller::Unknown, 1));
        let mut seen = Vec::new();
        // Certificates change again and again, and that gives nobody more time.
        let generation = |now_ms: u64| if now_ms < 2000 { 1 } else { 2 + now_ms / 10_000 };
        for now_ms in (1000..=52_000).step_by(1000) {
            all.iter().for_each(|session| session.read(1));
            sessions.sweep(now_ms, generation(now_ms));
            seen.push(all.iter().filter(|session| session.retired().is_cancelled()).count());
            let cut = all.iter().filter(|session| session.is_cut().is_cancelled()).count();
            assert_eq!(cut, if now_ms >= 52_000 { 20 } else { 0 }, "after {now_ms} ms");
        }
        assert_eq!((seen[0], seen[31]), (0, 20), "all within half a minute of the change");
        assert!(seen[10] > 2 && seen[10] < 18, "and not at once: {seen:?}");
        let young = admit(&sessions, 52_000);
        young.authenticated_as(Caller::Unknown, generation(53_000));
        sessions.sweep(53_000, generation(53_000));
        assert!(!young.retired().is_cancelled() && !young.is_cut().is_cancelled());
    }
}
