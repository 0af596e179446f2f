//! Sessions: the connections that peers have opened, with their identities, their use and their ends.
//!
//! A connection that has not carried an accepted request may be anybody's. Such connections have few places, the newest
//! takes the place of the oldest, and their time is short. A connection that never gets beyond its handshake therefore
//! costs a place for seconds and keeps no peer out.

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

/// Maximum number of connections that have not carried an accepted request yet.
pub(crate) const MAX_UNPROVEN: usize = 512;

/// Time without an accepted request after which a connection is closed: before its first one, whatever arrives, and
/// between unary gets.
const UNUSED: Duration = Duration::from_secs(10);

/// Time without a byte after which a connection with a stream of frames is closed, because a peer pings every second. A
/// client of the unary service sends nothing while it waits.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Time within which connections of replaced certificates or keys retire, one by one.
pub(crate) const RETIRE_WITHIN: Duration = Duration::from_secs(30);

/// Time after which the rest of them is cut, because a replaced key may have been stolen.
const RETIRE_LAST: Duration = Duration::from_secs(50);

/// Pause between two checks whether all connections have ended.
const LOOK: Duration = Duration::from_millis(5);

/// A connection that a peer opened.
#[derive(Debug)]
pub(crate) struct Session {
    number: u64,
    pub(crate) remote: SocketAddr,
    /// Identity of the peer and generation of the certificates, from the end of the handshake on.
    proof: OnceLock<(Caller, u64)>,
    /// Number of accepted requests that run, and number of all accepted requests.
    uses: AtomicUsize,
    begun_uses: AtomicU64,
    bytes: AtomicU64,
    /// Whether the stream of frames has begun: the connection is a peer's, and peers ping.
    has_stream: AtomicBool,
    cut: CancellationToken,
    retired: CancellationToken,
}

impl Session {
    /// Returns the identity of the other end.
    pub(crate) fn caller(&self) -> Caller {
        self.proof.get().map_or(Caller::Unknown, |(caller, _)| caller.clone())
    }

    /// Records the identity that the handshake has proven.
    pub(crate) fn authenticated_as(&self, caller: Caller, generation: u64) {
        let _ = self.proof.set((caller, generation));
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Closes the connection at once.
    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }

    /// Returns the token that is cancelled when the connection must close at once.
    pub(crate) fn is_cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Returns the token that is cancelled when the streams should end, owed responses first.
    pub(crate) fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    /// Begins the one stream of frames; returns `false` when the connection has one already.
    pub(crate) fn takes_its_stream(&self) -> bool {
        !self.has_stream.swap(true, Relaxed)
    }

    /// Returns whether the connection has carried an accepted request.
    fn is_proven(&self) -> bool {
        self.begun_uses.load(Relaxed) > 0
    }

    /// Returns whether the identity of the other end is proven.
    fn is_verified(&self) -> bool {
        matches!(self.proof.get(), Some((Caller::Verified { .. }, _)))
    }

    /// Returns the origin by which connections are counted together: an IPv4 address, or the network of an IPv6 address.
    fn origin(&self) -> [u8; 8] {
        // A listener for both families sees IPv4 as a part of IPv6.
        let [a, b, c, d, e, f, g, h, ..] = match self.remote.ip().to_canonical() {
            // In the half that is returned.
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                return [0, 0, 0, 0, a, b, c, d];
            }
            IpAddr::V6(v6) => v6.octets(),
        };
        [a, b, c, d, e, f, g, h]
    }
}

/// Guard of an accepted request: a connection with one is in use.
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

/// All connections that peers have open to this node.
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

/// Observations of a connection, with their times.
#[derive(Debug)]
struct Watch {
    session: Arc<Session>,
    bytes: u64,
    read_ms: u64,
    uses: u64,
    used_ms: u64,
    /// Time since which the certificates of the connection are replaced ones.
    replaced_since_ms: Option<u64>,
}

impl Sessions {
    /// Makes an empty set for at most `max` connections that have carried an accepted request.
    pub(crate) fn new(max: usize) -> Self {
        Self { open: Mutex::default(), max }
    }

    /// Waits until no connection is left.
    pub(crate) async fn all_gone(&self) {
        while !self.open.lock().sessions.is_empty() {
            sleep(LOOK).await;
        }
    }

    /// Closes all connections at once, because the node has ended.
    pub(crate) fn cut_all(&self) {
        self.open.lock().sessions.values().for_each(|watch| watch.session.cut());
    }

    /// Admits an accepted connection, and returns its session and the session that was evicted for it, if any.
    pub(crate) fn admit(
        &self,
        remote: SocketAddr,
        now_ms: u64,
    ) -> Result<(Arc<Session>, Option<Arc<Session>>), HandshakeError> {
        let mut open = self.open.lock();
        if open.sessions.len() >= self.max && open.proven() >= self.max {
            return Err(HandshakeError::CrowdedOut);
        }
        let evicted = if open.sessions.len() >= MAX_UNPROVEN { open.one_too_many() } else { None };
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
            read_ms: now_ms,
            uses: 0,
            used_ms: now_ms,
            replaced_since_ms: None,
        };
        open.sessions.insert(session.number, watch);
        if let Some(evicted) = &evicted {
            evicted.cut();
        }
        Ok((session, evicted))
    }

    /// Cuts the oldest connection without an accepted request, because there is no descriptor left.
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

    /// Closes connections that are unused or dead, and those of certificates that were replaced since. Called about once a
    /// second.
    pub(crate) fn sweep(&self, now_ms: u64, generation: u64) {
        let mut open = self.open.lock();
        for watch in open.sessions.values_mut() {
            watch.look(now_ms);
            let session = &watch.session;
            // A client that reads a long response slowly still sends window updates after the get itself is over.
            let last_ms = if session.is_proven() { watch.used_ms.max(watch.read_ms) } else { watch.used_ms };
            let is_unused = now_ms.saturating_sub(last_ms) >= ms(UNUSED);
            let is_dead = session.has_stream.load(Relaxed) && now_ms.saturating_sub(watch.read_ms) >= ms(IDLE_LIMIT);
            if session.proof.get().is_some_and(|(_, of)| *of != generation) {
                watch.replaced_since_ms.get_or_insert(now_ms);
            }
            let old_for = watch.replaced_since_ms.map(|since_ms| now_ms.saturating_sub(since_ms));
            // Spread by the session's number, so that the peers do not all reconnect in one moment.
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
    /// Returns how many connections have carried an accepted request.
    fn proven(&self) -> usize {
        self.sessions.values().filter(|watch| watch.session.is_proven()).count()
    }

    /// Returns the connection to evict when the places without an accepted request are all taken. The origin with the most
    /// of them loses its oldest, so that many connections of one origin evict each other. Verified ones go last.
    fn one_too_many(&self) -> Option<Arc<Session>> {
        if self.unproven().count() < MAX_UNPROVEN {
            return None;
        }
        let mut of: BTreeMap<[u8; 8], (usize, &Arc<Session>)> = BTreeMap::new();
        for session in self.unproven().filter(|session| !session.is_verified()) {
            of.entry(session.origin()).or_insert((0, session)).0 += 1;
        }
        // Of equal origins, the one with the oldest connection, because numbers grow.
        let busiest = of.into_values().max_by_key(|(n, oldest)| (*n, std::cmp::Reverse(oldest.number)));
        busiest.map(|(_, oldest)| oldest).or_else(|| self.unproven().next()).cloned()
    }

    /// Returns the connections that have carried no accepted request, oldest first.
    fn unproven(&self) -> impl Iterator<Item = &Arc<Session>> {
        let sessions = self.sessions.values().map(|watch| &watch.session);
        sessions.filter(|session| !session.is_proven() && !session.cut.is_cancelled())
    }
}

impl Watch {
    fn look(&mut self, now_ms: u64) {
        let (bytes, uses) = (self.session.bytes.load(Relaxed), self.session.begun_uses.load(Relaxed));
        if bytes != self.bytes {
            (self.bytes, self.read_ms) = (bytes, now_ms);
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
    fn newest_connection_takes_the_place_of_the_oldest_unproven() {
        let sessions = Sessions::new(4);
        let proven = admit(&sessions, 0);
        let _use = RequestGuard::begin(&proven);
        let first = admit(&sessions, 0);
        for _ in 1..MAX_UNPROVEN {
            assert_eq!(sessions.admit(REMOTE, 0).expect("a place").1.map(|s| s.number), None);
        }
        let (_, evicted) = sessions.admit(REMOTE, 0).expect("a place");
        assert_eq!(evicted.map(|s| s.number), Some(first.number));
        assert!(first.is_cut().is_cancelled() && !proven.is_cut().is_cancelled());
    }

    #[test]
    fn connections_of_one_origin_evict_each_other() {
        let sessions = Sessions::new(4);
        // The addresses as a listener for both families sees them.
        let at = |host: u8| SocketAddr::from((std::net::Ipv4Addr::new(10, 0, 0, host).to_ipv6_mapped(), 1));
        let peer = sessions.admit(at(1), 0).expect("a place").0;
        let verified = admit(&sessions, 0);
        verified.authenticated_as(Caller::Verified { ids: None }, 1);
        let flood: Vec<_> = (0..3 * MAX_UNPROVEN).map(|_| sessions.admit(at(2), 0).expect("a place").0).collect();
        assert!(!peer.is_cut().is_cancelled() && !verified.is_cut().is_cancelled());
        let cut = flood.iter().filter(|session| session.is_cut().is_cancelled()).count();
        assert_eq!(cut, 2 * MAX_UNPROVEN + 2, "the number of places stays");
        let is_oldest_first = flood.is_sorted_by_key(|session| !session.is_cut().is_cancelled());
        assert!(is_oldest_first);
    }

    #[test]
    fn cut_connection_takes_no_place() {
        let sessions = Sessions::new(2);
        let _all: Vec<_> = (0..2000).map(|_| admit(&sessions, 0)).collect();
    }

    #[test]
    fn proven_connections_have_their_own_limit() {
        let sessions = Sessions::new(2);
        let _uses: Vec<_> = (0..2).map(|_| RequestGuard::begin(&admit(&sessions, 0))).collect();
        assert_eq!(sessions.admit(REMOTE, 0).map(drop), Err(HandshakeError::CrowdedOut));
    }

    #[test]
    fn unused_and_dead_connections_are_closed() {
        let sessions = Sessions::new(8);
        let (unused, unary, silent, alive) =
            (admit(&sessions, 0), admit(&sessions, 0), admit(&sessions, 0), admit(&sessions, 0));
        let _uses = [RequestGuard::begin(&silent), RequestGuard::begin(&alive)];
        assert!(silent.takes_its_stream() && alive.takes_its_stream());
        for now_ms in (0..=30_000).step_by(1000) {
            alive.read(1);
            unused.read(1); // bytes alone are no use
            if now_ms == 9_000 {
                drop(RequestGuard::begin(&unary)); // between two sweeps
                unary.read(1);
            }
            sessions.sweep(now_ms, 0);
            let cut = |session: &Session| session.is_cut().is_cancelled();
            let expected = (now_ms >= 10_000, now_ms >= 19_000, now_ms >= 30_000, false);
            assert_eq!((cut(&unused), cut(&unary), cut(&silent), cut(&alive)), expected, "after {now_ms} ms");
        }
    }

    #[test]
    fn silent_client_with_a_running_request_is_not_dead() {
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
    fn slow_reader_of_a_response_is_not_cut() {
        let sessions = Sessions::new(8);
        let client = admit(&sessions, 0);
        drop(RequestGuard::begin(&client));
        for now_ms in (0..=60_000).step_by(1000) {
            if now_ms <= 40_000 && now_ms % 5_000 == 0 {
                client.read(13); // a window update
            }
            sessions.sweep(now_ms, 0);
            assert_eq!(client.is_cut().is_cancelled(), now_ms >= 50_000, "after {now_ms} ms");
        }
    }

    #[test]
    fn connections_of_old_certificates_retire_one_by_one() {
        let sessions = Sessions::new(100);
        let all: Vec<_> = (0..20).map(|_| admit(&sessions, 0)).collect();
        let _uses: Vec<_> = all.iter().map(RequestGuard::begin).collect();
        all.iter().for_each(|session| session.authenticated_as(Caller::Unknown, 1));
        let mut seen = Vec::new();
        // Further changes of the certificates give no connection more time.
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
