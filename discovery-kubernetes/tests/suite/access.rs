//! How the API server is reached: kubeconfig, token, TLS, namespace. Over TCP.

use std::{path::PathBuf, time::Duration};

use discovery_kubernetes::Pods;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use crate::support::{
    Eyes, NAMESPACE, Scratch, Simulated, World, eventually,
    fake::Mode,
    kubeconfig,
    wire::{listen, proxy},
};

#[tokio::test]
async fn tls_with_the_right_authority_works_and_with_a_wrong_one_is_told() {
    let (right, wrong) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &right).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let listening = listen(&world.fake, Some(tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config)))).await;
    let (scratch, server) = (Scratch::new(), format!("https://127.0.0.1:{}", listening.port));
    let path = kubeconfig(&scratch, &server, "t0ken-of-users", Some(&wrong.pem()));
    let pods = || Pods::new(NAMESPACE, "users").kubeconfig(&path);
    let mut eyes = Eyes::open(pods());
    let why = eyes.until_stale(&["cannot list pods", "certificate"]).await;
    assert_eq!(eyes.bench.sets(), 0, "{why}");
    kubeconfig(&scratch, &server, "t0ken-of-users", Some(&right.pem()));
    Eyes::open(pods()).until(&["p1@10.0.0.1"]).await;
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_that_is_no_longer_good_is_read_again() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.fake.world().token = Some("the-1st-token".to_owned());
    let listening = listen(&world.fake, None).await;
    let scratch = Scratch::new();
    let path = kubeconfig(&scratch, &format!("http://127.0.0.1:{}", listening.port), "the-1st-token", None);
    // No namespace: that of the context.
    let mut eyes = Eyes::open(Pods::new("", "users").kubeconfig(path));
    eyes.until(&["p1@10.0.0.1"]).await;
    world.fake.world().token = Some("the-2nd-token".to_owned());
    world.fake.disconnect();
    eyes.until_stale(&["does not know the credentials", "401", "namespace prod"]).await;
    world.start("p2", "10.0.0.2").await;
    assert_eq!(eyes.set(), ["p1@10.0.0.1"]);
    read_along::is_secret("the-2nd-token");
    scratch.write("token", "the-2nd-token");
    eyes.until(&["p1@10.0.0.1", "p2@10.0.0.2"]).await;
    eyes.until_well().await;
    eyes.bench.stop().await;
}

#[tokio::test]
async fn a_kubeconfig_that_names_another_server_is_read_when_the_old_one_gives_no_good_answer() {
    for mode in [Mode::Down, Mode::Refuses { verb: "", code: 503, body: None }] {
        let (mut old, mut new) = (Simulated::new(), Simulated::new());
        old.start("p1", "10.0.0.1").await;
        new.start("p2", "10.0.0.2").await;
        let servers = [listen(&old.fake, None).await, listen(&new.fake, None).await];
        let [at_old, at_new] = servers.each_ref().map(|listening| format!("http://127.0.0.1:{}", listening.port));
        let scratch = Scratch::new();
        let path = kubeconfig(&scratch, &at_old, "t0ken-of-users", None);
        let pods = Pods::new(NAMESPACE, "users").kubeconfig(path);
        let mut eyes = Eyes::open(pods.unreachable_for(Duration::from_secs(1)));
        eyes.until(&["p1@10.0.0.1"]).await;
        eyes.until_well().await;
        old.fake.set(mode);
        eyes.until_stale(&["cannot"]).await;
        kubeconfig(&scratch, &at_new, "t0ken-of-users", None);
        // Its versions are the same and mean something else.
        eyes.until(&["p2@10.0.0.2"]).await;
        eyes.until_well().await;
    }
}

#[tokio::test]
async fn a_kubeconfig_that_is_missing_or_odd_is_named_and_read_when_it_is_there() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    let listening = listen(&world.fake, None).await;
    let scratch = Scratch::new();
    let path = scratch.0.join("kubeconfig");
    let mut eyes = Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(&path));
    let name = path.display().to_string();
    eyes.until_stale(&[&name, "check the path"]).await;
    scratch.write("kubeconfig", "hello");
    tokio::time::sleep(Duration::from_millis(300)).await;
    eyes.until_stale(&["kubeconfig"]).await;
    kubeconfig(&scratch, &format!("http://127.0.0.1:{}", listening.port), "t0ken-of-users", None);
    eyes.until(&["p1@10.0.0.1"]).await;
    let other = Pods::new(NAMESPACE, "users").kubeconfig(&path).context("nowhere");
    Eyes::open(other).until_stale(&["nowhere", "check KUBECONFIG, the file and the context"]).await;
}

/// A kubeconfig whose credentials are what a shell script writes.
fn kubeconfig_of_a_program(scratch: &Scratch, server: &str, script: &str) -> PathBuf {
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

fn credentials(token: &str) -> String {
    read_along::is_secret(token);
    format!(
        r#"echo '{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{token}"}}}}'"#
    )
}

#[tokio::test]
async fn a_program_that_gives_credentials_holds_up_nothing_else() {
    let mut world = Simulated::new();
    world.start("p1", "10.0.0.1").await;
    world.fake.world().token = Some("t0ken-of-a-program".to_owned());
    let (listening, scratch) = (listen(&world.fake, None).await, Scratch::new());
    let script = format!("sleep 3; {}", credentials("t0ken-of-a-program"));
    let path = kubeconfig_of_a_program(&scratch, &format!("http://127.0.0.1:{}", listening.port), &script);
    let mut eyes = Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(path));
    let mut moments = 0;
    while eyes.bench.sets() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        moments += 1;
    }
    assert!(moments > 30, "{moments} in three seconds: this thread was held up");
    eyes.until(&["p1@10.0.0.1"]).await;
}

#[tokio::test]
async fn a_program_that_fails_is_told_with_what_it_says_and_not_with_what_it_gives() {
    let scratch = Scratch::new();
    let fails = format!("{}; echo 'log in first' >&2; exit 3", credentials("t0ken-of-a-failure"));
    let path = kubeconfig_of_a_program(&scratch, "http://127.0.0.1:9", &fails);
    let mut eyes = Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(&path));
    let why = eyes.until_stale(&["/bin/sh", "the kubeconfig names for credentials", "log in first"]).await;
    assert!(!why.contains("t0ken") && !why.contains("s3cret"), "{why}");
    kubeconfig_of_a_program(&scratch, "http://127.0.0.1:9", "echo 'token: [t0ken-of-a-failure'");
    let why = eyes.until_stale(&["/bin/sh", "has written something else"]).await;
    assert!(!why.contains("t0ken"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_hangs_is_told_and_not_run_again_beside_itself() {
    let scratch = Scratch::new();
    let started = scratch.0.join("started");
    let script = format!("echo $$ >> {}; exec sleep 20", started.display());
    let path = kubeconfig_of_a_program(&scratch, "http://127.0.0.1:9", &script);
    let mut eyes = Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(path));
    eyes.until_stale(&["the program of the kubeconfig", "within 30 s", "run it by hand"]).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    while !started.exists() {
        std::thread::yield_now(); // the program's time is real
    }
    let pids = std::fs::read_to_string(&started).unwrap();
    assert_eq!(pids.lines().count(), 1, "{pids}");
    end(&pids);
}

/// Ends programs by their ids.
fn end(pids: &str) {
    for pid in pids.lines() {
        let _ = std::process::Command::new("kill").arg(pid).status();
    }
}

#[test]
fn a_runtime_can_end_while_a_program_hangs() {
    let scratch = Scratch::new();
    let started = scratch.0.join("started");
    let script = format!("echo $$ >> {}; exec sleep 60", started.display());
    let path = kubeconfig_of_a_program(&scratch, "http://127.0.0.1:9", &script);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let eyes = Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(path));
        eventually("it runs", async || std::fs::read_to_string(&started).is_ok_and(|pids| pids.ends_with('\n'))).await;
        eyes.bench.stop().await;
    });
    let begun = tokio::time::Instant::now();
    drop(runtime);
    let took = begun.elapsed();
    end(&std::fs::read_to_string(&started).unwrap());
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[tokio::test]
async fn the_proxy_of_a_kubeconfig_is_used() {
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
        Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(&path)).until(&["p1@10.0.0.1"]).await;
        assert!(proxy.connections() > before, "{scheme}");
    }
    let scratch = Scratch::new();
    let path =
        kubeconfig(&scratch, "http://127.0.0.1:9\n      proxy-url: ftp://me:passw0rd@127.0.0.1:1", "t0ken", None);
    read_along::is_secret("passw0rd");
    let mut eyes = Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(path));
    let why = eyes.until_stale(&["ftp", "proxy", "http, https or socks5"]).await;
    assert!(!why.contains("passw0rd"), "{why}");
}

#[tokio::test]
async fn a_kubeconfig_that_is_wrong_is_not_repeated() {
    let scratch = Scratch::new();
    read_along::is_secret("t0ken-of-a-wrong-file");
    for odd in ["exec: 7", "token: [", "client-key-data: {}", "nonsense", "exec: t0ken-of-a-wrong-file"] {
        let text = format!(
            "apiVersion: v1\nusers:\n  - name: test\n    user:\n      token: t0ken-of-a-wrong-file\n      {odd}\n"
        );
        let path = scratch.write("kubeconfig", text);
        let mut eyes = Eyes::open(Pods::new(NAMESPACE, "users").kubeconfig(path));
        let why = eyes.until_stale(&["kubeconfig", "cannot be read"]).await;
        assert!(!why.contains("t0ken"), "{why}");
    }
}

#[tokio::test]
async fn options_that_cannot_be_used_ask_nobody() {
    let world = Simulated::new();
    let mut eyes = Eyes::open(world.pods().selector(" "));
    let runs =
        async || matches!(eyes.bench.health(), Some(groupcache_core::Health::Stale(why)) if why.contains("selector"));
    eventually("it says so", runs).await;
    assert_eq!(world.fake.asked(""), 0);
}
