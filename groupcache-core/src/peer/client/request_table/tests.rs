use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::{
    identity::{Incarnation, PeerId},
    limits::VALUES_IN_FLIGHT,
    peer::client::receiver::Reply,
    protocol::chain::LoadChain,
};

/// A receiver that nobody waits for.
struct Nobody;

impl Reply for Nobody {
    fn reply(self: Arc<Self>, _: Outcome, _: Instant) {}
}

fn peer() -> Instance {
    Instance { id: PeerId::new("peer").unwrap(), incarnation: Incarnation(1) }
}

/// Returns a request that nobody waits for.
fn call(op: Op, deadline_ms: u64) -> Call {
    Call {
        op,
        group: 1,
        key: "key".into(),
        deadline_ms,
        rank: 0,
        chain: LoadChain::EMPTY,
        number: 0,
        known: Vec::new(),
        strikes: None,
        reply: Receiver::new(Arc::new(Nobody)),
    }
}

fn connected(now_ms: u64) -> RequestTable {
    let mut table = RequestTable::new(8, ByteBudget::new(VALUES_IN_FLIGHT));
    table.connected(peer(), now_ms);
    table.push(call(Op::Get, u64::MAX)).expect("room");
    table
}

/// Sweeps from one time to another, and returns whether the peer was silent at some of them.
fn is_silent_between(table: &mut RequestTable, from_ms: u64, to_ms: u64) -> bool {
    let silent = |now_ms| table.sweep(now_ms, false).may_be_silent && table.verdict(now_ms) == Some(End::Silent);
    (from_ms..to_ms).step_by(10).any(silent)
}

#[test]
fn unsent_ping_times_out_like_a_sent_one() {
    // No frame is filled any more, with or without the ping, as with a full window of HTTP/2.
    let mut table = connected(0);
    assert!(!is_silent_between(&mut table, 0, 1_050));
    assert!(is_silent_between(&mut table, 1_050, 1_150), "a second after the ping was due");
}

#[test]
fn bytes_of_an_incomplete_frame_end_the_silence() {
    let mut table = connected(0);
    for now_ms in (0..5_000).step_by(500) {
        table.heard(now_ms);
        assert!(!is_silent_between(&mut table, now_ms, now_ms + 500));
    }
    assert!(is_silent_between(&mut table, 5_000, 6_000), "silence ends the connection");
}

#[test]
fn pause_of_this_process_is_no_silence() {
    let mut table = connected(0);
    assert!(!is_silent_between(&mut table, 0, 200));
    assert!(!table.sweep(3_000, true).may_be_silent);
    assert_eq!(table.verdict(3_000), None, "the pause is no silence");
    assert!(!is_silent_between(&mut table, 3_010, 3_900), "its second begins anew");
    assert!(is_silent_between(&mut table, 3_900, 4_100));
}

#[test]
fn many_cancels_leave_in_many_frames() {
    let mut table = RequestTable::new(20_000, ByteBudget::new(VALUES_IN_FLIGHT));
    table.connected(peer(), 0);
    assert_eq!(table.push_all((0..20_000).map(|_| call(Op::Get, 10))).0, 20_000);
    let sent = |table: &mut RequestTable| {
        let (mut requests, mut cancels) = (0, 0);
        while table.has_due() {
            let mut frame = Outgoing::new(0);
            table.fill(&mut frame, 1024, 10);
            assert!(frame.requests() + frame.cancels() <= 1024);
            requests += frame.requests();
            cancels += frame.cancels();
        }
        (requests, cancels)
    };
    assert_eq!(sent(&mut table), (20_000, 0));
    assert_eq!(table.sweep(10, false).ended.len(), 20_000);
    assert_eq!(sent(&mut table), (0, 20_000));
}

#[test]
fn new_connection_ends_the_earlier_stream_and_verdict() {
    let mut table = connected(0);
    let (first, _) = table.begin_connection();
    table.waker = Some(Waker::noop().clone());
    table.dismiss();
    assert_eq!(table.verdict(0), Some(End::ClosedLocally));
    let (second, waker) = table.begin_connection();
    assert!(waker.is_some(), "the sleeping stream must be woken to end");
    assert!(!table.is_current(first) && table.is_current(second));
    assert_eq!(table.verdict(0), None);
}

/// Checks that a peer which talks and never reads has a short queue, whatever expires in it.
#[test]
fn queue_to_a_peer_that_reads_nothing_is_bounded() {
    let mut table = RequestTable::new(100, ByteBudget::new(VALUES_IN_FLIGHT));
    table.connected(peer(), 0);
    let mut longest = 0;
    for now_ms in (0..100_000).step_by(10) {
        table.heard(now_ms);
        assert_eq!(table.push_all((0..100).map(|_| call(Op::Get, now_ms + 10))).0, 100);
        assert_eq!(table.sweep(now_ms + 10, false).ended.len(), 100);
        longest = longest.max(table.queued());
    }
    assert!(longest <= 4_000, "{longest} items for 100 requests in flight");
}

/// Checks that a peer that reads no ping, or answers none, loses its connection after 10 s although its bytes arrive.
#[test]
fn talking_peer_without_pongs_is_dead_after_10_s() {
    for reads in [false, true] {
        let mut table = connected(0);
        let mut ended_ms = None;
        for now_ms in (0..20_000).step_by(10) {
            table.heard(now_ms);
            table.read(now_ms, 0);
            if reads {
                table.fill(&mut Outgoing::new(0), 1024, now_ms);
            }
            let is_swept = table.sweep(now_ms, false).may_be_silent;
            if is_swept && table.verdict(now_ms) == Some(End::Silent) && table.dismissal() == Some(End::Silent) {
                ended_ms = Some(now_ms);
                break;
            }
        }
        assert!(ended_ms.is_some_and(|at_ms| (10_000..=11_100).contains(&at_ms)), "reads {reads}: {ended_ms:?}");
    }
}

/// Checks that a peer which answers its pings keeps its connection, and that a pause of this process counts for none.
#[test]
fn pongs_and_pauses_of_this_process_keep_the_connection() {
    let (mut table, mut pings) = (connected(0), 0);
    for now_ms in (0..60_000).step_by(10) {
        let mut frame = Outgoing::new(0);
        table.fill(&mut frame, 1024, now_ms);
        if frame.has_ping() {
            pings += 1;
            table.read(now_ms, pings);
        }
        assert!(!table.sweep(now_ms, false).may_be_silent, "at {now_ms} ms");
    }
    let mut table = connected(0);
    table.fill(&mut Outgoing::new(0), 1024, 0);
    assert!(!table.sweep(60_000, true).may_be_silent);
    table.heard(60_010);
    assert_eq!((table.sweep(60_010, false).may_be_silent, table.dismissal()), (false, None), "the pause is its own");
}

/// Checks that a sweep looks at no slot but those of calls with passed deadlines, however many requests were in
/// flight before.
#[test]
fn sweep_costs_the_same_after_many_requests() {
    for before in [0, 8192] {
        let mut table = RequestTable::new(8192, ByteBudget::new(VALUES_IN_FLIGHT));
        table.connected(peer(), 0);
        table.push_all((0..before).map(|_| call(Op::Get, 10)));
        table.sweep(10, false);
        table.push(call(Op::Get, u64::MAX)).expect("room");
        table.fill(&mut Outgoing::new(0), 1024, 10); // lets go of the requests that have ended unsent
        let visits = table.slots().visits();
        (0..200).for_each(|_| assert!(table.sweep(20, false).ended.is_empty()));
        assert_eq!(table.slots().visits(), visits, "after {before} requests");
        table.push_all((0..3).map(|_| call(Op::Get, 30)));
        let visits = table.slots().visits();
        assert_eq!(table.sweep(30, false).ended.len(), 3);
        let looks = table.slots().visits() - visits;
        assert!(looks <= 4 * 3, "{looks} slots for three calls after {before} requests");
    }
}

/// Checks that the values of sets to a silent peer, and to many of them, are bounded by bytes, that gets have room
/// beside them, and that the end of the sets makes room.
#[test]
fn values_in_flight_are_bounded_by_bytes() {
    let values = ByteBudget::new(VALUES_IN_FLIGHT);
    let table = || {
        let mut table = RequestTable::new(8192, Arc::clone(&values));
        table.connected(peer(), 0);
        table
    };
    let value = Bytes::from(vec![0; 1 << 20]);
    let sets = |table: &mut RequestTable| {
        let sets = table.push_all((0..8192).map(|_| call(Op::Set(value.clone()), 1000)));
        (sets.0, sets.1)
    };
    let mut tables: Vec<_> = (0..10).map(|_| table()).collect();
    let taken: Vec<_> = tables.iter_mut().map(sets).collect();
    let full = Some(NotSent::Full);
    let expected = [32, 32, 32, 16, 8, 4, 2, 1, 1, 0].map(|sets| (sets, full));
    assert_eq!(taken, expected, "at most 32 MiB, and at most as much as is left for others");
    assert_eq!(tables[9].push_all((0..8192).map(|_| call(Op::Get, 1000))).0, 8192, "gets have room");
    tables[0].sweep(1000, false);
    assert_eq!(sets(&mut tables[8]), (16, full), "sets that have ended make room for others");
    tables.iter_mut().for_each(|table| drop(table.gone()));
    assert_eq!(values.used(), 0);
    let large = Bytes::from(vec![0; 64 << 20]);
    assert!(tables.remove(0).push(call(Op::Set(large.clone()), 1)).is_err(), "the link is gone");
    assert!(table().push(call(Op::Set(large), 1)).is_ok(), "the largest value is sent alone");
}
