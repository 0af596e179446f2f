//! Fake kubelet: runs each pod of the manifests as a process at an address of loopback, with its variables and mounts,
//! probes it, and ends it.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    PATIENCE, Scratch,
    api::Api,
    manifests::{self, workload},
};

/// Text that the backend logs for each row that it reads.
pub(crate) const FETCH: &str = "fetching key from backend";

/// Interval between two probes of readiness. The manifest has two seconds, which would make the tests slow.
const PROBE: Duration = Duration::from_millis(100);

/// Cluster with the objects that `kubectl apply -k` makes from a directory of `deploy/kubernetes`, and without pods.
pub(crate) struct Stage {
    pub(crate) api: Arc<Api>,
    pub(crate) log: Log,
    pub(crate) template: Value,
    objects: Vec<Value>,
    scratch: Scratch,
    kubeconfig: String,
    /// Second and third byte of the addresses of the pods, after 127.
    net: String,
}

/// Lines of the pods.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

/// Running pod, killed on drop.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ip: String,
    child: Child,
    prober: AbortHandle,
}

impl Stage {
    /// Starts the API server. `number` must differ between tests, because the addresses of pods contain it.
    pub(crate) async fn open(directory: &str, number: u8) -> Self {
        let objects = manifests::build(&manifests::read(), directory.as_ref()).unwrap();
        let template = workload(&objects).unwrap()["spec"]["template"].clone();
        let scratch = Scratch::new(&format!("{directory}-{number}"));
        let api = Arc::new(Api::serve(&objects).await);
        let account = template["spec"]["serviceAccountName"].as_str().unwrap();
        let kubeconfig = scratch.write("kubeconfig", &kubeconfig(api.port, account));
        // The file has the place where the manifests mount the Secret.
        let key = "1kzNdPkhZJ6L4bmd8bcPYQmCxp8eI2a7A1yj3uVJ2Yk=";
        read_along::is_secret(key);
        scratch.write("cluster-key", key);
        let net = format!("{}.{}", 90 + number, std::process::id() % 250 + 1);
        Self { api, log: Log::default(), template, objects, scratch, kubeconfig, net }
    }

    /// Returns the path of the database. All pods share it, as the pods of a real service do.
    pub(crate) fn database(&self) -> String {
        self.scratch.path("data.db")
    }

    pub(crate) fn replicas(&self) -> u64 {
        workload(&self.objects).unwrap()["spec"]["replicas"].as_u64().unwrap()
    }

    /// Returns the name of the n-th pod. In a Deployment a new `generation` of a pod has a new name.
    pub(crate) fn name(&self, n: usize, generation: usize) -> String {
        let workload = workload(&self.objects).unwrap();
        let name = workload["metadata"]["name"].as_str().unwrap();
        if workload["kind"] == "StatefulSet" { format!("{name}-{n}") } else { format!("{name}-7d9c5b-{n}{generation}") }
    }

    /// Makes the object of a pod, without a process.
    pub(crate) fn create(&self, name: &str, ip: &str) {
        let namespace = &workload(&self.objects).unwrap()["metadata"]["namespace"];
        self.api.put_pod(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-of-{name}-at-{ip}"),
                          "labels": self.template["metadata"]["labels"] },
            "spec": self.template["spec"],
            "status": { "phase": "Pending" },
        }));
    }

    /// Makes the object of a pod, starts its process and probes it.
    pub(crate) fn start(&self, name: &str, host: u8) -> Pod {
        let ip = format!("127.{}.{host}", self.net);
        let namespace = &workload(&self.objects).unwrap()["metadata"]["namespace"];
        self.create(name, &ip);
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluster-kubernetes"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUST_LOG", read_along::RUST_LOG)
            .envs(self.variables(name, namespace.as_str().unwrap(), &ip))
            // Variables of the image. The address differs, because all pods run on one machine.
            .env("HTTP_ADDR", format!("{ip}:3000"))
            .env("DATABASE", self.database())
            // A long time-out, so that a pause of the machine does not cause a second load.
            .env("BACKEND_TIMEOUT_MS", "20000")
            // A kubeconfig takes the place of the service account that is mounted in a pod.
            .env("GROUPCACHE_K8S_KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        self.log.follow(name, child.stdout.take().unwrap());
        self.log.follow(name, child.stderr.take().unwrap());
        self.api.change_pod(name, |pod| pod["status"] = json!({ "phase": "Running", "podIP": ip, "conditions": [] }));
        let prober =
            tokio::spawn(probe_readiness(Arc::clone(&self.api), self.container().clone(), name.to_owned(), ip.clone()));
        Pod { name: name.to_owned(), ip, child, prober: prober.abort_handle() }
    }

    pub(crate) fn container(&self) -> &Value {
        &self.template["spec"]["containers"][0]
    }

    /// Returns the variables of the manifest. A path below a mount becomes a path in the directory of this test.
    fn variables(&self, name: &str, namespace: &str, ip: &str) -> Vec<(String, String)> {
        let mounts = self.container()["volumeMounts"].as_array().unwrap();
        let value = |one: &Value| {
            if let Some(value) = one["value"].as_str() {
                let mounted = mounts.iter().find_map(|at| value.strip_prefix(at["mountPath"].as_str()?));
                return mounted
                    .map_or_else(|| value.to_owned(), |file| self.scratch.path(file.trim_start_matches('/')));
            }
            match one["valueFrom"]["fieldRef"]["fieldPath"].as_str().unwrap() {
                "metadata.name" => name.to_owned(),
                "metadata.namespace" => namespace.to_owned(),
                "status.podIP" => ip.to_owned(),
                // A machine without a zone.
                "metadata.labels['topology.kubernetes.io/zone']" => String::new(),
                other => panic!("the field {other} is not known to the tests"),
            }
        };
        let all = self.container()["env"].as_array().unwrap().iter();
        all.map(|one| (one["name"].as_str().unwrap().to_owned(), value(one))).collect()
    }

    /// Deletes a pod as Kubernetes does: marks it, waits for `preStop`, sends SIGTERM, and removes the object once the
    /// process has ended. `meanwhile` runs just before SIGTERM. Panics if the process outlives the grace period.
    pub(crate) async fn delete(&self, mut pod: Pod, meanwhile: impl AsyncFnOnce(&Pod)) -> Ended {
        let begun = Instant::now();
        let grace = Duration::from_secs(self.template["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap());
        self.api.change_pod(&pod.name, |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        let pause = self.container()["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
        sleep(Duration::from_secs(pause)).await;
        meanwhile(&pod).await;
        let asked = Instant::now();
        pod.signal(Signal::TERM);
        let status = timeout(grace.saturating_sub(begun.elapsed()), pod.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("{} still runs after {grace:?}", pod.name)).unwrap();
        let ended = Ended { status, took: asked.elapsed(), left: grace.saturating_sub(begun.elapsed()) };
        self.api.delete_pod(&pod.name);
        ended
    }
}

/// End of a pod.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Time from SIGTERM to the end of the process.
    pub(crate) took: Duration,
    /// Rest of the grace period.
    pub(crate) left: Duration,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.prober.abort();
    }
}

impl Pod {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Returns the answer to a GET on the port for users.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        get(&format!("{}:3000", self.ip), path).await
    }

    pub(crate) async fn members(&self) -> Vec<Value> {
        let Some((200, body)) = self.get("/stats").await else { return Vec::new() };
        let stats: Value = serde_json::from_str(&body).unwrap();
        stats["members"].as_array().unwrap().clone()
    }

    /// Returns the answer to a probe of the manifest, or `None` when no answer comes.
    pub(crate) async fn probe(&self, container: &Value, probe: &str) -> Option<ServingStatus> {
        let grpc = &container[probe]["grpc"];
        check(&format!("{}:{}", self.ip, grpc["port"]), grpc["service"].as_str().unwrap()).await.ok()
    }
}

/// Probes a pod over and over and reports to the API server whether it is ready.
async fn probe_readiness(api: Arc<Api>, container: Value, name: String, ip: String) {
    let grpc = &container["readinessProbe"]["grpc"];
    let (at, service) = (format!("{ip}:{}", grpc["port"]), grpc["service"].as_str().unwrap());
    let mut was_ready = None;
    loop {
        let is_ready = check(&at, service).await.is_ok_and(|status| status == ServingStatus::Serving);
        if was_ready != Some(is_ready) {
            let status = if is_ready { "True" } else { "False" };
            api.change_pod(&name, |pod| pod["status"]["conditions"] = json!([{ "type": "Ready", "status": status }]));
            was_ready = Some(is_ready);
        }
        sleep(PROBE).await;
    }
}

/// Connects a client of gRPC health checks.
pub(crate) async fn health(at: &str) -> Result<HealthClient<tonic::transport::Channel>, tonic::Status> {
    let endpoint = Endpoint::from_shared(format!("http://{at}")).unwrap().timeout(Duration::from_secs(2));
    let channel = endpoint.connect().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    Ok(HealthClient::new(channel))
}

pub(crate) async fn check(at: &str, service: &str) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(health(at).await?.check(request).await?.into_inner().status())
}

/// Returns the status and the body of a GET, or `None` when no complete answer comes.
pub(crate) async fn get(at: &str, path: &str) -> Option<(u16, String)> {
    let ask = async {
        let mut stream = TcpStream::connect(at).await.ok()?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    };
    timeout(PATIENCE, ask).await.ok()?
}

impl Log {
    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn follow(&self, name: &str, from: impl AsyncRead + Unpin + Send + 'static) {
        let (log, name) = (self.0.clone(), name.to_owned());
        tokio::spawn(async move {
            let mut lines = BufReader::new(from).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // Only the lines of the backend may name a key, because the tests read them.
                if line.contains(FETCH) || read_along::says(&line) {
                    log.lock().unwrap().push(format!("{name} | {line}"));
                }
            }
        });
    }
}

/// Returns the kubeconfig of a pod. The token is the name of the service account.
fn kubeconfig(port: u16, account: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
current-context: test
clusters: [{{ name: test, cluster: {{ server: 'http://127.0.0.1:{port}' }} }}]
users: [{{ name: test, user: {{ token: {account} }} }}]
contexts: [{{ name: test, context: {{ cluster: test, user: test, namespace: none-of-theirs }} }}]
"
    )
}
