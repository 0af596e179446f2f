use super::*;

const REMOTE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

fn sessions(max: usize) -> Sessions {
    Sessions::new(max, Arc::new(ReceivedBytes::new(1 << 20)))
}

fn admit(sessions: &Sessions, now_ms: u64) -> Arc<Session> {
    sessions.admit(REMOTE, now_ms).0
}

#[test]
fn connection_beyond_unproven_limit_evicts_oldest() {
    let sessions = sessions(4);
    let proven = admit(&sessions, 0);
    let _use = RequestGuard::begin(&proven);
    let first = admit(&sessions, 0);
    for _ in 1..MAX_UNPROVEN {
        assert_eq!(sessions.admit(REMOTE, 0).1.map(|s| s.number), None);
    }
    let (_, evicted) = sessions.admit(REMOTE, 0);
    assert_eq!(evicted.map(|s| s.number), Some(first.number));
    assert!(first.close_token().is_cancelled() && !proven.close_token().is_cancelled());
}

/// Checks that a flood from one address evicts neither a connection of another address nor a verified one.
#[test]
fn flood_from_one_address_evicts_only_its_own() {
    let sessions = sessions(4);
    // The addresses have the form that a listener for both families reports.
    let at = |host: u8| SocketAddr::from((std::net::Ipv4Addr::new(10, 0, 0, host).to_ipv6_mapped(), 1));
    let peer = sessions.admit(at(1), 0).0;
    let verified = admit(&sessions, 0);
    verified.authenticated_as(Caller::Verified { ids: None }, 1);
    let flood: Vec<_> = (0..3 * MAX_UNPROVEN).map(|_| sessions.admit(at(2), 0).0).collect();
    assert!(!peer.close_token().is_cancelled() && !verified.close_token().is_cancelled());
    let closed = flood.iter().filter(|session| session.close_token().is_cancelled()).count();
    assert_eq!(closed, 2 * MAX_UNPROVEN + 2, "the number of places is constant");
    let is_oldest_first = flood.is_sorted_by_key(|session| !session.close_token().is_cancelled());
    assert!(is_oldest_first);
}

/// Checks that each new connection has a place although the evicted ones have not ended yet.
#[test]
fn closing_connection_takes_no_place() {
    let sessions = sessions(2);
    let _all: Vec<_> = (0..2000).map(|_| admit(&sessions, 0)).collect();
}

/// Returns an address of another host for each number.
fn at(host: u32) -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + host), 1))
}

/// Admits a connection of another host that carries an accepted request.
fn proven(sessions: &Sessions, host: u32) -> (Arc<Session>, RequestGuard) {
    let session = sessions.admit(at(host), 0).0;
    let guard = RequestGuard::begin(&session);
    (session, guard)
}

/// Checks that the host which has taken all places loses its oldest connection to a host that comes, that a client
/// without a handshake ends no connection, and that a newcomer is refused where each host has one connection.
#[test]
fn host_with_most_connections_loses_its_oldest() {
    let sessions = sessions(4);
    let peer = proven(&sessions, 1);
    let greedy: Vec<_> = (0..3).map(|_| proven(&sessions, 2)).collect();
    let closed = |(session, _): &(Arc<Session>, RequestGuard)| session.close_token().is_cancelled();
    let (returned, evicted) = sessions.admit(at(3), 0);
    assert!(evicted.is_none() && !greedy.iter().any(closed), "the newcomer has proven nothing yet");
    let evicted = sessions.authenticated(&returned, Caller::Unknown, 0);
    assert_eq!(evicted.iter().map(|session| session.number).collect::<Vec<_>>(), [greedy[0].0.number]);
    let returned = (Arc::clone(&returned), RequestGuard::begin(&returned));
    assert_eq!(greedy.iter().map(closed).collect::<Vec<_>>(), [true, false, false]);
    let come = |host| {
        let session = sessions.admit(at(host), 0).0;
        sessions.authenticated(&session, Caller::Unknown, 0);
        let guard = RequestGuard::begin(&session);
        (session, guard)
    };
    let (fourth, fifth) = (come(4), come(5));
    assert!(closed(&greedy[1]) && !closed(&greedy[2]) && !closed(&fourth));
    assert!(closed(&fifth), "each host has one connection");
    assert!(!closed(&peer) && !closed(&returned));
}

/// Checks that each id of a certificate has eight connections whatever hosts they come from, that a further one ends the
/// oldest, and that another certificate has places of its own.
#[test]
fn each_id_of_a_certificate_has_eight_places() {
    for ids in [&["a"][..], &["a", "b", "c"]] {
        let sessions = sessions(100);
        let certificate = |ids: &[&str]| Caller::Verified { ids: Some(ids.iter().map(|id| (*id).into()).collect()) };
        let verified: Vec<_> = (0..30)
            .map(|host| {
                let (session, guard) = proven(&sessions, host % 10);
                let evicted = sessions.authenticated(&session, certificate(ids), 1);
                (session, guard, evicted.len())
            })
            .collect();
        let places = 8 * ids.len();
        for (at, (session, _, evicted)) in verified.iter().enumerate() {
            assert_eq!(*evicted, usize::from(at >= places), "at connection {at} of {ids:?}");
            assert_eq!(session.close_token().is_cancelled(), at < 30 - places, "connection {at} of {ids:?}");
        }
        let (other, _use) = proven(&sessions, 11);
        assert!(sessions.authenticated(&other, certificate(&["d"]), 1).is_empty());
        assert!(!other.close_token().is_cancelled());
    }
}

/// Checks that a node without descriptors, where all connections carry requests, lets go of one of the host with most.
#[test]
fn want_of_descriptors_ends_a_connection_of_the_busiest() {
    let sessions = sessions(100);
    let (peer, greedy) = (proven(&sessions, 1), [proven(&sessions, 2), proven(&sessions, 2)]);
    sessions.make_room();
    assert_eq!(greedy.each_ref().map(|(session, _)| session.close_token().is_cancelled()), [true, false]);
    sessions.make_room();
    assert!(!greedy[1].0.close_token().is_cancelled() && !peer.0.close_token().is_cancelled(), "each has one");
}

/// Checks that many small holders of one host lose their connections, and not the peer with the largest message.
#[test]
fn party_with_most_untaken_bytes_loses_connections() {
    let sessions = sessions(100);
    let (peer, greedy) = (proven(&sessions, 1), (0..50).map(|_| proven(&sessions, 2)).collect::<Vec<_>>());
    assert!(!peer.0.held().add(200 << 10));
    let mut closed = Vec::new();
    for round in 0..3 {
        for (session, _) in greedy.iter().filter(|(session, _)| !session.close_token().is_cancelled()) {
            if session.held().add(10 << 10) {
                closed.extend(sessions.relieve());
            }
            let held: usize = greedy.iter().map(|(session, _)| session.held().get()).sum();
            assert!(held + (200 << 10) <= 1 << 20, "{held} bytes in round {round}");
        }
    }
    assert!(!closed.is_empty() && closed.iter().all(|session| session.remote == at(2)));
    assert!(!peer.0.close_token().is_cancelled());
}

/// Checks four connections. The first sends bytes without a request and ends after 10 s; the second ends 10 s after
/// its last get. The third has a stream and is silent, and ends after 30 s; the fourth sends bytes and stays open.
#[test]
fn unused_or_silent_connection_is_closed() {
    let sessions = sessions(8);
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
    let sessions = sessions(8);
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
    let sessions = sessions(8);
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
    let sessions = sessions(100);
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
