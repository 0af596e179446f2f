use std::{convert::Infallible, sync::Arc};

use super::referral;
use crate::{
    Group, Identity, Node,
    engine::receive,
    handover::tests::view,
    identity::PeerId,
    membership::view::Scope,
    peer::group_service::PageRequest,
    protocol::message::{Handed, Page},
};

/// Node `a`, which is alone, and a group whose loader always finds something new.
async fn alone() -> (Node, Group<String>) {
    let identity = Identity::new("127.0.0.1:0".parse().unwrap()).with_id("a").unwrap();
    let node = Node::builder().identity(identity).start().await.unwrap();
    let group = node.group::<String>("data").capacity_bytes(1 << 20);
    let group = group.loader(async |_: &str| Ok::<_, Infallible>("new".to_owned())).build().unwrap();
    (node, group)
}

fn id(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

/// Another node had its share until now, and has left.
fn leaves(group: &Group<String>, other: &str) {
    let context = &group.engine.context;
    let before = Arc::new(view(1, &[("a", 1), (other, 1)]));
    context.handover.on_view_change(before, &context.view(), Scope::Cluster, context.local.clock.read_ms());
}

/// A key that was `b`'s and then `c`'s.
fn key_of_both(group: &Group<String>) -> (String, u64) {
    let hash = |key: &String| group.engine.ownership.hash(key);
    let is_of = |other, hash| view(1, &[("a", 1), (other, 1)]).owner(Scope::Cluster, hash).unwrap().id == id(other);
    let key = (0..).map(|n| format!("key-{n}")).find(|key| is_of("b", hash(key)) && is_of("c", hash(key))).unwrap();
    let hash = hash(&key);
    (key, hash)
}

/// How many entries of a page with an older value of it are kept.
async fn kept(group: &Group<String>, key: &str, of: &str) -> u64 {
    let engine = &group.engine;
    let now_ms = engine.context.local.clock.read_ms();
    let handed = Handed { key: key.to_owned().into(), bytes: "old".into(), age_ms: 1, remaining_ms: None };
    let page = Page { entries: vec![handed], ..Page::default() };
    let pulled =
        PageRequest { peer: id(of), asked_ms: now_ms, changes: engine.context.changes.number(), since_ms: now_ms };
    receive::store_page(Arc::clone(engine), page, pulled).await.kept
}

#[tokio::test]
async fn older_value_of_a_peer_is_not_stored_after_a_load() {
    let (_node, group) = alone().await;
    let (key, _) = key_of_both(&group);
    leaves(&group, "b");
    assert_eq!(group.get(&key).await.unwrap(), "new");
    drop(group.engine.cache.owned.remove(&key)); // for want of room
    leaves(&group, "c");
    assert_eq!(kept(&group, &key, "b").await, 0, "it may be older than what was loaded");
    assert_eq!(kept(&group, &key, "stranger").await, 0, "nobody knows when it had the key");
    assert_eq!(kept(&group, &key, "c").await, 1, "it had the key after that");
}

#[tokio::test]
async fn miss_refers_to_the_previous_owner_or_to_this_node() {
    let (_node, group) = alone().await;
    let (key, hash) = key_of_both(&group);
    let named = || referral(&group.engine, hash, group.engine.context.now_ms());
    assert_eq!(named(), None);
    leaves(&group, "b");
    assert_eq!(named(), Some(id("b")));
    leaves(&group, "c");
    assert_eq!(named(), Some(id("c")));
    group.get(&key).await.unwrap();
    assert_eq!(named(), Some(id("a")));
}
