//! Conformance suite of providers, over plain messages and over a bucket.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use discovery_nats::Nats;
use groupcache_core::{
    PeerId, async_trait,
    conformance::{Cannot, Source, Timing, conform},
    discovery::{Me, Provider},
};

use crate::support::{Broker, Fake, announcement, fake_client};

/// Interval of heartbeats, much shorter than the default because the suite waits for expiry again and again.
const HEARTBEAT: Duration = Duration::from_millis(250);

struct OverNats {
    broker: Broker,
    fakes: BTreeMap<PeerId, Fake>,
    refused: bool,
}

const OPEN: &str =
    "authorization { users: [ { user: cache, password: pa55-w0rd }, { user: fakes, password: fakes } ] }";
const SHUT: &str = "authorization { users: [ { user: cache, password: changed }, { user: fakes, password: fakes } ] }";

impl OverNats {
    async fn fresh() -> Self {
        Self { broker: Broker::with(OPEN).await, fakes: BTreeMap::new(), refused: false }
    }
}

#[async_trait]
impl Source for OverNats {
    fn provider(&mut self) -> Arc<dyn Provider> {
        let nats = Nats::new(self.broker.url(), "users").unwrap().user_and_password("cache", "pa55-w0rd");
        Arc::new(nats.heartbeat(HEARTBEAT))
    }

    fn timing(&self) -> Timing {
        Timing {
            change: Duration::from_millis(500),
            crash: HEARTBEAT * 4 + Duration::from_secs(1),
            outage: HEARTBEAT * 10,
            tasks: Duration::from_secs(3),
            ..Timing::default()
        }
    }

    async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
        let fake = Fake::join(&self.broker.url(), "users", member, HEARTBEAT).await;
        self.fakes.insert(member.id.clone(), fake);
        Ok(())
    }

    async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
        if let Some(fake) = self.fakes.remove(&member.id) {
            fake.leave().await;
        }
        Ok(())
    }

    async fn crash(&mut self, member: &Me) -> Result<(), Cannot> {
        if let Some(fake) = self.fakes.remove(&member.id) {
            fake.crash();
        }
        Ok(())
    }

    async fn fail(&mut self) -> Result<(), Cannot> {
        self.broker.kill();
        Ok(())
    }

    async fn refuse(&mut self) -> Result<(), Cannot> {
        self.broker.reconfigure(SHUT).await;
        self.refused = true;
        Ok(())
    }

    async fn mend(&mut self, members: &[Me]) {
        if self.refused {
            self.broker.reconfigure(OPEN).await;
        } else if self.broker.is_down() {
            self.broker.up().await;
        }
        for member in members {
            let _ = self.join(member).await;
        }
    }

    async fn lie(&mut self, lies: &[Me]) -> Result<(), Cannot> {
        let client = fake_client(&self.broker.url()).await;
        for lie in lies {
            let heartbeat = announcement(lie, HEARTBEAT * 40);
            client.publish("groupcache-gossip.users.conformance.hb", heartbeat.into()).await.unwrap();
        }
        client.flush().await.unwrap();
        Ok(())
    }

    async fn garbage(&mut self) -> Result<(), Cannot> {
        let client = fake_client(&self.broker.url()).await;
        for subject in ["hb", "bye", "q", "strange"] {
            for text in ["", "{", "hello", "{\"v\":9}", "{\"v\":1,\"id\":\"member-0\"}"] {
                let subject = format!("groupcache-gossip.users.conformance.{subject}");
                client.publish_with_reply(subject, "orders.cancel", text.into()).await.unwrap();
            }
        }
        client.flush().await.unwrap();
        Ok(())
    }
}

#[tokio::test]
async fn nats_conforms() {
    let report = conform(OverNats::fresh).await;
    println!("{report}");
    report.passed().unwrap();
}

/// Conformance suite with a bucket as the store. A server that is too old has nothing to run.
#[cfg(feature = "kv")]
mod with_a_bucket {
    use std::collections::BTreeMap;

    use async_nats::jetstream::{self, kv::Store};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::support::version;

    const CONFIG: &str = r#"jetstream { store_dir: "STORE", max_mem: 64MB, max_file: 64MB }"#;

    /// Member that writes its key again and again, as a node does.
    struct Member(JoinHandle<()>);

    impl Drop for Member {
        fn drop(&mut self) {
            self.0.abort();
        }
    }

    struct Bucket {
        broker: Broker,
        members: BTreeMap<PeerId, Member>,
    }

    impl Bucket {
        async fn store(&self) -> Store {
            let context = jetstream::new(fake_client(&self.broker.url()).await);
            let bucket = jetstream::kv::Config {
                bucket: "members".to_owned(),
                history: 1,
                max_age: Duration::from_secs(1),
                storage: jetstream::stream::StorageType::Memory,
                limit_markers: Some(Duration::from_secs(60)),
                ..Default::default()
            };
            context.create_key_value(bucket).await.unwrap()
        }
    }

    fn key(member: &Me) -> String {
        format!("users.conformance.{}", member.id)
    }

    #[async_trait]
    impl Source for Bucket {
        fn provider(&mut self) -> Arc<dyn Provider> {
            let nats = Nats::new(self.broker.url(), "users").unwrap().heartbeat(HEARTBEAT);
            Arc::new(nats.key_value("members").unwrap())
        }

        fn timing(&self) -> Timing {
            Timing {
                crash: HEARTBEAT * 4 + Duration::from_secs(1),
                outage: HEARTBEAT * 10,
                tasks: Duration::from_secs(5),
                ..Timing::default()
            }
        }

        async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
            let (store, key, said) = (self.store().await, key(member), announcement(member, HEARTBEAT));
            let task = tokio::spawn(async move {
                loop {
                    let _ = store.put(&key, said.clone().into()).await;
                    tokio::time::sleep(HEARTBEAT).await;
                }
            });
            self.members.insert(member.id.clone(), Member(task));
            Ok(())
        }

        async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
            self.members.remove(&member.id);
            self.store().await.delete(key(member)).await.unwrap();
            Ok(())
        }

        async fn crash(&mut self, member: &Me) -> Result<(), Cannot> {
            self.members.remove(&member.id);
            Ok(())
        }

        async fn fail(&mut self) -> Result<(), Cannot> {
            self.broker.kill();
            Ok(())
        }

        async fn refuse(&mut self) -> Result<(), Cannot> {
            self.broker.reconfigure("").await; // no JetStream
            Ok(())
        }

        async fn mend(&mut self, members: &[Me]) {
            self.broker.reconfigure(CONFIG).await;
            for member in members {
                let _ = self.join(member).await;
            }
        }

        async fn lie(&mut self, lies: &[Me]) -> Result<(), Cannot> {
            let store = self.store().await;
            for lie in lies {
                // A key has one value, so that a false record under the key of a member replaces the true one until
                // the next heartbeat of the member.
                store.put(key(lie), announcement(lie, HEARTBEAT).into()).await.unwrap();
            }
            Ok(())
        }

        async fn garbage(&mut self) -> Result<(), Cannot> {
            let store = self.store().await;
            for (key, value) in
                [("users.conformance.a=zz", "x"), ("users.conformance.member-0", "{"), ("orders.x.y", "z")]
            {
                store.put(key, value.into()).await.unwrap();
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn bucket_conforms() {
        if version() < (2, 11) {
            return println!("skipped: buckets of this server report no expired keys");
        }
        let fresh = async || Bucket { broker: Broker::with(CONFIG).await, members: BTreeMap::new() };
        let report = conform(fresh).await;
        println!("{report}");
        report.passed().unwrap();
    }
}
