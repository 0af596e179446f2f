//! Zones of machines: requests and caches the zone label of each machine.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use kube::{Client, client::Body};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{api::causes, options::ZONE_LABEL, role};

/// Maximum time for a request.
const ANSWER: Duration = Duration::from_secs(5);
/// Maximum number of queued machines.
const MAX_MACHINES: usize = 10_000;
/// Time between two requests, because all nodes of the cluster request all machines and begin at the same time.
const PACE: Duration = Duration::from_millis(100);
/// Minimum time until a machine without a zone is requested again, because its label may have been added. Also the
/// minimum time until a missing right is tried again.
const NONE_AGAIN: Duration = Duration::from_secs(3_600);
/// Minimum time until a machine is requested again after a failure.
const FAILED_AGAIN: Duration = Duration::from_secs(300);

/// Known zones, and a queue of machines. Requests are sent one after the other, because nothing waits for zones.
#[derive(Default)]
pub(crate) struct Zones {
    known: BTreeMap<Arc<str>, Known>,
    queue: VecDeque<Arc<str>>,
    queued: BTreeSet<Arc<str>>,
    /// Machine of the outstanding request, and its answer.
    running: Option<(Arc<str>, Answer)>,
    /// Earliest time of the next request.
    not_before: Option<Instant>,
    /// Time until which no request is queued, because the right is missing.
    refused_until: Option<Instant>,
}

struct Known {
    zone: Option<Arc<str>>,
    /// Earliest time of the next request. `None` if the machine has a zone, because machines do not move.
    again_at: Option<Instant>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Option<Arc<str>>, Refusal>> + Send>>;

/// Reason for an unknown zone.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The right is missing, so requests for other machines are useless.
    Forbidden,
    Failed(String),
}

/// A machine, and the result of the request for its zone.
pub(crate) type Found = (Arc<str>, Result<Option<Arc<str>>, Refusal>);

impl Zones {
    /// Forgets refusals and requests, but no zones, because a new client may have the right.
    pub(crate) fn begin(&mut self) {
        *self = Self { known: std::mem::take(&mut self.known), ..Self::default() };
    }

    /// Returns the zone of a machine, if it is known.
    pub(crate) fn of(&self, machine: &str) -> Option<Arc<str>> {
        self.known.get(machine)?.zone.clone()
    }

    /// Sets the machines in use. New machines are queued, and all others are forgotten.
    pub(crate) fn want<'a>(&mut self, machines: impl Iterator<Item = &'a Arc<str>>) {
        let (now, machines) = (Instant::now(), machines.collect::<BTreeSet<_>>());
        self.known.retain(|machine, _| machines.contains(machine));
        self.queue.retain(|machine| machines.contains(machine));
        self.queued.retain(|machine| machines.contains(machine));
        if self.refused_until.is_some_and(|until| now < until) {
            return;
        }
        for machine in machines {
            let is_due = self.known.get(machine).is_none_or(|known| known.again_at.is_some_and(|at| at <= now));
            if is_due && self.queued.len() < MAX_MACHINES && self.queued.insert(Arc::clone(machine)) {
                self.queue.push_back(Arc::clone(machine));
            }
        }
    }

    /// Returns whether a request is outstanding or queued.
    pub(crate) fn is_busy(&self) -> bool {
        self.running.is_some() || !self.queue.is_empty()
    }

    /// Waits for the next answer; forever if nothing is outstanding or queued. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self, client: &Client) -> Found {
        if self.running.is_none() {
            if let Some(at) = self.not_before {
                sleep_until(at).await;
            }
            let Some(machine) = self.queue.pop_front() else { return std::future::pending().await };
            self.not_before = Some(Instant::now() + PACE);
            let answer: Answer = Box::pin(ask(client.clone(), Arc::clone(&machine)));
            self.running = Some((machine, answer));
        }
        let Some((machine, answer)) = &mut self.running else { return std::future::pending().await };
        let answer = answer.await;
        let machine = Arc::clone(machine);
        self.running = None;
        (machine, answer)
    }

    /// Records an answer.
    pub(crate) fn found(&mut self, (machine, answer): Found) {
        self.queued.remove(&machine);
        let now = Instant::now();
        match answer {
            Ok(zone) => {
                let again_at = zone.is_none().then(|| now + NONE_AGAIN);
                self.known.insert(machine, Known { zone, again_at });
            }
            Err(Refusal::Forbidden) => {
                self.refused_until = Some(now + NONE_AGAIN);
                self.queue.clear();
                self.queued.clear();
                tracing::warn!(
                    "missing right to get nodes, so that peers without a zone label have no zone; apply and bind:\n{}",
                    role::NODES
                );
            }
            Err(Refusal::Failed(why)) => {
                tracing::debug!(%machine, why, "the zone of a machine is unknown; requested again after 5 minutes");
                let zone = self.of(&machine);
                self.known.insert(machine, Known { zone, again_at: Some(now + FAILED_AGAIN) });
            }
        }
    }
}

/// Requests the zone label of a machine.
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
            // The machine is deleted, and its pods will be soon.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    /// Checks that unused machines leave the queue and the cache, and that failed requests are repeated.
    #[tokio::test(start_paused = true)]
    async fn unused_machines_are_forgotten_and_failures_retried() {
        let mut zones = Zones::default();
        zones.want(names(&["a", "b", "c"]).iter());
        assert_eq!((zones.queue.len(), zones.is_busy()), (3, true));
        zones.want(names(&["a", "b"]).iter());
        assert_eq!(zones.queue, names(&["a", "b"]));
        for (machine, answer) in [("a", Ok(Some("z".into()))), ("b", Err(Refusal::Failed("503".to_owned())))] {
            zones.queue.pop_front();
            zones.found((machine.into(), answer));
        }
        zones.want(names(&["a", "b"]).iter());
        assert_eq!((zones.queue.len(), zones.of("a").as_deref(), zones.of("b")), (0, Some("z"), None));
        tokio::time::advance(FAILED_AGAIN).await;
        zones.want(names(&["a", "b"]).iter());
        assert_eq!(zones.queue, names(&["b"]));
        zones.want(names(&[]).iter());
        assert_eq!((zones.known.len(), zones.is_busy()), (0, false));
    }

    /// Checks that a refusal empties the queue, and that the machines are queued again an hour later.
    #[tokio::test(start_paused = true)]
    async fn missing_right_is_retried_after_an_hour() {
        let mut zones = Zones::default();
        zones.want(names(&["a", "b"]).iter());
        zones.queue.pop_front();
        zones.found(("a".into(), Err(Refusal::Forbidden)));
        zones.want(names(&["a", "b"]).iter());
        assert!(!zones.is_busy());
        tokio::time::advance(NONE_AGAIN).await;
        zones.want(names(&["a", "b"]).iter());
        assert_eq!(zones.queue.len(), 2);
    }
}
