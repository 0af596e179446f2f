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

/// Starts the node `a` alone, with a group that loads the value "new" for every key.
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

/// Records a view change after which the node `other`, which shared the keys until now, is gone.
fn record_leave_of(group: &Group<String>, other: &str) {
    let context = &group.engine.context;
    let previous = Arc::new(view(1, &[("a", 1), (other, 1)]));
    context.handover.on_view_change(previous, &context.view(), Scope::Cluster, context.local.clock.read_ms());
}

/// Returns a key, with its hash, that `b` owned beside `a` alone, and `c` too.
fn key_of_both(group: &Group<String>) -> (String, u64) {
    let hash = |key: &String| group.engine.ownership.hash(key);
    let is_of = |other, hash| view(1, &[("a", 1), (other, 1)]).owner(Scope::Cluster, hash).unwrap().id == id(other);
    let key = (0..).map(|n| format!("key-{n}")).find(|key| is_of("b", hash(key)) && is_of("c", hash(key))).unwrap();
    let hash = hash(&key);
    (key, hash)
}

/// Stores a page of the peer `of` with an older value of the key, and returns how many entries were kept.
async fn kept_of_page(group: &Group<String>, key: &str, of: &str) -> u64 {
    let engine = &group.engine;
    let now_ms = engine.context.local.clock.read_ms();
    let handed =
        Handed { key: key.to_owned().into(), bytes: "old".into(), age_ms: 1, as_of_age_ms: None, remaining_ms: None };
    let page = Page { entries: vec![handed], ..Page::default() };
    let request = PageRequest {
        peer: id(of),
        asked_ms: now_ms,
        changes: engine.context.changes.number(),
        since_ms: now_ms,
        has_log: true,
    };
    receive::store_page(Arc::clone(engine), page, request).await.kept
}

/// Checks that a page stores no value of a peer that owned the key before this node loaded it, or of an unknown owner.
#[tokio::test]
async fn older_value_of_a_peer_is_not_stored_after_a_load() {
    let (_node, group) = alone().await;
    let (key, _) = key_of_both(&group);
    record_leave_of(&group, "b");
    assert_eq!(group.get(&key).await.unwrap(), "new");
    drop(group.engine.cache.owned.remove(&key)); // as an eviction does
    record_leave_of(&group, "c");
    assert_eq!(kept_of_page(&group, &key, "b").await, 0, "the value may be older than the loaded one");
    assert_eq!(kept_of_page(&group, &key, "d").await, 0, "no view names d as an owner");
    assert_eq!(kept_of_page(&group, &key, "c").await, 1, "c owned the key after the load");
}

/// Checks that the referral names the last previous owner, and this node itself once it has loaded the key.
#[tokio::test]
async fn miss_refers_to_the_previous_owner_or_to_this_node() {
    let (_node, group) = alone().await;
    let (key, hash) = key_of_both(&group);
    let named = || referral(&group.engine, hash, group.engine.context.now_ms());
    assert_eq!(named(), None);
    record_leave_of(&group, "b");
    assert_eq!(named(), Some(id("b")));
    record_leave_of(&group, "c");
    assert_eq!(named(), Some(id("c")));
    group.get(&key).await.unwrap();
    assert_eq!(named(), Some(id("a")));
}
