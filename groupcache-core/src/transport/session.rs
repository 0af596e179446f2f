//! Connections that peers have opened: their identity, their use, and their end.
//!
//! A connection that has not carried an accepted request is unproven, and any client may have opened it. Unproven
//! connections have 512 places of their own and 10 s each, and a new one evicts the oldest of the address that has most
//! of them. A client that never completes its handshake therefore holds a place for seconds and keeps no peer out.

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

/// Maximum number of connections that have not carried an accepted request.
pub(crate) const MAX_UNPROVEN: usize = 512;

/// Time without a running request after which a connection is closed. Before the first accepted request, received bytes
/// do not extend it. Afterwards the time starts at the end of the last request or at the last received byte.
const UNUSED: Duration = Duration::from_secs(10);

/// Time without a received byte after which a connection with a stream of frames is closed, because a peer pings every
/// second. Connections without a stream are exempt, because a client of the unary service sends nothing while it waits.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Time within which connections that replaced credentials have let in retire one by one.
pub(crate) const RETIRE_WITHIN: Duration = Duration::from_secs(30);

/// Time after which connections that replaced credentials have let in are closed, because the replaced credentials may
/// have been stolen.
const CLOSE_OUTDATED_AFTER: Duration = Duration::from_secs(50);

/// Interval of the check whether all connections have ended.
const POLL: Duration = Duration::from_millis(5);

/// Connection that a peer opened.
#[derive(Debug)]
pub(crate) struct Session {
    number: u64,
    pub(crate) remote: SocketAddr,
    /// Identity of the peer and generation of the credentials that let it in; set at the end of the handshake.
    proof: OnceLock<(Caller, u64)>,
    /// Number of accepted requests that are running.
    uses: AtomicUsize,
    /// Number of accepted requests since the connection was opened.
    begun_uses: AtomicU64,
    /// Number of bytes received.
    bytes: AtomicU64,
    /// Whether the stream of frames has begun. Only peers have one, and peers ping.
    has_stream: AtomicBool,
    close: CancellationToken,
    retired: CancellationToken,
}

impl Session {
    /// Returns the identity of the peer, which is unknown before the end of the handshake.
    pub(crate) fn caller(&self) -> Caller {
        self.proof.get().map_or(Caller::Unknown, |(caller, _)| caller.clone())
    }

    /// Records the identity of the peer at the end of the handshake.
    pub(crate) fn authenticated_as(&self, caller: Caller, generation: u64) {
        let _ = self.proof.set((caller, generation));
    }

    /// Counts received bytes.
    pub(crate) fn read(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Closes the connection at once.
    pub(crate) fn close(&self) {
        self.close.cancel();
    }

    /// Returns the token that is cancelled when the connection must close at once.
    pub(crate) fn close_token(&self) -> &CancellationToken {
        &self.close
    }

    /// Returns the token that is cancelled when the streams must end after their pending responses.
    pub(crate) fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    /// Marks the stream of frames as begun. Returns `false` when the connection already has one.
    pub(crate) fn takes_its_stream(&self) -> bool {
        !self.has_stream.swap(true, Relaxed)
    }

    /// Returns whether the connection has carried an accepted request.
    fn is_proven(&self) -> bool {
        self.begun_uses.load(Relaxed) > 0
    }

    /// Returns whether the handshake has verified a certificate of the peer.
    fn is_verified(&self) -> bool {
        matches!(self.proof.get(), Some((Caller::Verified { .. }, _)))
    }

    /// Returns the address by which connections are counted together: the IPv4 address, or the /64 network of the IPv6
    /// address.
    fn origin(&self) -> [u8; 8] {
        // A listener for both families reports IPv4 addresses as IPv6 addresses.
        let [a, b, c, d, e, f, g, h, ..] = match self.remote.ip().to_canonical() {
            // IPv4 addresses are mapped into the half that is compared.
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                return [0, 0, 0, 0, a, b, c, d];
            }
            IpAddr::V6(v6) => v6.octets(),
        };
        [a, b, c, d, e, f, g, h]
    }
}

/// Guard of an accepted request; a connection with a guard is in use.
#[derive(Debug)]
pub(crate) struct RequestGuard(Arc<Session>);

impl RequestGuard {
    /// Counts a request as begun, and as running until the drop of the guard.
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

/// All open connections of peers to this node.
#[derive(Debug)]
pub(crate) struct Sessions {
    open: Mutex<Open>,
    max: usize,
}

#[derive(Debug, Default)]
struct Open {
    /// Connections by their number, so that the oldest comes first.
    sessions: BTreeMap<u64, Activity>,
    next: u64,
}

/// Activity of a connection, as the latest sweep observed it.
#[derive(Debug)]
struct Activity {
    session: Arc<Session>,
    bytes: u64,
    last_byte_ms: u64,
    uses: u64,
    last_use_ms: u64,
    /// Time at which a sweep first found that the credentials of the connection were replaced.
    outdated_since_ms: Option<u64>,
}

impl Sessions {
    /// Returns an empty set with room for `max` connections that have carried an accepted request.
    pub(crate) fn new(max: usize) -> Self {
        Self { open: Mutex::default(), max }
    }

    /// Waits until no connection is open.
    pub(crate) async fn wait_until_empty(&self) {
        while !self.open.lock().sessions.is_empty() {
            sleep(POLL).await;
        }
    }

    /// Closes all connections at once, because the node has stopped.
    pub(crate) fn close_all(&self) {
        self.open.lock().sessions.values().for_each(|activity| activity.session.close());
    }

    /// Gives a place to a new connection, and returns it with the connection that was evicted for it, if any.
    ///
    /// # Errors
    /// [`HandshakeError::CrowdedOut`] when the maximum number of connections is in use.
    pub(crate) fn admit(
        &self,
        remote: SocketAddr,
        now_ms: u64,
    ) -> Result<(Arc<Session>, Option<Arc<Session>>), HandshakeError> {
        let mut open = self.open.lock();
        if open.sessions.len() >= self.max && open.proven() >= self.max {
            return Err(HandshakeError::CrowdedOut);
        }
        let evicted = if open.sessions.len() >= MAX_UNPROVEN { open.eviction_candidate() } else { None };
        open.next += 1;
        let session = Arc::new(Session {
            number: open.next,
            remote,
            proof: OnceLock::new(),
            uses: AtomicUsize::new(0),
            begun_uses: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            has_stream: AtomicBool::new(false),
            close: CancellationToken::new(),
            retired: CancellationToken::new(),
        });
        let activity = Activity {
            session: Arc::clone(&session),
            bytes: 0,
            last_byte_ms: now_ms,
            uses: 0,
            last_use_ms: now_ms,
            outdated_since_ms: None,
        };
        open.sessions.insert(session.number, activity);
        if let Some(evicted) = &evicted {
            evicted.close();
        }
        Ok((session, evicted))
    }

    /// Closes the oldest connection without an accepted request, for want of file descriptors. Connections with a
    /// verified certificate go last.
    pub(crate) fn make_room(&self) {
        let open = self.open.lock();
        if let Some(oldest) = open.unproven().find(|session| !session.is_verified()).or_else(|| open.unproven().next())
        {
            oldest.close();
        }
    }

    /// Removes a connection that has ended.
    pub(crate) fn remove(&self, session: &Session) {
        self.open.lock().sessions.remove(&session.number);
    }

    /// Closes unused and silent connections, and retires connections that were let in by another generation of
    /// credentials. Called about once a second.
    pub(crate) fn sweep(&self, now_ms: u64, generation: u64) {
        let mut open = self.open.lock();
        for activity in open.sessions.values_mut() {
            activity.observe(now_ms);
            let session = &activity.session;
            // Received bytes count, because a client that reads a long response slowly sends window updates after the
            // request itself has ended.
            let last_ms = if session.is_proven() {
                activity.last_use_ms.max(activity.last_byte_ms)
            } else {
                activity.last_use_ms
            };
            let is_unused = now_ms.saturating_sub(last_ms) >= ms(UNUSED);
            let is_dead =
                session.has_stream.load(Relaxed) && now_ms.saturating_sub(activity.last_byte_ms) >= ms(IDLE_LIMIT);
            if session.proof.get().is_some_and(|(_, of)| *of != generation) {
                activity.outdated_since_ms.get_or_insert(now_ms);
            }
            let outdated_for = activity.outdated_since_ms.map(|since_ms| now_ms.saturating_sub(since_ms));
            // The number of the connection spreads the ends, so that peers do not all connect again in one moment.
            if outdated_for
                .is_some_and(|outdated_for| outdated_for >= session.number.wrapping_mul(7919) % ms(RETIRE_WITHIN))
            {
                session.retired.cancel();
            }
            if is_unused || is_dead || outdated_for.is_some_and(|outdated_for| outdated_for >= ms(CLOSE_OUTDATED_AFTER))
            {
                session.close();
            }
        }
    }
}

impl Open {
    /// Returns the number of connections that have carried an accepted request.
    fn proven(&self) -> usize {
        self.sessions.values().filter(|activity| activity.session.is_proven()).count()
    }

    /// Returns the connection to evict when the places of unproven connections are taken. The address with most
    /// unproven connections loses its oldest, so that many connections from one address evict each other. Connections
    /// with a verified certificate go last.
    fn eviction_candidate(&self) -> Option<Arc<Session>> {
        if self.unproven().count() < MAX_UNPROVEN {
            return None;
        }
        let mut origins: BTreeMap<[u8; 8], (usize, &Arc<Session>)> = BTreeMap::new();
        for session in self.unproven().filter(|session| !session.is_verified()) {
            origins.entry(session.origin()).or_insert((0, session)).0 += 1;
        }
        // Among addresses with equally many connections, the oldest connection goes; numbers grow with time.
        let busiest = origins.into_values().max_by_key(|(n, oldest)| (*n, std::cmp::Reverse(oldest.number)));
        busiest.map(|(_, oldest)| oldest).or_else(|| self.unproven().next()).cloned()
    }

    /// Returns the connections without an accepted request, oldest first. Connections that are closing do not count.
    fn unproven(&self) -> impl Iterator<Item = &Arc<Session>> {
        let sessions = self.sessions.values().map(|activity| &activity.session);
        sessions.filter(|session| !session.is_proven() && !session.close.is_cancelled())
    }
}

impl Activity {
    /// Notes the time of new bytes and of running or new requests.
    fn observe(&mut self, now_ms: u64) {
        let (bytes, uses) = (self.session.bytes.load(Relaxed), self.session.begun_uses.load(Relaxed));
        if bytes != self.bytes {
            (self.bytes, self.last_byte_ms) = (bytes, now_ms);
        }
        if uses != self.uses || self.session.uses.load(Relaxed) > 0 {
            (self.uses, self.last_use_ms) = (uses, now_ms);
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
        sessions.admit(REMOTE, now_ms).expect("the connection has a place").0
    }

    #[test]
    fn connection_beyond_unproven_limit_evicts_oldest() {
        let sessions = Sessions::new(4);
        let proven = admit(&sessions, 0);
        let _use = RequestGuard::begin(&proven);
        let first = admit(&sessions, 0);
        for _ in 1..MAX_UNPROVEN {
            assert_eq!(sessions.admit(REMOTE, 0).expect("the connection has a place").1.map(|s| s.number), None);
        }
        let (_, evicted) = sessions.admit(REMOTE, 0).expect("the connection has a place");
        assert_eq!(evicted.map(|s| s.number), Some(first.number));
        assert!(first.close_token().is_cancelled() && !proven.close_token().is_cancelled());
    }

    /// Checks that a flood from one address evicts neither a connection of another address nor a verified one.
    #[test]
    fn flood_from_one_address_evicts_only_its_own() {
        let sessions = Sessions::new(4);
        // The addresses have the form that a listener for both families reports.
        let at = |host: u8| SocketAddr::from((std::net::Ipv4Addr::new(10, 0, 0, host).to_ipv6_mapped(), 1));
        let peer = sessions.admit(at(1), 0).expect("the connection has a place").0;
        let verified = admit(&sessions, 0);
        verified.authenticated_as(Caller::Verified { ids: None }, 1);
        let flood: Vec<_> =
            (0..3 * MAX_UNPROVEN).map(|_| sessions.admit(at(2), 0).expect("the connection has a place").0).collect();
        assert!(!peer.close_token().is_cancelled() && !verified.close_token().is_cancelled());
        let closed = flood.iter().filter(|session| session.close_token().is_cancelled()).count();
        assert_eq!(closed, 2 * MAX_UNPROVEN + 2, "the number of places is constant");
        let is_oldest_first = flood.is_sorted_by_key(|session| !session.close_token().is_cancelled());
        assert!(is_oldest_first);
    }

    /// Checks that each new connection has a place although the evicted ones have not ended yet.
    #[test]
    fn closing_connection_takes_no_place() {
        let sessions = Sessions::new(2);
        let _all: Vec<_> = (0..2000).map(|_| admit(&sessions, 0)).collect();
    }

    #[test]
    fn connection_beyond_limit_of_proven_ones_is_refused() {
        let sessions = Sessions::new(2);
        let _uses: Vec<_> = (0..2).map(|_| RequestGuard::begin(&admit(&sessions, 0))).collect();
        assert_eq!(sessions.admit(REMOTE, 0).map(drop), Err(HandshakeError::CrowdedOut));
    }

    /// Checks four connections. The first sends bytes without a request and ends after 10 s; the second ends 10 s after
    /// its last get. The third has a stream and is silent, and ends after 30 s; the fourth sends bytes and stays open.
    #[test]
    fn unused_or_silent_connection_is_closed() {
        let sessions = Sessions::new(8);
        let (unused, unary, silent, alive) =
            (admit(&sessions, 0), admit(&sessions, 0), admit(&sessions, 0), admit(&sessions, 0));
        let _uses = [RequestGuard::begin(&silent), RequestGuard::begin(&alive)];
        assert!(silent.takes_its_stream() && alive.takes_its_stream());
        for now_ms in (0..=30_000).step_by(1000) {
            alive.read(1);
            unused.read(1); // bytes alone do not extend its time
            if now_ms == 9_000 {
                drop(RequestGuard::begin(&unary)); // ends between two sweeps
                unary.read(1);
            }
            sessions.sweep(now_ms, 0);
            let is_closed = |session: &Session| session.close_token().is_cancelled();
            let expected = (now_ms >= 10_000, now_ms >= 19_000, now_ms >= 30_000, false);
            assert_eq!(
                (is_closed(&unused), is_closed(&unary), is_closed(&silent), is_closed(&alive)),
                expected,
                "after {now_ms} ms"
            );
        }
    }

    /// Checks that a client may wait for a response for 60 s without sending, and is closed 10 s after the response.
    #[test]
    fn silent_client_with_running_request_stays_connected() {
        let sessions = Sessions::new(8);
        let client = admit(&sessions, 0);
        let mut waits = Some(RequestGuard::begin(&client));
        for now_ms in (0..=80_000).step_by(1000) {
            if now_ms == 60_000 {
                waits = None;
            }
            sessions.sweep(now_ms, 0);
            assert_eq!(client.close_token().is_cancelled(), now_ms >= 69_000, "after {now_ms} ms, {waits:?}");
        }
    }

    /// Checks that window updates keep a connection open for 40 s after the end of its only request.
    #[test]
    fn slowly_reading_client_stays_connected() {
        let sessions = Sessions::new(8);
        let client = admit(&sessions, 0);
        drop(RequestGuard::begin(&client));
        for now_ms in (0..=60_000).step_by(1000) {
            if now_ms <= 40_000 && now_ms % 5_000 == 0 {
                client.read(13); // a window update
            }
            sessions.sweep(now_ms, 0);
            assert_eq!(client.close_token().is_cancelled(), now_ms >= 50_000, "after {now_ms} ms");
        }
    }

    /// Checks that outdated connections retire one by one within 30 s and are closed after 50 s.
    #[test]
    fn outdated_connections_retire_one_by_one_then_close() {
        let sessions = Sessions::new(100);
        let all: Vec<_> = (0..20).map(|_| admit(&sessions, 0)).collect();
        let _uses: Vec<_> = all.iter().map(RequestGuard::begin).collect();
        all.iter().for_each(|session| session.authenticated_as(Caller::Unknown, 1));
        let mut retired = Vec::new();
        // Credentials change again and again, which gives no connection more time.
        let generation = |now_ms: u64| if now_ms < 2000 { 1 } else { 2 + now_ms / 10_000 };
        for now_ms in (1000..=52_000).step_by(1000) {
            all.iter().for_each(|session| session.read(1));
            sessions.sweep(now_ms, generation(now_ms));
            retired.push(all.iter().filter(|session| session.retired().is_cancelled()).count());
            let closed = all.iter().filter(|session| session.close_token().is_cancelled()).count();
            assert_eq!(closed, if now_ms >= 52_000 { 20 } else { 0 }, "after {now_ms} ms");
        }
        assert_eq!((retired[0], retired[31]), (0, 20), "all retire within 30 s of the change");
        assert!(retired[10] > 2 && retired[10] < 18, "the connections do not retire at once: {retired:?}");
        let young = admit(&sessions, 52_000);
        young.authenticated_as(Caller::Unknown, generation(53_000));
        sessions.sweep(53_000, generation(53_000));
        assert!(!young.retired().is_cancelled() && !young.close_token().is_cancelled());
    }
}
