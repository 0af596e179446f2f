//! All scenarios on a real API server: `kube-apiserver` and `etcd` in the folder `KUBEBUILDER_ASSETS`, as envtest
//! installs them. There is no kubelet, so the scenarios set the status of pods themselves.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use discovery_kubernetes::Pods;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    nodes, scenarios,
    support::{PATIENCE, Scratch, World, kubeconfig, pod},
};

/// Runs all scenarios, and a cluster of nodes, on a real API server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"]
async fn scenarios_pass_on_a_real_api_server() {
    let assets =
        env::var_os("KUBEBUILDER_ASSETS").expect("set KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd");
    let server = Server::start(assets.into()).await;
    scenarios::all(async |what| {
        println!("{what}");
        Real::fresh(&server).await
    })
    .await;
    println!("cluster of nodes");
    nodes::pods_form_a_cluster(&mut Real::fresh(&server).await).await;
}

const TOKEN: &str = "t0ken-of-users";
/// Number of lines of each log that a failure prints.
const LINES: usize = 60;

/// etcd and an API server, which end with the test.
struct Server {
    assets: PathBuf,
    scratch: Scratch,
    etcd: Child,
    ports: [u16; 3],
    authority: String,
    admin: Client,
    api: std::sync::Mutex<Option<Child>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The directory with the logs is removed with this value.
        if std::thread::panicking() {
            println!("{}", self.logs());
        }
        self.kill();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

/// Returns a port that is free at this moment.
#[expect(clippy::disallowed_methods, reason = "finds a free port")]
async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Starts a program with its output in a log file.
fn program(path: &Path, arguments: &[String], log: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|e| panic!("{} cannot be started: {e}", path.display()))
}

impl Server {
    async fn start(assets: PathBuf) -> Self {
        let scratch = Scratch::new();
        let ports = [free_port().await, free_port().await, free_port().await];
        let (client, peer) = (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        let arguments = [
            format!("--data-dir={}", scratch.0.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        let etcd = program(&assets.join("etcd"), &arguments, &scratch.0.join("etcd.log"));
        let (authority, admin) = certificates(&scratch, ports[2]).await;
        scratch.write("tokens.csv", format!("{TOKEN},system:serviceaccount:prod:users-sa,users-sa\n"));
        let server = Self { assets, scratch, etcd, ports, authority, admin, api: std::sync::Mutex::new(None) };
        server.up().await;
        server
    }

    fn kill(&self) {
        if let Some(mut child) = self.api.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    async fn up(&self) {
        let path = |name: &str| self.scratch.0.join(name).display().to_string();
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports[0]),
            format!("--secure-port={}", self.ports[2]),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--cert-dir={}", path("certs")),
            format!("--tls-cert-file={}", path("server.pem")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--client-ca-file={}", path("authority.pem")),
            format!("--token-auth-file={}", path("tokens.csv")),
            // Tokens are checked with a public key.
            format!("--service-account-key-file={}", path("server.pub")),
            format!("--service-account-signing-key-file={}", path("server.key")),
            "--service-account-issuer=https://127.0.0.1".to_owned(),
        ];
        let log = self.scratch.0.join("apiserver.log");
        *self.api.lock().unwrap() = Some(program(&self.assets.join("kube-apiserver"), &arguments, &log));
        let begun = Instant::now();
        let ready = || http::Request::get("/readyz").body(Vec::new()).unwrap();
        while let Err(why) = self.admin.request_text(ready()).await {
            let ended = self.api.lock().unwrap().as_mut().and_then(|api| api.try_wait().unwrap());
            let is_late = begun.elapsed() >= PATIENCE;
            assert!(
                ended.is_none() && !is_late,
                "the API server is not ready: {why}, ended {ended:?}\n{}",
                self.logs()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the last lines of both programs.
    fn logs(&self) -> String {
        let end = |name: &str| {
            let text = std::fs::read_to_string(self.scratch.0.join(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("last lines of {name}:\n{}\n", lines[lines.len().saturating_sub(LINES)..].join("\n"))
        };
        end("etcd.log") + &end("apiserver.log")
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        self.admin.request(request.body(body.to_string().into_bytes()).unwrap()).await
    }
}

/// Issues the certificates of the server, and returns the authority and a client with all rights.
async fn certificates(scratch: &Scratch, port: u16) -> (String, Client) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority of a test");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["127.0.0.1", "localhost", "10.0.0.1"].map(str::to_owned);
    let server = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    scratch.write("authority.pem", authority.pem());
    scratch.write("server.pem", server.pem());
    scratch.write("server.key", key.serialize_pem());
    scratch.write("server.pub", key.public_key_pem());
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let key = KeyPair::generate().unwrap();
    let admin = params.signed_by(&key, &authority).unwrap();
    let (admin, key) = (scratch.write("admin.pem", admin.pem()), scratch.write("admin.key", key.serialize_pem()));
    let text = format!(
        "{{ apiVersion: v1, kind: Config, current-context: c, \
         clusters: [{{ name: c, cluster: {{ server: 'https://127.0.0.1:{port}', certificate-authority: '{}' }} }}], \
         users: [{{ name: c, user: {{ client-certificate: '{}', client-key: '{}' }} }}], \
         contexts: [{{ name: c, context: {{ cluster: c, user: c }} }}] }}",
        scratch.0.join("authority.pem").display(),
        admin.display(),
        key.display()
    );
    let read = Kubeconfig::read_from(scratch.write("admin.yaml", text)).unwrap();
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
    (authority.pem(), Client::try_from(config).unwrap())
}

/// A separate namespace on the server.
struct Real<'a> {
    server: &'a Server,
    namespace: String,
    scratch: Scratch,
}

impl<'a> Real<'a> {
    async fn fresh(server: &'a Server) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("prod-{}", NEXT.fetch_add(1, Relaxed));
        let made = json!({ "metadata": { "name": namespace } });
        server.ask("POST", "/api/v1/namespaces", &made).await.unwrap();
        let mut this = Self { server, namespace, scratch: Scratch::new() };
        let role = json!({ "metadata": { "name": "pod-reader" },
            "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"] }] });
        server.ask("POST", &this.rbac("roles"), &role).await.unwrap();
        this.grant().await;
        this
    }

    fn rbac(&self, resource: &str) -> String {
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/{resource}", self.namespace)
    }

    fn path(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{name}", self.namespace)
    }
}

impl World for Real<'_> {
    fn pods(&self) -> Pods {
        let server = format!("https://127.0.0.1:{}", self.server.ports[2]);
        let path = kubeconfig(&self.scratch, &server, TOKEN, Some(&self.server.authority));
        Pods::new(&self.namespace, "users").kubeconfig(path)
    }

    async fn create(&mut self, name: &str) {
        let mut pod = pod(name, "");
        pod["metadata"]["namespace"] = json!(self.namespace);
        pod["metadata"].as_object_mut().unwrap().remove("uid");
        pod.as_object_mut().unwrap().remove("status");
        // A pod on a machine is deleted in two steps, so that a kubelet can end it.
        pod["spec"]["nodeName"] = json!("machine-1");
        let path = format!("/api/v1/namespaces/{}/pods", self.namespace);
        self.server.ask("POST", &path, &pod).await.unwrap();
    }

    async fn status(&mut self, name: &str, status: Value) {
        let path = format!("{}/status", self.path(name));
        self.server.ask("PATCH", &path, &json!({ "status": status })).await.unwrap();
    }

    async fn terminate(&mut self, name: &str) {
        self.server.ask("DELETE", &self.path(name), &json!({ "gracePeriodSeconds": 300 })).await.unwrap();
    }

    async fn delete(&mut self, name: &str) {
        self.server.ask("DELETE", &self.path(name), &json!({ "gracePeriodSeconds": 0 })).await.unwrap();
    }

    async fn revoke(&mut self) {
        let path = format!("{}/pod-reader", self.rbac("rolebindings"));
        self.server.ask("DELETE", &path, &json!({})).await.unwrap();
        // The API server itself learns of the change through a watch.
        sleep(Duration::from_secs(1)).await;
    }

    async fn grant(&mut self) {
        let binding = json!({ "metadata": { "name": "pod-reader" },
            "subjects": [{ "kind": "ServiceAccount", "name": "users-sa", "namespace": "prod" }],
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pod-reader" } });
        self.server.ask("POST", &self.rbac("rolebindings"), &binding).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }

    async fn down(&mut self) {
        self.server.kill();
    }

    async fn up(&mut self) {
        self.server.up().await;
    }

    fn outage(&self) -> Duration {
        Duration::from_secs(10)
    }
}
