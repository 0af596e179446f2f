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

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    runtime::sync::Mutex,
    transport::{
        handshake::Caller,
        received::{HeldBytes, ReceivedBytes},
    },
};

/// Maximum number of connections that have not carried an accepted request.
pub(crate) const MAX_UNPROVEN: usize = 512;

/// Maximum number of connections for each id that a certificate allows. A peer has one, and a second one while it is
/// replaced. Several nodes may share a certificate with several ids.
const PER_ID: usize = 8;

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
    /// Bytes of streams that nobody has taken.
    held: HeldBytes,
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

    /// Returns the bytes of streams that nobody has taken.
    pub(super) fn held(&self) -> &HeldBytes {
        &self.held
    }

    /// Returns whether the connection may be read. Connections without a stream of frames always may, because they end
    /// for the room of the others.
    pub(super) fn may_read(&self, now: Instant) -> bool {
        !self.has_stream.load(Relaxed) || self.held.may_grow(now)
    }

    /// Closes the connection at once. Its bytes count no more, so that no other connection ends for them.
    pub(crate) fn close(&self) {
        self.close.cancel();
        self.held.give_up();
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

    /// Returns the party whose connections are counted together.
    fn party(&self) -> Party<'_> {
        match self.proof.get() {
            Some((Caller::Verified { ids: Some(ids) }, _)) => Party::Ids(ids),
            _ => Party::Origin(self.origin()),
        }
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

/// Party that has connections: a proven identity, or otherwise an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Party<'a> {
    /// Ids that the certificate allows.
    Ids(&'a [String]),
    /// Address, as [`Session::origin`] has it.
    Origin([u8; 8]),
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
    received: Arc<ReceivedBytes>,
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
    /// Returns an empty set with room for `max` connections that have carried an accepted request, and for the bytes of
    /// `received`.
    pub(super) fn new(max: usize, received: Arc<ReceivedBytes>) -> Self {
        Self { open: Mutex::default(), max, received }
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
    pub(crate) fn admit(&self, remote: SocketAddr, now_ms: u64) -> (Arc<Session>, Option<Arc<Session>>) {
        let mut open = self.open.lock();
        let evicted = if open.sessions.len() >= MAX_UNPROVEN { open.eviction_candidate() } else { None };
        open.next += 1;
        let session = Arc::new(Session {
            number: open.next,
            remote,
            proof: OnceLock::new(),
            uses: AtomicUsize::new(0),
            begun_uses: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            held: HeldBytes::new(open.next, Arc::clone(&self.received)),
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
        (session, evicted)
    }

    /// Records the identity of the peer at the end of the handshake. Returns the connections that end for it: those of the
    /// same certificate beyond [`PER_ID`] for each of its ids, and while all places are in use, the oldest of the party that has most of
    /// them. If each party has one place, the new connection ends itself.
    pub(super) fn authenticated(&self, session: &Arc<Session>, caller: Caller, generation: u64) -> Vec<Arc<Session>> {
        session.authenticated_as(caller, generation);
        let open = self.open.lock();
        let mut evicted = Vec::new();
        if let Party::Ids(ids) = session.party() {
            let same: Vec<_> = open.living().filter(|other| other.party() == session.party()).collect();
            let excess = same.len().saturating_sub(PER_ID * ids.len());
            evicted.extend(same.into_iter().take(excess).cloned());
        }
        evicted.iter().for_each(|session| session.close());
        while open.sessions.len() >= self.max && open.proven().count() >= self.max {
            let oldest = open.oldest_of_busiest();
            let is_full = oldest.is_none();
            let ended = oldest.unwrap_or_else(|| Arc::clone(session));
            ended.close();
            evicted.push(ended);
            if is_full {
                break;
            }
        }
        evicted
    }

    /// Closes the oldest connection without an accepted request, for want of file descriptors. Connections with a
    /// verified certificate go last. Without any, the oldest of the party goes that has most connections.
    pub(crate) fn make_room(&self) {
        let open = self.open.lock();
        let unproven = open.unproven().find(|session| !session.is_verified()).or_else(|| open.unproven().next());
        if let Some(oldest) = unproven.cloned().or_else(|| open.oldest_of_busiest()) {
            oldest.close();
        }
    }

    /// Removes a connection that has ended.
    pub(crate) fn remove(&self, session: &Session) {
        self.open.lock().sessions.remove(&session.number);
        session.held.give_up();
    }

    /// Closes unused and silent connections, and retires connections that were let in by another generation of
    /// credentials. Called about once a second.
    pub(crate) fn sweep(&self, now_ms: u64, generation: u64) {
        let mut open = self.open.lock();
        for activity in open.sessions.values_mut() {
            activity.observe(now_ms);
            let session = &activity.session;
            session.held.give_up_strays();
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
    /// Returns the connections that have carried an accepted request, oldest first.
    fn proven(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.living().filter(|session| session.is_proven())
    }

    /// Returns the connections that are not closing, oldest first.
    fn living(&self) -> impl Iterator<Item = &Arc<Session>> {
        let sessions = self.sessions.values().map(|activity| &activity.session);
        sessions.filter(|session| !session.close.is_cancelled())
    }

    /// Returns the oldest connection of the party that has most of those that have carried an accepted request, if it has
    /// more than one. Among parties with equally many, the oldest connection goes.
    fn oldest_of_busiest(&self) -> Option<Arc<Session>> {
        let mut parties: BTreeMap<Party<'_>, (usize, &Arc<Session>)> = BTreeMap::new();
        for session in self.proven() {
            parties.entry(session.party()).or_insert((0, session)).0 += 1;
        }
        let busiest = parties.into_values().max_by_key(|(n, oldest)| (*n, std::cmp::Reverse(oldest.number)));
        busiest.filter(|(n, _)| *n > 1).map(|(_, oldest)| Arc::clone(oldest))
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
        self.living().filter(|session| !session.is_proven())
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

mod relief;
#[cfg(test)]
mod tests;
