//! Limits of a node: excess requests, connections and writes are refused with an answer, and other peers are
//! unaffected.

use std::time::Duration;

use crate::proto::{Frame, Hello, Request};
use crate::support::{
    Cluster, Gate, Loads, PATIENCE, eventually, gated, identity,
    raw::{DONE, OVERLOADED, Raw, VALUE, get, hello, statuses},
};
use futures_util::FutureExt;
use groupcache_core::{BoxError, Group, Limits, Node, bytes::Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

/// Loads a key as its own value.
async fn echo(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

/// Starts node `a` with a group in which loads wait at a gate.
async fn node(limit: impl FnOnce(&mut Limits)) -> (Node, Group<String>, Gate) {
    let (mut limits, gate) = (Limits::default(), Gate::default());
    limit(&mut limits);
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap();
    (node, group, gate)
}

impl Raw {
    /// Opens a connection as the peer `id`.
    async fn named(node: &Node, id: &str) -> Self {
        let hello = Hello { id: id.into(), ..hello() };
        Self::open(node.address(), Frame { hello: Some(hello), ..Frame::default() }).await.expect("greeted")
    }

    /// Sends `n` gets of keys with this prefix, which nobody has loaded.
    async fn send_gets(&mut self, prefix: &str, n: u64) {
        let requests = (0..n).map(|id| get(id, format!("{prefix}-{id}"))).collect();
        self.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    }

    /// Returns the statuses of the next `n` final responses, without the responses that announce a running load.
    async fn final_statuses(&mut self, n: usize) -> Vec<u32> {
        const PENDING: u32 = 8;
        let mut all = Vec::new();
        while all.len() < n {
            let answers = self.receive(1).await.expect("answers");
            all.extend(statuses(&answers).into_iter().filter(|status| *status != PENDING));
        }
        all
    }
}

/// Checks that requests of one peer beyond `max_serving_per_peer` are overloaded, that another peer has its own limit,
/// and that finished requests make room.
#[tokio::test]
async fn requests_above_max_serving_per_peer_are_overloaded() {
    let (node, _group, gate) = node(|limits| limits.max_serving_per_peer = 4).await;
    let (mut greedy, mut modest) = (Raw::named(&node, "b").await, Raw::named(&node, "c").await);
    greedy.send_gets("b", 10).await;
    assert_eq!(greedy.final_statuses(6).await, [OVERLOADED; 6]);
    modest.send_gets("c", 4).await;
    gate.begun(8).await;
    gate.open();
    assert_eq!(greedy.final_statuses(4).await, [VALUE; 4]);
    assert_eq!(modest.final_statuses(4).await, [VALUE; 4], "another peer has its own limit");
    greedy.send_gets("again", 4).await;
    assert_eq!(greedy.final_statuses(4).await, [VALUE; 4], "finished requests make room");
}

/// Loads a value of as many bytes as the key begins with.
async fn sized(key: &str) -> Result<Bytes, BoxError> {
    let bytes = key.split('-').next().ok_or("no number")?.parse()?;
    Ok(vec![b'v'; bytes].into())
}

/// Checks that a peer that reads its responses receives all of them, although their bytes exceed the limit of the
/// queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_peer_receives_responses_of_any_total_size() {
    let mut limits = Limits::default();
    limits.max_value_bytes = 16 << 20;
    let cluster = Cluster::start_with(2, limits).await;
    let groups = cluster.group(|_, node| node.group::<Bytes>("data").capacity_bytes(1 << 30).loader(sized)).await;
    // The single value of the first case, and all values of each other case together, exceed the queue limit of 8 MiB.
    for (bytes, n) in [(9 << 20, 1), (1 << 20, 12), (200 << 10, 60)] {
        let keys: Vec<_> =
            (0..).map(|n| format!("{bytes}-{n}")).filter(|key| cluster.owner(&groups, key) == 1).take(n).collect();
        for what in ["loaded", "from memory"] {
            let values = timeout(PATIENCE, groups[0].get_many(&keys)).await.expect("in time");
            let wrong: Vec<_> = values.iter().filter(|v| !v.as_ref().is_ok_and(|v| v.len() == bytes)).collect();
            assert!(wrong.is_empty(), "{n} values of {bytes} bytes, {what}: {} wrong, {:?}", wrong.len(), wrong[0]);
        }
    }
    cluster.shutdown().await;
}

/// Loads a value of as many bytes as the key begins with, once the gate is open.
async fn sized_behind_gate(gate: &Gate, key: &str) -> Result<Bytes, BoxError> {
    gate.loads.begin(key);
    gate.pass().await;
    sized(key).await
}

/// Checks that a peer receives the values of 100 loads that end in one moment, although they exceed the limit of the
/// queue (20 MB, limit 1 MiB).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_simultaneous_loads_all_reach_the_peer() {
    let mut limits = Limits::default();
    limits.max_queued_answer_bytes = 1 << 20; // four times as much for responses of loads that have just ended
    let (cluster, gate) = (Cluster::start_with(2, limits).await, Gate::default());
    let group =
        |node: &Node| node.group::<Bytes>("data").capacity_bytes(1 << 30).loader_with(gate.clone(), sized_behind_gate);
    let groups = cluster.group(|_, node| group(node)).await;
    let bytes = 200 << 10;
    let keys = (0..).map(|n| format!("{bytes}-{n}")).filter(|key| cluster.owner(&groups, key) == 1);
    let keys: Vec<_> = keys.take(100).collect();
    let values = tokio::spawn({
        let group = groups[0].clone();
        async move { timeout(PATIENCE, group.get_many(&keys)).await.expect("in time") }
    });
    gate.begun(100).await;
    gate.open();
    let values = values.await.unwrap();
    let wrong: Vec<_> = values.iter().filter(|value| !value.as_ref().is_ok_and(|v| v.len() == bytes)).collect();
    assert!(wrong.is_empty(), "{} wrong: {:?}", wrong.len(), wrong[0]);
    assert_eq!(gate.loads.total(), 100);
    cluster.shutdown().await;
}

/// Checks that gets of a peer that reads nothing are overloaded once the queue is full, and that its remove is still
/// carried out and answered.
#[tokio::test]
async fn peer_not_reading_is_overloaded_but_its_writes_apply() {
    let mut limits = Limits::default();
    limits.max_queued_answer_bytes = 1 << 20;
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let group = node.group::<Bytes>("data").capacity_bytes(1 << 30).loader(sized).build().unwrap();
    let keys: Vec<_> = (0..40).map(|n| format!("{}-{n}", 200 << 10)).collect();
    assert!(group.get_many(&keys).await.iter().all(Result::is_ok));
    let mut unread = Raw::named(&node, "b").await;
    let gets = keys.iter().zip(0..).map(|(key, id)| get(id, key));
    let remove = Request { op: 2, ..get(40, &keys[0]) };
    unread.frames.send(Frame { requests: gets.chain([remove]).collect(), ..Frame::default() }).await.unwrap();
    eventually("the remove is carried out", || group.inspect().entries() == 39).await;
    let answers = statuses(&unread.receive(41).await.unwrap());
    let values = answers.iter().filter(|status| **status == VALUE).count();
    assert!((5..40).contains(&values), "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == OVERLOADED).count(), 40 - values);
    assert_eq!(answers[40], DONE);
    assert!(group.get(&keys[0]).await.is_ok());
}

/// Checks that a set of a peer at `max_serving_per_peer` is overloaded and still drops the old value, and that it
/// succeeds once there is room.
#[tokio::test]
async fn set_counts_towards_max_serving_per_peer() {
    let (node, group, gate) = node(|limits| limits.max_serving_per_peer = 4).await;
    group.set("old", "old").await.unwrap().log_pending();
    let mut greedy = Raw::named(&node, "b").await;
    greedy.send_gets("b", 4).await;
    gate.begun(4).await;
    let set = Request { op: 1, value: "new".into(), ..get(9, "old") };
    greedy.frames.send(Frame { requests: vec![set.clone()], ..Frame::default() }).await.unwrap();
    assert_eq!(greedy.final_statuses(1).await, [OVERLOADED]);
    assert_eq!(group.inspect().entries(), 0, "the new value is refused, and the old value is dropped");
    gate.open();
    assert_eq!(greedy.final_statuses(4).await, [VALUE; 4]);
    assert_eq!(statuses(&greedy.ask(vec![set]).await), [DONE]);
    assert_eq!(group.get("old").await.unwrap(), "new");
}

/// Checks that requests of all peers beyond `max_serving` are overloaded, that callers of the node itself do not count,
/// and that finished requests make room.
#[tokio::test]
async fn requests_above_max_serving_are_overloaded() {
    let (node, group, gate) = node(|limits| limits.max_serving = 6).await;
    let (mut b, mut c) = (Raw::named(&node, "b").await, Raw::named(&node, "c").await);
    b.send_gets("b", 4).await;
    gate.begun(4).await;
    c.send_gets("c", 4).await;
    assert_eq!(c.final_statuses(2).await, [OVERLOADED; 2]);
    gate.begun(6).await;
    let own = tokio::spawn(async move { group.get("own").await });
    gate.begun(7).await;
    gate.open();
    assert!(own.await.unwrap().is_ok(), "local callers do not count");
    assert_eq!((b.final_statuses(4).await, c.final_statuses(2).await), (vec![VALUE; 4], vec![VALUE; 2]));
    c.send_gets("again", 4).await;
    assert_eq!(c.final_statuses(4).await, [VALUE; 4], "finished requests make room");
}

/// Checks that gets of keys of other nodes beyond `max_in_flight` are overloaded at the local node, and that finished
/// requests make room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetches_above_max_in_flight_are_overloaded() {
    let mut limits = Limits::default();
    limits.max_in_flight = 10;
    let cluster = Cluster::start_with(3, limits).await;
    let gate = Gate::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    let (node, group) = (&cluster.nodes[0], &groups[0]);
    let mut of_others = (0..).map(|n| format!("key-{n}")).filter(|key| group.inspect().owner_of(key) != node.id());
    let mut gets = JoinSet::new();
    for key in of_others.by_ref().take(10) {
        let group = group.clone();
        gets.spawn(async move { group.get(&key).await });
    }
    gate.begun(10).await;
    let mut refused = None;
    eventually("the requests are counted", || {
        // A get that is not refused waits at the gate, and the test does not wait for it.
        let (group, key) = (group.clone(), of_others.next().unwrap());
        refused = async move { group.get(&key).await }.now_or_never();
        refused.is_some()
    })
    .await;
    let refused = refused.unwrap().expect_err("refused");
    assert!(refused.is_overloaded(), "{refused:?}");
    gate.open();
    for outcome in gets.join_all().await {
        outcome.expect("gets within the limit are served");
    }
    eventually("no requests are in flight", || node.in_flight() == 0).await;
    tokio::time::sleep(Duration::from_millis(50)).await; // counted every 10 ms
    let key = of_others.next().unwrap();
    assert_eq!(group.get(&key).await.unwrap(), format!("{key} by load 1"));
    cluster.shutdown().await;
}

/// Checks that writes beyond `max_invalidations_per_second` of a peer name this peer as pending, that the connection
/// stays, and that a write is complete a second later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_above_the_rate_limit_leave_the_peer_pending() {
    const LIMIT: u32 = 20;
    // Node `a` has the limit, and node `b` writes.
    let cluster = Cluster::start_each(2, |at, builder| {
        let mut limits = Limits::default();
        if at == 0 {
            limits.max_invalidations_per_second = LIMIT;
        }
        builder.limits(limits)
    })
    .await;
    let loads = Loads::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(loads.clone(), echo))
        .await;
    let mut writes = JoinSet::new();
    for n in 0..200 {
        let group = groups[1].clone();
        writes.spawn(async move {
            match n % 2 {
                0 => group.remove(&format!("key-{n}")).await,
                _ => group.set(&format!("key-{n}"), "new").await,
            }
        });
    }
    let written: Vec<_> =
        writes.join_all().await.into_iter().map(|written| written.expect("the write is carried out")).collect();
    let a = cluster.nodes[0].id();
    for written in &written {
        assert!(written.is_complete() || written.pending() == [a.clone()], "{written:?}");
        timeout(crate::support::PATIENCE, written.settled()).await.expect("a asks for the writes that it has refused");
    }
    assert!(cluster.nodes[0].stats().pulled_writes >= 50, "a refuses most of them at first");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(groups[1].remove("key").await.unwrap().is_complete(), "there is a new allowance after a second");
    assert_eq!(cluster.nodes[1].stats().lost, 0, "the connection stays");
    cluster.shutdown().await;
}

/// Checks that removes of a peer beyond `max_invalidations_per_second` are overloaded and drop nothing, and that gets
/// do not count.
#[tokio::test]
async fn invalidations_above_the_limit_change_nothing() {
    let (node, group, gate) = node(|limits| limits.max_invalidations_per_second = 5).await;
    gate.open();
    for n in 0..10 {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    let mut raw = Raw::greeted(node.address()).await;
    let removes = (0..10).map(|n| Request { op: 2, ..get(n, format!("key-{n}")) }).collect();
    let answers = statuses(&raw.ask(removes).await);
    assert_eq!(answers, [[DONE; 5], [OVERLOADED; 5]].concat());
    assert_eq!(group.inspect().entries(), 5);
    raw.send_gets("key", 10).await;
    assert_eq!(raw.final_statuses(10).await, [VALUE; 10], "gets do not count as invalidations");
}

/// Checks that of the connections of one address beyond `max_connections` the oldest is closed and counted, that the
/// later ones work, and that a client that sends nothing ends none.
#[tokio::test]
async fn connections_above_the_limit_end_the_oldest() {
    let (node, _group, gate) = node(|limits| limits.max_connections = 2).await;
    gate.open();
    let (mut b, mut c) = (Raw::named(&node, "b").await, Raw::named(&node, "c").await);
    let _silent = TcpStream::connect(node.address()).await.unwrap();
    b.send_gets("b", 10).await;
    assert_eq!(b.final_statuses(10).await, [VALUE; 10]);
    for n in 1..=20 {
        let mut next = Raw::named(&node, "d").await;
        assert!(timeout(PATIENCE, b.answers.message()).await.expect("the oldest is closed").is_err());
        assert_eq!(node.stats().connections_evicted, n);
        for open in [&mut c, &mut next] {
            open.send_gets("key", 10).await;
            assert_eq!(open.final_statuses(10).await, [VALUE; 10]);
        }
        (b, c) = (c, next);
    }
}

/// Checks that a connection that carries HTTP/2 pings but no accepted request is closed after more than 5 s, and that a
/// quiet peer with a stream is not.
#[tokio::test]
async fn connection_without_accepted_request_is_closed() {
    let (node, _group, gate) = node(|_| {}).await;
    gate.open();
    let mut peer = Raw::named(&node, "b").await;
    let began = Instant::now();
    let mut talker = TcpStream::connect(node.address()).await.unwrap();
    talker.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut from, mut to) = talker.into_split();
    let pings = tokio::spawn(async move {
        // The pings continue until the connection is closed.
        while to.write_all(b"\0\0\x08\x06\0\0\0\0\0pingping").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    timeout(PATIENCE, from.read_to_end(&mut Vec::new())).await.expect("the connection is closed").ok();
    assert!(began.elapsed() > Duration::from_secs(5), "the connection had 5 s: {:?}", began.elapsed());
    timeout(PATIENCE, pings).await.expect("the other direction is closed too").unwrap();
    peer.send_gets("b", 10).await;
    assert_eq!(peer.final_statuses(10).await, [VALUE; 10], "a quiet peer stays connected");
}
