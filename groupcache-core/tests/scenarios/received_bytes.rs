//! The budget of received bytes: an honest burst of large sets loses no connection.

use futures_util::future::join_all;
use groupcache_core::{Group, Limits, Node, bytes::Bytes};

use crate::{
    proto::Request,
    support::{
        identity,
        raw::{DONE, Raw, get, statuses},
    },
};

/// Status of an answer that announces another one.
const PENDING: u32 = 8;

/// Size of the values: eleven of them exceed the budget of 32 MiB.
const VALUE_BYTES: usize = 3 << 20;

async fn node() -> (Node, Group<Bytes>) {
    let mut limits = Limits::default();
    limits.max_value_bytes = VALUE_BYTES;
    let node = Node::builder().identity(identity("a")).limits(limits).start().await.unwrap();
    let load = async |_: &str| Ok::<_, std::io::Error>(Bytes::from_static(b"loaded"));
    let group = node.group::<Bytes>("data").capacity_bytes(64 << 20).loader(load).build().unwrap();
    (node, group)
}

/// Checks that eleven peers set values of 3 MiB at once, five times, without the end of a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_of_large_sets_loses_no_connection() {
    let (node, group) = node().await;
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let mut peers = join_all((0..11).map(|_| Raw::greeted(node.address()))).await;
    for round in 0..5 {
        let sets = peers.iter_mut().enumerate().map(async |(at, peer)| {
            let set = Request { op: 1, value: value.clone(), ..get(1, format!("{round} {at}")) };
            let mut answers = statuses(&peer.ask(vec![set]).await);
            while answers.iter().all(|status| *status == PENDING) {
                answers = statuses(&peer.receive(1).await.expect("the final answer"));
            }
            answers.retain(|status| *status != PENDING);
            answers
        });
        assert_eq!(join_all(sets).await, [[DONE]; 11], "round {round}");
    }
    assert_eq!((node.stats().connections_evicted, node.stats().rejected), (0, 0));
    assert!(group.inspect().entries() > 0);
}
