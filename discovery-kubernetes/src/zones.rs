//! The zones of machines, one request for each.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use kube::{Client, client::Body};
use serde::Deserialize;
use tokio::time::timeout;

use crate::{api::causes, options::ZONE_LABEL, role};

/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Most machines.
const MAX_MACHINES: usize = 10_000;

/// Which zones are known, and which are asked for: one after the other, since nothing waits for them.
#[derive(Default)]
pub(crate) struct Zones {
    known: BTreeMap<Arc<str>, Option<Arc<str>>>,
    queue: VecDeque<Arc<str>>,
    queued: BTreeSet<Arc<str>>,
    running: Option<(Arc<str>, Answer)>,
    is_refused: bool,
}

type Answer = Pin<Box<dyn Future<Output = Result<Option<Arc<str>>, Refusal>> + Send>>;

/// Why the zone of a machine is not known.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The right is missing: no other machine needs to be asked for.
    Forbidden,
    Failed(String),
}

/// A machine, and what came of asking for it.
pub(crate) type Found = (Arc<str>, Result<Option<Arc<str>>, Refusal>);

impl Zones {
    /// A new client: what was refused may be allowed.
    pub(crate) fn begin(&mut self) {
        *self = Self { known: std::mem::take(&mut self.known), ..Self::default() };
    }

    /// After a list, those without a zone are asked for again.
    pub(crate) fn listed(&mut self) {
        self.known.retain(|_, zone| zone.is_some());
    }

    pub(crate) fn of(&self, machine: &str) -> Option<Arc<str>> {
        self.known.get(machine).cloned().flatten()
    }

    /// These are asked for, if they are new.
    pub(crate) fn want<'a>(&mut self, machines: impl Iterator<Item = &'a Arc<str>>) {
        if self.is_refused {
            return;
        }
        for machine in machines {
            let is_new = !self.known.contains_key(machine) && !self.queued.contains(machine);
            if is_new && self.known.len() + self.queue.len() < MAX_MACHINES {
                self.queued.insert(Arc::clone(machine));
                self.queue.push_back(Arc::clone(machine));
            }
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.running.is_some() || !self.queue.is_empty()
    }

    /// The next answer; never, if nothing is asked. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self, client: &Client) -> Found {
        if self.running.is_none() {
            let Some(machine) = self.queue.pop_front() else { return std::future::pending().await };
            let answer: Answer = Box::pin(ask(client.clone(), Arc::clone(&machine)));
            self.running = Some((machine, answer));
        }
        let Some((machine, answer)) = &mut self.running else { return std::future::pending().await };
        let answer = answer.await;
        let machine = Arc::clone(machine);
        self.running = None;
        (machine, answer)
    }

    pub(crate) fn found(&mut self, (machine, answer): Found) {
        self.queued.remove(&machine);
        match answer {
            Ok(zone) => {
                self.known.insert(machine, zone);
            }
            Err(Refusal::Forbidden) => {
                self.is_refused = true;
                self.queue.clear();
                self.queued.clear();
                tracing::warn!(
                    "this node may not get nodes, so that peers have no zone; apply and bind:\n{}",
                    role::NODES
                );
            }
            Err(Refusal::Failed(why)) => {
                tracing::debug!(%machine, why, "the zone of a machine is not known yet");
                self.known.insert(machine, None);
            }
        }
    }
}

async fn ask(client: Client, machine: Arc<str>) -> Result<Option<Arc<str>>, Refusal> {
    #[derive(Deserialize)]
    struct Node {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        labels: Option<BTreeMap<String, String>>,
    }
    let failed = |why: String| Refusal::Failed(why);
    let request = http::Request::get(format!("/api/v1/nodes/{machine}")).body(Body::empty());
    let request = request.map_err(|e| failed(e.to_string()))?;
    let answer = async {
        let response = client.send(request).await.map_err(|e| failed(causes(&e)))?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => return Err(Refusal::Forbidden),
            // It is gone, and so are its pods soon.
            404 => return Ok(None),
            code => return Err(failed(code.to_string())),
        }
        let body = http_body_util::Limited::new(response.into_body(), 16 << 20);
        let body = http_body_util::BodyExt::collect(body).await.map_err(|e| failed(e.to_string()))?.to_bytes();
        let node: Node = serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))?;
        Ok(node.metadata.labels.and_then(|mut labels| labels.remove(ZONE_LABEL)).map(Arc::from))
    };
    timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(failed("no answer".to_owned())))
}
