//! Access to the API server over TCP: kubeconfig, token, TLS, proxy, credential programs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use discovery_kubernetes::Pods;
use groupcache_core::discovery::Health;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use crate::support::{
    NAMESPACE, Observer, Scratch, Simulated, World, eventually,
    fake::Mode,
    kubeconfig,
    wire::{listen, proxy},
};

/// Checks that a wrong authority makes the provider stale, and that the right one works.
#[tokio::test]
async fn tls_needs_the_right_authority() {
    let (right, wrong) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &right).unwrap();
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let listening = listen(&world.fake, Some(acceptor(&leaf, &key))).await;
    let (scratch, server) = (Scratch::new(), format!("https://127.0.0.1:{}", listening.port));
    let path = kubeconfig(&scratch, &server, "t0ken-of-users", Some(&wrong.pem()));
    let pods = || Pods::new(NAMESPACE, "users").kubeconfig(&path);
    let mut observer = Observer::start(pods());
    let why = observer.until_stale(&["cannot list pods", "certificate"]).await;
    assert_eq!(observer.bench.sets(), 0, "{why}");
    kubeconfig(&scratch, &server, "t0ken-of-users", Some(&right.pem()));
    Observer::start(pods()).until(&["p1@10.0.0.1"]).await;
}

/// Returns the side of a TLS server with this certificate.
fn acceptor(leaf: &rcgen::Certificate, key: &KeyPair) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Checks that a refused token makes the provider stale, keeps the peers, and is read again from its file.
#[tokio::test]
async fn refused_token_is_read_again() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.fake.state().token = Some("the-1st-token".to_owned());
    let listening = listen(&world.fake, None).await;
    let scratch = Scratch::new();
    let path = kubeconfig(&scratch, &format!("http://127.0.0.1:{}", listening.port), "the-1st-token", None);
    // The empty namespace stands for that of the context.
    let mut observer = Observer::start(Pods::new("", "users").kubeconfig(path));
    observer.until(&["p1@10.0.0.1"]).await;
    world.fake.state().token = Some("the-2nd-token".to_owned());
    world.fake.disconnect();
    observer.until_stale(&["refuses the credentials", "401", "namespace prod"]).await;
    world.start("p2", "10.0.0.2").await;
    assert_eq!(observer.set(), ["p1@10.0.0.1"]);
    read_along::is_secret("the-2nd-token");
    scratch.write("token", "the-2nd-token");
    observer.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    observer.until_connected().await;
    observer.bench.stop().await;
}

/// Checks that a kubeconfig with another server is read once the old server is down or answers errors only.
#[tokio::test]
async fn changed_kubeconfig_is_read_when_server_fails() {
    for mode in [Mode::Down, Mode::Refuses { verb: "", code: 503, body: None }] {
        let (mut old, mut new) = (Simulated::new(), Simulated::new());
        old.start("p1", "10.0.0.1").await;
        new.start("p2", "10.0.0.2").await;
        let servers = [listen(&old.fake, None).await, listen(&new.fake, None).await];
        let [at_old, at_new] = servers.each_ref().map(|listening| format!("http://127.0.0.1:{}", listening.port));
        let scratch = Scratch::new();
        let path = kubeconfig(&scratch, &at_old, "t0ken-of-users", None);
        let pods = Pods::new(NAMESPACE, "users").kubeconfig(path);
        let mut observer = Observer::start(pods.unreachable_for(Duration::from_secs(1)));
        observer.until(&["p1@10.0.0.1"]).await;
        observer.until_connected().await;
        old.fake.set(mode);
        observer.until_stale(&["cannot"]).await;
        kubeconfig(&scratch, &at_new, "t0ken-of-users", None);
        // The new server has equal versions with another meaning.
        observer.until(&["p2@10.0.0.2"]).await;
        observer.until_connected().await;
    }
}

/// Checks that the health names a missing or invalid kubeconfig or context, and that a fixed file is read.
#[tokio::test]
async fn missing_or_invalid_kubeconfig_is_read_once_fixed() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let listening = listen(&world.fake, None).await;
    let scratch = Scratch::new();
    let path = scratch.0.join("kubeconfig");
    let mut observer = Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(&path));
    let name = path.display().to_string();
    observer.until_stale(&[&name, "check the path"]).await;
    scratch.write("kubeconfig", "hello");
    tokio::time::sleep(Duration::from_millis(300)).await;
    observer.until_stale(&["kubeconfig"]).await;
    kubeconfig(&scratch, &format!("http://127.0.0.1:{}", listening.port), "t0ken-of-users", None);
    observer.until(&["p1@10.0.0.1"]).await;
    let other = Pods::new(NAMESPACE, "users").kubeconfig(&path).context("nowhere");
    Observer::start(other).until_stale(&["nowhere", "check KUBECONFIG, the file and the context"]).await;
}

/// Writes a kubeconfig with a shell script as its credential program.
fn kubeconfig_with_program(scratch: &Scratch, server: &str, script: &str) -> PathBuf {
    let script = scratch.write("script", script);
    let text = format!(
        "{{ apiVersion: v1, kind: Config, current-context: test,
  clusters: [{{ name: test, cluster: {{ server: '{server}' }} }}],
  users: [{{ name: test, user: {{ exec: {{ apiVersion: client.authentication.k8s.io/v1, command: /bin/sh,
    args: ['{}'], env: [{{ name: SECRET, value: s3cret-of-the-environment }}] }} }} }}],
  contexts: [{{ name: test, context: {{ cluster: test, user: test, namespace: {NAMESPACE} }} }}] }}",
        script.display()
    );
    read_along::is_secret("s3cret-of-the-environment");
    scratch.write("kubeconfig", text)
}

/// Returns a shell command that writes credentials with this token.
fn credentials(token: &str) -> String {
    read_along::is_secret(token);
    format!(
        r#"echo '{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{token}"}}}}'"#
    )
}

/// Checks that other tasks of the thread run while the credential program sleeps for 3 s.
#[tokio::test]
async fn credential_program_does_not_block_the_thread() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.fake.state().token = Some("t0ken-of-a-program".to_owned());
    let (listening, scratch) = (listen(&world.fake, None).await, Scratch::new());
    let script = format!("sleep 3; {}", credentials("t0ken-of-a-program"));
    let path = kubeconfig_with_program(&scratch, &format!("http://127.0.0.1:{}", listening.port), &script);
    let mut observer = Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(path));
    let mut moments = 0;
    while observer.bench.sets() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        moments += 1;
    }
    assert!(moments > 30, "{moments} pauses in 3 s: the program blocks this thread");
    observer.until(&["p1@10.0.0.1"]).await;
}

/// Checks that the health has the error output of a failed program, but neither its output nor its environment.
#[tokio::test]
async fn failed_credential_program_leaks_no_secret() {
    let scratch = Scratch::new();
    let fails = format!("{}; echo 'log in first' >&2; exit 3", credentials("t0ken-of-a-failure"));
    let path = kubeconfig_with_program(&scratch, "http://127.0.0.1:9", &fails);
    let mut observer = Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(&path));
    let why = observer.until_stale(&["credential program /bin/sh of the kubeconfig", "log in first"]).await;
    assert!(!why.contains("t0ken") && !why.contains("s3cret"), "{why}");
    kubeconfig_with_program(&scratch, "http://127.0.0.1:9", "echo 'token: [t0ken-of-a-failure'");
    let why = observer.until_stale(&["/bin/sh", "has not written credentials"]).await;
    assert!(!why.contains("t0ken"), "{why}");
}

/// Checks that a hanging program makes the provider stale after 30 s, and is not started a second time.
#[tokio::test(start_paused = true)]
async fn hanging_credential_program_is_started_once() {
    let scratch = Scratch::new();
    let started = scratch.0.join("started");
    let script = format!("echo $$ >> {}; exec sleep 20", started.display());
    let path = kubeconfig_with_program(&scratch, "http://127.0.0.1:9", &script);
    let mut observer = Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(path));
    observer.until_stale(&["the credential program of the kubeconfig", "within 30 s", "run it by hand"]).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    while !started.exists() {
        std::thread::yield_now(); // the program runs in real time
    }
    let pids = std::fs::read_to_string(&started).unwrap();
    assert_eq!(pids.lines().count(), 1, "{pids}");
    kill(&pids);
}

/// Kills processes by their ids, one per line.
fn kill(pids: &str) {
    for pid in pids.lines() {
        let _ = std::process::Command::new("kill").arg(pid).status();
    }
}

/// Checks that dropping the runtime does not wait for a hanging program.
#[test]
fn runtime_ends_while_credential_program_hangs() {
    let scratch = Scratch::new();
    let started = scratch.0.join("started");
    let script = format!("echo $$ >> {}; exec sleep 60", started.display());
    let path = kubeconfig_with_program(&scratch, "http://127.0.0.1:9", &script);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let observer = Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(path));
        eventually("the program runs", async || {
            std::fs::read_to_string(&started).is_ok_and(|pids| pids.ends_with('\n'))
        })
        .await;
        observer.bench.stop().await;
    });
    let begun = tokio::time::Instant::now();
    drop(runtime);
    let took = begun.elapsed();
    kill(&std::fs::read_to_string(&started).unwrap());
    assert!(took < Duration::from_secs(30), "{took:?}");
}

/// Checks HTTP and SOCKS 5 proxies, and that the error for an unsupported scheme has no password.
#[tokio::test]
async fn proxy_of_kubeconfig_is_used() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let (listening, proxy) = (listen(&world.fake, None).await, proxy().await);
    let server = format!("http://127.0.0.1:{}", listening.port);
    for scheme in ["http", "socks5"] {
        let scratch = Scratch::new();
        let path = kubeconfig(&scratch, &server, "t0ken-of-users", None);
        let text = std::fs::read_to_string(&path).unwrap();
        let via = format!("server: {server}\n      proxy-url: {scheme}://127.0.0.1:{}", proxy.port);
        scratch.write("kubeconfig", text.replace(&format!("server: {server}"), &via));
        let before = proxy.connections();
        Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(&path)).until(&["p1@10.0.0.1"]).await;
        assert!(proxy.connections() > before, "{scheme}");
    }
    let scratch = Scratch::new();
    let path =
        kubeconfig(&scratch, "http://127.0.0.1:9\n      proxy-url: ftp://me:passw0rd@127.0.0.1:1", "t0ken", None);
    read_along::is_secret("passw0rd");
    let mut observer = Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(path));
    let why = observer.until_stale(&["ftp", "proxy", "http, https or socks5"]).await;
    assert!(!why.contains("passw0rd"), "{why}");
}

/// Environment variable with the kubeconfig, in the process that [`no_proxy_exempts_the_api_server`] starts.
const KUBECONFIG_OF_CHILD: &str = "KUBECONFIG_OF_CHILD";

/// Checks which API servers are reached directly although `HTTPS_PROXY` is set. 0.0.0.0 is an address of this machine
/// that is no loopback address, and loopback addresses need no `NO_PROXY`.
#[tokio::test]
async fn no_proxy_exempts_the_api_server() {
    if let Some(path) = std::env::var_os(KUBECONFIG_OF_CHILD) {
        let pods = Pods::new(NAMESPACE, "users").kubeconfig(PathBuf::from(path));
        Observer::start(pods).until(&["p1@10.0.0.1"]).await;
        return;
    }
    let (authority, key) = (authority(), KeyPair::generate().unwrap());
    let names = ["127.0.0.1", "0.0.0.0"].map(str::to_owned);
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let listening = listen(&world.fake, Some(acceptor(&leaf, &key))).await;
    let proxy = proxy().await;
    let port = listening.port;
    let cases = [
        ("0.0.0.0", "10.0.0.0/8,.example.org".to_owned(), false),
        ("0.0.0.0", "0.0.0.0,".to_owned(), true),
        ("0.0.0.0", "localhost, 0.0.0.0/8 ,".to_owned(), true),
        ("0.0.0.0", format!("0.0.0.0:{port}"), true),
        ("0.0.0.0", "0.0.0.0:443".to_owned(), false),
        // The address of the proxy itself exempts nothing.
        ("0.0.0.0", "127.0.0.1".to_owned(), false),
        ("127.0.0.1", String::new(), true),
    ];
    for (host, no_proxy, is_direct) in cases {
        let scratch = Scratch::new();
        let path = kubeconfig(&scratch, &format!("https://{host}:{port}"), "t0ken-of-users", Some(&authority.pem()));
        let before = proxy.connections();
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "access::no_proxy_exempts_the_api_server", "--nocapture"]);
        child.env(KUBECONFIG_OF_CHILD, path);
        child.env("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port)).env("NO_PROXY", &no_proxy);
        let output = child.output().await.unwrap();
        assert!(output.status.success(), "{host}, {no_proxy:?}: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(proxy.connections() == before, is_direct, "{host}, {no_proxy:?}");
    }
}

/// Checks that requests name this crate and its version.
#[tokio::test]
async fn requests_name_the_crate() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let (listening, scratch) = (listen(&world.fake, None).await, Scratch::new());
    let path = kubeconfig(&scratch, &format!("http://127.0.0.1:{}", listening.port), "t0ken-of-users", None);
    Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(path)).until(&["p1@10.0.0.1"]).await;
    let expected = concat!("discovery-kubernetes/", env!("CARGO_PKG_VERSION"));
    assert_eq!(world.fake.state().user_agent.as_deref(), Some(expected));
}

/// Checks that the error for an invalid kubeconfig has no token.
#[tokio::test]
async fn invalid_kubeconfig_is_not_quoted() {
    let scratch = Scratch::new();
    read_along::is_secret("t0ken-of-a-wrong-file");
    for odd in ["exec: 7", "token: [", "client-key-data: {}", "nonsense", "exec: t0ken-of-a-wrong-file"] {
        let text = format!(
            "apiVersion: v1\nusers:\n  - name: test\n    user:\n      token: t0ken-of-a-wrong-file\n      {odd}\n"
        );
        let path = scratch.write("kubeconfig", text);
        let mut observer = Observer::start(Pods::new(NAMESPACE, "users").kubeconfig(path));
        let why = observer.until_stale(&["kubeconfig", "cannot be read"]).await;
        assert!(!why.contains("t0ken"), "{why}");
    }
}

/// Checks that a provider with invalid options is stale and sends nothing.
#[tokio::test]
async fn invalid_options_send_no_request() {
    let world = Simulated::new();
    let mut observer = Observer::start(world.pods().selector(" "));
    let is_stale = async || matches!(observer.bench.health(), Some(Health::Stale(why)) if why.contains("selector"));
    eventually("the provider is stale because of its selector", is_stale).await;
    assert_eq!(world.fake.count_requests(""), 0);
}
