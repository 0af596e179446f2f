//! The conformance suite of providers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use discovery_nats::Nats;
use groupcache_core::{
    Me, PeerId, Provider, async_trait,
    conformance::{Cannot, Source, Timing, conform},
};

use crate::support::{Broker, Fake, as_a_fake};

/// Much faster than the default: the suite waits for expiry again and again.
const HEARTBEAT: Duration = Duration::from_millis(250);

struct OverNats {
    broker: Broker,
    fakes: BTreeMap<PeerId, Fake>,
    refused: bool,
}

const OPEN: &str = "authorization { users: [ { user: cache, password: secret }, { user: fakes, password: fakes } ] }";
const SHUT: &str = "authorization { users: [ { user: cache, password: changed }, { user: fakes, password: fakes } ] }";

impl OverNats {
    async fn fresh() -> Self {
        Self { broker: Broker::with(OPEN).await, fakes: BTreeMap::new(), refused: false }
    }
}

#[async_trait]
impl Source for OverNats {
    fn provider(&mut self) -> Arc<dyn Provider> {
        let nats = Nats::new(self.broker.url(), "users").unwrap().user_and_password("cache", "secret");
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

    async fn garbage(&mut self) -> Result<(), Cannot> {
        let client = as_a_fake(&self.broker.url()).await;
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
