//! Options that need more of the server: a bucket, a micro service.

use {
    crate::support::*,
    discovery_nats::Nats,
    groupcache_core::{discovery::Health, *},
    std::time::Duration,
};

#[cfg(feature = "kv")]
mod bucket {
    use std::sync::Arc;

    use groupcache_core::conformance::Bench;
    use tokio::time::Instant;

    use super::*;

    /// Configuration with the permissions that `key_value` documents, and no more.
    const CONFIG: &str = r#"
        jetstream { store_dir: "STORE", max_mem: 64MB, max_file: 64MB }
        authorization { users: [ { user: cache, password: pa55-w0rd, permissions: {
            publish: ["groupcache-gossip.users.>", "$JS.API.>", "$JS.FC.>", "$KV.members.>"],
            subscribe: ["groupcache-gossip.users.>"]
        } } ] }"#;

    const HEARTBEAT: Duration = Duration::from_millis(500);

    fn nats(broker: &Broker) -> Nats {
        let nats = Nats::new(broker.url(), "users").unwrap();
        let nats = nats.heartbeat(HEARTBEAT).user_and_password("cache", "pa55-w0rd");
        nats.key_value("members").unwrap()
    }

    async fn node(broker: &Broker, name: &str) -> Node {
        let identity = Identity::default().with_id(name).unwrap();
        Node::builder().identity(identity).provider(nats(broker)).start().await.unwrap()
    }

    fn sees(node: &Node, members: usize) -> bool {
        node.members().len() == members && node.members().iter().all(|member| member.reachable)
    }

    /// Checks that a bucket holds the members, also while the server is down. With a server that is too old, the test
    /// checks that discovery reports the version that is needed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bucket_holds_the_members_or_old_server_is_reported() {
        let mut broker = Broker::with(CONFIG).await;
        if version() < (2, 11) {
            let mut bench = Bench::start(Arc::new(nats(&broker))).unwrap();
            eventually(
                "discovery reports that the server is too old",
                async || matches!(bench.health(), Some(Health::Stale(why)) if why.contains("needs 2.11 or newer")),
            )
            .await;
            return assert_eq!(bench.sets(), 0);
        }
        let (a, b) = (node(&broker, "a").await, node(&broker, "b").await);
        eventually("both see each other", async || sees(&a, 2) && sees(&b, 2)).await;
        let begun = Instant::now();
        let c = node(&broker, "c").await;
        eventually("all see c", async || [&a, &b, &c].into_iter().all(|node| sees(node, 3))).await;
        println!("in every ring {:?} after its start", begun.elapsed());

        broker.kill();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            assert!(sees(&a, 3) && sees(&b, 3), "no member is lost with the server");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        broker.up().await;
        let d = node(&broker, "d").await;
        eventually("all see d", async || [&a, &b, &c, &d].into_iter().all(|node| sees(node, 4))).await;
        assert_eq!([&a, &b, &c].map(|node| node.discovery().removals), [0, 0, 0]);

        let begun = Instant::now();
        d.shutdown().await.unwrap();
        eventually("no node sees d", async || sees(&a, 3) && sees(&b, 3)).await;
        println!("out of every ring {:?} after its shutdown", begun.elapsed());
    }

    /// Checks that the key of a dead node, in a bucket that keeps keys for ever, is not taken for a member.
    #[tokio::test]
    async fn expired_member_in_a_permanent_bucket_is_not_listed() {
        if version() < (2, 11) {
            return println!("skipped: buckets of this server report no expired keys");
        }
        let broker = Broker::with(r#"jetstream { store_dir: "STORE", max_mem: 64MB, max_file: 64MB }"#).await;
        let context = async_nats::jetstream::new(fake_client(&broker.url()).await);
        let bucket = async_nats::jetstream::kv::Config { bucket: "members".to_owned(), ..Default::default() };
        let store = context.create_key_value(bucket).await.unwrap();
        let put = async |name: &str| {
            let text = announcement(&member(name), HEARTBEAT);
            store.put(format!("users.conformance.{name}"), text.into()).await.unwrap();
        };
        put("dead").await;
        tokio::time::sleep(HEARTBEAT * 5).await; // longer than the time to live
        put("other").await;
        let nats = Nats::new(broker.url(), "users").unwrap().heartbeat(HEARTBEAT).key_value("members").unwrap();
        let mut bench = Bench::start(Arc::new(nats)).unwrap();
        let mut listed = async |sets: u64| -> Vec<String> {
            eventually("a set is published", async || bench.sets() > sets).await;
            bench.ask(); // the answer is the next set
            bench.peers().iter().filter_map(|peer| Some(peer.id()?.to_string())).collect()
        };
        for sets in 0..3 {
            let names = listed(sets).await;
            assert!(!names.contains(&"dead".to_owned()), "{names:?}");
            assert!(sets > 0 || names.contains(&"other".to_owned()), "{names:?}");
        }
    }

    #[test]
    fn invalid_bucket_name_is_refused() {
        for bad in ["", "a.b", "two words", ">"] {
            assert!(Nats::new("h", "users").unwrap().key_value(bad).is_err(), "{bad}");
        }
    }
}

#[cfg(feature = "micro")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_listed_as_micro_services_while_they_live() {
    use futures_util::StreamExt;
    let broker = Broker::start().await;
    let node = async |name: &str| {
        let identity = Identity::default().with_id(name).unwrap();
        let nats = Nats::new(broker.url(), "users").unwrap().micro_service();
        Node::builder().identity(identity).provider(nats).start().await.unwrap()
    };
    let (a, b) = (node("a").await, node("b").await);
    let client = fake_client(&broker.url()).await;
    let listed = async || {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.unwrap();
        client.publish_with_reply("$SRV.PING.groupcache-users", inbox, "".into()).await.unwrap();
        let mut ids = Vec::new();
        while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(300), answers.next()).await {
            let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            ids.extend(answer["metadata"]["id"].as_str().map(str::to_owned));
        }
        ids.sort();
        ids
    };
    eventually("both are listed", async || listed().await == ["a", "b"]).await;
    a.shutdown().await.unwrap();
    eventually("one is listed", async || listed().await == ["b"]).await;
    b.shutdown().await.unwrap();
}
