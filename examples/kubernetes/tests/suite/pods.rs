//! Pods of the manifests: the pods find each other, answer probes, and leave without a failed request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::support::{
    api::Api,
    eventually,
    kubelet::{FETCH, Pod, Stage, check, get, health},
};

/// Time for which the machines of a cluster still send requests to a pod that is no longer an endpoint.
const LAG: Duration = Duration::from_secs(1);

/// Checks the pods of the Deployment; see [`replace_one_of_three_pods`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_replaces_a_pod_without_failed_requests() {
    replace_one_of_three_pods("base", 1).await;
}

/// Checks the pods of the StatefulSet; see [`replace_one_of_three_pods`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stateful_set_replaces_a_pod_without_failed_requests() {
    replace_one_of_three_pods("statefulset", 2).await;
}

/// Checks that three pods find each other with the rights of their Role, load each row once, and that no request of a
/// user fails while one pod is replaced.
async fn replace_one_of_three_pods(directory: &str, number: u8) {
    let stage = Stage::open(directory, number).await;
    let mut pods: Vec<_> = (0..3).map(|n| stage.start(&stage.name(n, 0), n as u8 + 1)).collect();
    assert_eq!(stage.replicas(), 3);
    eventually("the pods see each other", async || agree(&pods).await).await;
    eventually("the Service has all pods", async || stage.api.endpoints("groupcache-svc", "http").len() == 3).await;
    assert_eq!(stage.api.refused(), [""; 0], "the Role allows all calls of the pods");

    // All pods answer alike, and each row is loaded once.
    for n in 0..30 {
        let path = format!("/data/row-{n}");
        let row = pods[0].get(&path).await.unwrap();
        assert_eq!(row.0, 200, "{}", row.1);
        for pod in &pods {
            assert_eq!(pod.get(&path).await.unwrap(), row);
        }
    }
    assert_eq!(stage.log.count(FETCH), 30, "{:#?}", stage.log.lines());

    // The first pod is replaced, as in a rolling update. A Deployment starts the new pod first. In a StatefulSet the
    // old pod leaves first, and the new pod has the same name.
    let users = Users::of(&stage.api);
    let is_deployment = directory == "base";
    if is_deployment {
        pods.push(stage.start(&stage.name(0, 1), 4));
        eventually("the pods see the new pod", async || agree(&pods).await).await;
        eventually("the Service has the new pod", async || stage.api.endpoints("groupcache-svc", "http").len() == 4)
            .await;
    }
    let leaver = pods.remove(0);
    leave(&stage, leaver, &pods).await;
    eventually("the other pods see each other", async || agree(&pods).await).await;
    if !is_deployment {
        pods.push(stage.start(&stage.name(0, 1), 4));
        eventually("the pods see the new pod", async || agree(&pods).await).await;
        eventually("the Service has the new pod", async || stage.api.endpoints("groupcache-svc", "http").len() == 3)
            .await;
    }
    sleep(LAG).await;
    users.assert_none_failed().await;
}

/// Deletes a pod and checks that its process serves until SIGTERM, drains, answers its running request, ends its health
/// checks in order, and frees its ports.
async fn leave(stage: &Stage, pod: Pod, others: &[Pod]) {
    let (at, name) = (format!("{}:3000", pod.ip), pod.name.clone());
    let peers = format!("{}:{}", pod.ip, 7946);
    let readiness = HealthCheckRequest { service: "readiness".to_owned() };
    let mut watched = health(&at).await.unwrap().watch(readiness).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    // The backend is locked, so that a request is running when the process gets SIGTERM.
    let backend = rusqlite::Connection::open(stage.database()).unwrap();
    backend.busy_timeout(Duration::from_secs(5)).unwrap();
    let mut slow = None;
    let ended = stage.delete(pod, async |pod| {
        for probe in ["livenessProbe", "readinessProbe"] {
            let answer = pod.probe(stage.container(), probe).await;
            assert_eq!(answer, Some(ServingStatus::Serving), "{probe} before SIGTERM");
        }
        backend.execute_batch("BEGIN IMMEDIATE").unwrap();
        let at = at.clone();
        slow = Some(tokio::spawn(async move { get(&at, "/data/slow").await }));
        eventually("the slow load has begun", async || stage.log.count("key=\"slow\"") > 0).await;
    });
    // The request outlives the listener. By then no other pod counts this pod as an owner.
    let freed = async {
        eventually("the pod no longer listens", async || TcpStream::connect(&at).await.is_err()).await;
        for other in others {
            let members = other.members().await;
            assert!(!members.iter().any(|member| member["id"] == name && member["owns"] == true), "{members:?}");
        }
        backend.execute_batch("ROLLBACK").unwrap();
    };
    let (ended, ()) = tokio::join!(ended, freed);
    println!("ended {:?} after SIGTERM; {:?} of the grace period were left", ended.took, ended.left);
    assert_eq!(ended.status.code(), Some(0), "{:#?}", stage.log.lines());
    let (status, row) = slow.unwrap().await.unwrap().unwrap();
    assert_eq!(status, 200, "{row}");

    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watched.message().await.is_ok_and(|more| more.is_none()), "the health check ends in order");
    for port in [at, peers] {
        TcpListener::bind(&port).await.unwrap_or_else(|e| panic!("{port} is not free: {e}"));
    }
}

/// Checks that a pod without an answer of the API server is live and not ready, that its peers find it all the same,
/// and that it is ready once the API server answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_is_live_before_it_is_ready() {
    let stage = Stage::open("base", 3).await;
    stage.api.answers(false);
    let pod = stage.start(&stage.name(0, 0), 1);
    let container = stage.container();
    eventually("the pod is live", async || pod.probe(container, "startupProbe").await == Some(ServingStatus::Serving))
        .await;
    // The pod cannot know its peers yet, so it owns no keys.
    assert_eq!(pod.probe(container, "livenessProbe").await, Some(ServingStatus::Serving));
    assert_eq!(pod.probe(container, "readinessProbe").await, Some(ServingStatus::NotServing));
    let at = format!("{}:3000", pod.ip);
    assert_eq!(check(&at, "").await.unwrap(), ServingStatus::NotServing, "the default name of a check");
    assert_eq!(pod.get("/healthz").await.unwrap().0, 200);
    assert_eq!(pod.get("/readyz").await.unwrap().0, 503);
    assert!(stage.api.endpoints("groupcache-svc", "http").is_empty());
    assert_eq!(stage.api.endpoints("groupcache-peers", "group-port").len(), 1, "peers see the pod before it is ready");

    stage.api.answers(true);
    eventually("the pod is ready", async || {
        pod.probe(container, "readinessProbe").await == Some(ServingStatus::Serving)
    })
    .await;
    assert_eq!(pod.get("/readyz").await.unwrap().0, 200);
    assert_eq!(check(&at, "").await.unwrap(), ServingStatus::Serving);
    assert_eq!(check(&at, "rediness").await.unwrap_err().code(), Code::NotFound);

    let ended = stage.delete(pod, async |_| {}).await;
    assert_eq!(ended.status.code(), Some(0));
}

/// Checks that a draining pod is live and not ready, and still answers users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_pod_is_not_ready_and_serves() {
    let stage = Stage::open("base", 4).await;
    let mut pods: Vec<_> = (0..2).map(|n| stage.start(&stage.name(n, 0), n as u8 + 1)).collect();
    eventually("both pods see each other", async || agree(&pods).await).await;
    let (leaver, other) = (pods.remove(0), pods.remove(0));
    let at = format!("{}:3000", leaver.ip);
    let row = get(&at, "/data/row").await.unwrap();
    assert_eq!(get(&at, "/data/row").await.unwrap(), row);

    // The other pod is stopped and does not acknowledge the drain, so the drain lasts long enough for the checks.
    let ended = stage.delete(leaver, async |_| other.signal(Signal::STOP));
    let looked = async {
        eventually("the pod leaves", async || stage.log.count("leaving") > 0).await;
        eventually("the pod is not ready", async || get(&at, "/readyz").await.unwrap().0 == 503).await;
        assert_eq!(check(&at, "readiness").await.unwrap(), ServingStatus::NotServing);
        assert_eq!(check(&at, "liveness").await.unwrap(), ServingStatus::Serving);
        assert_eq!(get(&at, "/data/row").await.unwrap().0, 200);
        other.signal(Signal::CONT);
    };
    let (ended, ()) = tokio::join!(ended, looked);
    assert_eq!(ended.status.code(), Some(0));
}

/// Checks the fake API server: when pods become ready at the same time, an endpoint slice made from fewer ready pods
/// must not replace one made from more.
#[tokio::test]
async fn pods_that_become_ready_at_once_are_all_endpoints() {
    let stage = Stage::open("base", 5).await;
    let names: Vec<_> = (0..3).map(|n| stage.name(n, 0)).collect();
    for (name, host) in names.iter().zip(1..) {
        stage.create(name, &format!("127.0.0.{host}"));
    }
    for round in 0..300 {
        for is_ready in ["False", "True"] {
            std::thread::scope(|scope| {
                for (name, host) in names.iter().zip(1..) {
                    let conditions = json!([{ "type": "Ready", "status": is_ready }]);
                    let status = json!({ "podIP": format!("127.0.0.{host}"), "conditions": conditions });
                    scope.spawn(|| stage.api.change_pod(name, |pod| pod["status"] = status));
                }
            });
        }
        assert_eq!(stage.api.endpoints("groupcache-svc", "http").len(), 3, "round {round}");
    }
}

/// Returns whether each pod sees exactly these pods, all reachable owners of keys.
async fn agree(pods: &[Pod]) -> bool {
    for pod in pods {
        let members = pod.members().await;
        let all_are = |name: &str| members.iter().all(|member| member[name] == true);
        if members.len() != pods.len() || !all_are("owns") || !all_are("is_reachable") {
            return false;
        }
    }
    true
}

/// Users that request 100 ids over and over, each time from the next pod of the Service.
struct Users {
    is_over: Arc<AtomicBool>,
    asking: JoinHandle<(u32, Vec<String>)>,
}

impl Users {
    fn of(api: &Arc<Api>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let asking = tokio::spawn(ask(Arc::clone(api), Arc::clone(&is_over)));
        Self { is_over, asking }
    }

    /// Stops the users and checks that no request failed.
    async fn assert_none_failed(self) {
        self.is_over.store(true, Relaxed);
        let (asked, failed) = self.asking.await.unwrap();
        println!("{asked} requests, {} failed", failed.len());
        assert!(asked > 100, "only {asked} requests");
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

async fn ask(api: Arc<Api>, is_over: Arc<AtomicBool>) -> (u32, Vec<String>) {
    let (mut asked, mut failed, mut rows) = (0, Vec::new(), BTreeMap::new());
    let mut known = (Instant::now(), api.endpoints("groupcache-svc", "http"));
    while !is_over.load(Relaxed) {
        if known.0.elapsed() > LAG {
            known = (Instant::now(), api.endpoints("groupcache-svc", "http"));
        }
        let (at, path) = (&known.1[asked as usize % known.1.len()], format!("/data/id-{}", asked / 7 % 100));
        match get(at, &path).await {
            Some((200, row)) => {
                let first = rows.entry(path.clone()).or_insert_with(|| row.clone());
                if *first != row {
                    failed.push(format!("{path} at {at}: {row} after {first}"));
                }
            }
            other => failed.push(format!("{path} at {at}: {other:?}")),
        }
        asked += 1;
        sleep(Duration::from_millis(2)).await;
    }
    (asked, failed)
}
