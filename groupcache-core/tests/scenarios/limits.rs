//! Every limit of a node is one: what goes beyond it is told so, and nobody else notices.

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

async fn echo(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

/// A node whose loads wait at a gate.
async fn node(limit: impl FnOnce(&mut Limits)) -> (Node, Group<String>, Gate) {
    let (mut limits, gate) = (Limits::default(), Gate::default());
    limit(&mut limits);
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated).build().unwrap();
    (node, group, gate)
}

impl Raw {
    /// As the peer of this name.
    async fn named(node: &Node, id: &str) -> Self {
        let hello = Hello { id: id.into(), ..hello() };
        Self::open(node.address(), Frame { hello: Some(hello), ..Frame::default() }).await.expect("greeted")
    }

    /// Asks for keys of its own that nobody has loaded.
    async fn asks(&mut self, prefix: &str, n: u64) {
        let requests = (0..n).map(|id| get(id, format!("{prefix}-{id}"))).collect();
        self.frames.send(Frame { requests, ..Frame::default() }).await.unwrap();
    }

    /// The next final answers; that some are still being loaded does not count.
    async fn finally(&mut self, n: usize) -> Vec<u32> {
        const PENDING: u32 = 8;
        let mut all = Vec::new();
        while all.len() < n {
            let answers = self.receive(1).await.expect("answers");
            all.extend(statuses(&answers).into_iter().filter(|status| *status != PENDING));
        }
        all
    }
}

#[tokio::test]
async fn one_peer_may_have_so_many_requests_wait_for_loads_and_no_more() {
    let (node, _group, gate) = node(|limits| limits.max_serving_per_peer = 4).await;
    let (mut greedy, mut modest) = (Raw::named(&node, "b").await, Raw::named(&node, "c").await);
    greedy.asks("b", 10).await;
    assert_eq!(greedy.finally(6).await, [OVERLOADED; 6]);
    modest.asks("c", 4).await;
    gate.begun(8).await;
    gate.open();
    assert_eq!(greedy.finally(4).await, [VALUE; 4]);
    assert_eq!(modest.finally(4).await, [VALUE; 4], "another peer has places of its own");
    greedy.asks("again", 4).await;
    assert_eq!(greedy.finally(4).await, [VALUE; 4], "places are given back");
}

/// As many bytes as the key says.
async fn as_many(key: &str) -> Result<Bytes, BoxError> {
    let bytes = key.split('-').next().ok_or("no number")?.parse()?;
    Ok(vec![b'v'; bytes].into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reads_its_answers_gets_all_of_them_however_many_bytes_they_are() {
    let mut limits = Limits::default();
    limits.max_value_bytes = 16 << 20;
    let cluster = Cluster::start_with(2, limits).await;
    let groups = cluster.group(|_, node| node.group::<Bytes>("data").capacity_bytes(1 << 30).loader(as_many)).await;
    // Of what an owner keeps ready for a peer that does not read, the first is more, and so are the others together.
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

/// As many bytes as the key says, once the gate is open.
async fn as_many_at_once(gate: &Gate, key: &str) -> Result<Bytes, BoxError> {
    gate.loads.begin(key);
    gate.pass().await;
    as_many(key).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_gets_all_values_whose_loads_end_in_one_moment_however_many_bytes_they_are() {
    let mut limits = Limits::default();
    limits.max_queued_answer_bytes = 1 << 20; // and four times that, of what was just loaded
    let (cluster, gate) = (Cluster::start_with(2, limits).await, Gate::default());
    let group =
        |node: &Node| node.group::<Bytes>("data").capacity_bytes(1 << 30).loader_with(gate.clone(), as_many_at_once);
    let groups = cluster.group(|_, node| group(node)).await;
    let bytes = 200 << 10;
    let keys = (0..).map(|n| format!("{bytes}-{n}")).filter(|key| cluster.owner(&groups, key) == 1);
    let keys: Vec<_> = keys.take(100).collect();
    let values = tokio::spawn({
        let asks = groups[0].clone();
        async move { timeout(PATIENCE, asks.get_many(&keys)).await.expect("in time") }
    });
    gate.begun(100).await;
    gate.open();
    let values = values.await.unwrap();
    let wrong: Vec<_> = values.iter().filter(|value| !value.as_ref().is_ok_and(|v| v.len() == bytes)).collect();
    assert!(wrong.is_empty(), "{} wrong: {:?}", wrong.len(), wrong[0]);
    assert_eq!(gate.loads.total(), 100);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_reads_nothing_is_told_so_and_hears_of_its_writes() {
    let mut limits = Limits::default();
    limits.max_queued_answer_bytes = 1 << 20;
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let group = node.group::<Bytes>("data").capacity_bytes(1 << 30).loader(as_many).build().unwrap();
    let keys: Vec<_> = (0..40).map(|n| format!("{}-{n}", 200 << 10)).collect();
    assert!(group.get_many(&keys).await.iter().all(Result::is_ok));
    let mut deaf = Raw::named(&node, "b").await;
    let gets = keys.iter().zip(0..).map(|(key, id)| get(id, key));
    let remove = Request { op: 2, ..get(40, &keys[0]) };
    deaf.frames.send(Frame { requests: gets.chain([remove]).collect(), ..Frame::default() }).await.unwrap();
    eventually("its write is done", || group.entries() == 39).await;
    let answers = statuses(&deaf.receive(41).await.unwrap());
    let values = answers.iter().filter(|status| **status == VALUE).count();
    assert!((5..40).contains(&values), "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == OVERLOADED).count(), 40 - values);
    assert_eq!(answers[40], DONE);
    assert!(group.get(&keys[0]).await.is_ok());
}

#[tokio::test]
async fn a_value_that_waits_to_be_stored_has_a_place_among_the_requests_that_wait() {
    let (node, group, gate) = node(|limits| limits.max_serving_per_peer = 4).await;
    group.set("old", "old").await.unwrap().log_unreached();
    let mut greedy = Raw::named(&node, "b").await;
    greedy.asks("b", 4).await;
    gate.begun(4).await;
    let set = Request { op: 1, value: "new".into(), ..get(9, "old") };
    greedy.frames.send(Frame { requests: vec![set.clone()], ..Frame::default() }).await.unwrap();
    assert_eq!(greedy.finally(1).await, [OVERLOADED]);
    assert_eq!(group.entries(), 0, "what was written is not known, and what was there is not true any more");
    gate.open();
    assert_eq!(greedy.finally(4).await, [VALUE; 4]);
    assert_eq!(statuses(&greedy.ask(vec![set]).await), [DONE]);
    assert_eq!(group.get("old").await.unwrap(), "new");
}

#[tokio::test]
async fn all_peers_together_may_have_so_many_requests_wait_for_loads_and_no_more() {
    let (node, group, gate) = node(|limits| limits.max_serving = 6).await;
    let (mut b, mut c) = (Raw::named(&node, "b").await, Raw::named(&node, "c").await);
    b.asks("b", 4).await;
    gate.begun(4).await;
    c.asks("c", 4).await;
    assert_eq!(c.finally(2).await, [OVERLOADED; 2]);
    gate.begun(6).await;
    let own = tokio::spawn(async move { group.get("own").await });
    gate.begun(7).await;
    gate.open();
    assert!(own.await.unwrap().is_ok(), "callers of the node itself have no part in it");
    assert_eq!((b.finally(4).await, c.finally(2).await), (vec![VALUE; 4], vec![VALUE; 2]));
    c.asks("again", 4).await;
    assert_eq!(c.finally(4).await, [VALUE; 4], "places are given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_asks_all_peers_together_for_so_much_and_no_more() {
    let mut limits = Limits::default();
    limits.max_in_flight = 10;
    let cluster = Cluster::start_with(3, limits).await;
    let gate = Gate::default();
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(1 << 20).loader_with(gate.clone(), gated))
        .await;
    let (node, group) = (&cluster.nodes[0], &groups[0]);
    let mut of_others = (0..).map(|n| format!("key-{n}")).filter(|key| group.owner_of(key) != node.id());
    let mut gets = JoinSet::new();
    for key in of_others.by_ref().take(10) {
        let group = group.clone();
        gets.spawn(async move { group.get(&key).await });
    }
    gate.begun(10).await;
    let mut refused = None;
    eventually("they are counted", || {
        // One that is not refused waits at the gate, and nobody for it.
        let (group, key) = (group.clone(), of_others.next().unwrap());
        refused = async move { group.get(&key).await }.now_or_never();
        refused.is_some()
    })
    .await;
    let refused = refused.unwrap().expect_err("refused");
    assert!(refused.is_overloaded(), "{refused:?}");
    gate.open();
    for outcome in gets.join_all().await {
        outcome.expect("those before it are served");
    }
    eventually("places are given back", || node.in_flight() == 0).await;
    tokio::time::sleep(Duration::from_millis(50)).await; // counted every 10 ms
    let key = of_others.next().unwrap();
    assert_eq!(group.get(&key).await.unwrap(), format!("{key} by load 1"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_declares_too_many_keys_changed_is_told_who_did_not_hear() {
    const LIMIT: u32 = 20;
    // Node a has the limit, node b writes.
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
    let written: Vec<_> = writes.join_all().await.into_iter().map(|written| written.expect("carried out")).collect();
    let a = cluster.nodes[0].id();
    let (heard, unheard): (Vec<_>, Vec<_>) = written.iter().partition(|written| written.is_complete());
    assert!(unheard.iter().all(|written| written.unreached() == [a.clone()]), "{unheard:?}");
    // Some seconds may have passed, each with an allowance; a key of a's own may be told to it twice.
    assert!(heard.len() >= LIMIT as usize / 2 && unheard.len() >= 50, "{} were heard", heard.len());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(groups[1].remove("key").await.unwrap().is_complete(), "a second later there is a new allowance");
    assert_eq!(cluster.nodes[1].stats().lost, 0, "the connection stays");
    cluster.shutdown().await;
}

#[tokio::test]
async fn changes_beyond_the_limit_change_nothing() {
    let (node, group, gate) = node(|limits| limits.max_invalidations_per_second = 5).await;
    gate.open();
    for n in 0..10 {
        group.get(&format!("key-{n}")).await.unwrap();
    }
    let mut raw = Raw::greeted(node.address()).await;
    let removes = (0..10).map(|n| Request { op: 2, ..get(n, format!("key-{n}")) }).collect();
    let answers = statuses(&raw.ask(removes).await);
    assert_eq!(answers, [[DONE; 5], [OVERLOADED; 5]].concat());
    assert_eq!(group.entries(), 5);
    raw.asks("key", 10).await;
    assert_eq!(raw.finally(10).await, [VALUE; 10], "gets are no changes");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_counted_and_those_before_go_on() {
    let (node, _group, gate) = node(|limits| limits.max_connections = 2).await;
    gate.open();
    let (mut b, c) = (Raw::named(&node, "b").await, Raw::named(&node, "c").await);
    for n in 1..=20 {
        let mut tcp = TcpStream::connect(node.address()).await.unwrap();
        let closed = timeout(PATIENCE, tcp.read(&mut [0])).await.expect("it is closed");
        assert_eq!(closed.unwrap_or(0), 0);
        eventually("it is counted", || node.stats().crowded_out == n).await;
    }
    b.asks("b", 10).await;
    assert_eq!(b.finally(10).await, [VALUE; 10]);
    drop(c);
    // Its place is free as soon as its end is known.
    let again = async {
        let hello = || Frame { hello: Some(hello()), ..Frame::default() };
        while Raw::try_open(node.address(), hello()).await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("let in");
}

#[tokio::test]
async fn a_connection_that_carries_no_accepted_request_is_closed_and_others_are_not() {
    let (node, _group, gate) = node(|_| {}).await;
    gate.open();
    let mut peer = Raw::named(&node, "b").await;
    let began = Instant::now();
    let mut talker = TcpStream::connect(node.address()).await.unwrap();
    talker.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let (mut from, mut to) = talker.into_split();
    let pings = tokio::spawn(async move {
        // However much it says.
        while to.write_all(b"\0\0\x08\x06\0\0\0\0\0pingping").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    timeout(PATIENCE, from.read_to_end(&mut Vec::new())).await.expect("it is closed").ok();
    assert!(began.elapsed() > Duration::from_secs(5), "it had its time: {:?}", began.elapsed());
    timeout(PATIENCE, pings).await.expect("both directions").unwrap();
    peer.asks("b", 10).await;
    assert_eq!(peer.finally(10).await, [VALUE; 10], "a peer may be quiet");
}
