use std::{convert::Infallible, sync::Arc};

use crate::{
    Group, Identity, Node,
    handover::tests::view,
    identity::PeerId,
    membership::view::Scope,
    message::{Handed, Page},
    served::Pulled,
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
    let shared = &group.inner.shared;
    let before = Arc::new(view(1, &[("a", 1), (other, 1)]));
    shared.handover.changes(before, &shared.view(), Scope::Cluster, shared.local.clock.read_ms());
}

/// A key that was `b`'s and then `c`'s.
fn key_of_both(group: &Group<String>) -> (String, u64) {
    let hash = |key: &String| group.inner.place.hash(key.as_bytes());
    let is_of = |other, hash| view(1, &[("a", 1), (other, 1)]).owner(Scope::Cluster, hash).unwrap().id == id(other);
    let key = (0..).map(|n| format!("key-{n}")).find(|key| is_of("b", hash(key)) && is_of("c", hash(key))).unwrap();
    let hash = hash(&key);
    (key, hash)
}

/// How many entries of a page with an older value of it are kept.
async fn kept(group: &Group<String>, key: &str, of: &str) -> u64 {
    let inner = &group.inner;
    let now_ms = inner.shared.local.clock.read_ms();
    let handed = Handed { key: key.to_owned().into(), bytes: "old".into(), age_ms: 1, remaining_ms: None };
    let page = Page { entries: vec![handed], ..Page::default() };
    let pulled = Pulled { peer: id(of), asked_ms: now_ms, changes: inner.shared.changes.number(), since_ms: now_ms };
    Arc::clone(inner).take(page, pulled).await.kept
}

#[tokio::test]
async fn what_was_loaded_since_a_peer_had_the_key_is_not_undone_by_what_that_peer_still_has() {
    let (_node, group) = alone().await;
    let (key, _) = key_of_both(&group);
    leaves(&group, "b");
    assert_eq!(group.get(&key).await.unwrap(), "new");
    drop(group.inner.store.remove(&key)); // for want of room
    leaves(&group, "c");
    assert_eq!(kept(&group, &key, "b").await, 0, "it may be older than what was loaded");
    assert_eq!(kept(&group, &key, "stranger").await, 0, "nobody knows when it had the key");
    assert_eq!(kept(&group, &key, "c").await, 1, "it had the key after that");
}

#[tokio::test]
async fn who_does_not_have_a_key_names_who_had_it_before_and_itself_when_it_had_something_newer() {
    let (_node, group) = alone().await;
    let (key, hash) = key_of_both(&group);
    let named = || group.inner.referral(hash, group.inner.shared.now_ms());
    assert_eq!(named(), None);
    leaves(&group, "b");
    assert_eq!(named(), Some(id("b")));
    leaves(&group, "c");
    assert_eq!(named(), Some(id("c")));
    group.get(&key).await.unwrap();
    assert_eq!(named(), Some(id("a")));
}
