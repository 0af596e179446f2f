//! Two processes with one port each, which serve users over HTTPS and peers over mutual TLS.
#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, helpers included, that drives processes from outside in real time"
)]
mod support;

use std::{fs, time::Instant};

use process::Signal;
use serde_json::Value;
use support::{Client, Stage, eventually, exits_with_success, start};

/// Number of calls of the loader.
const LOADS: &str = "groupcache_loads_total{group=\"primes\"}";

/// Number of nodes in the view that own keys.
const MEMBERS: &str = "groupcache_members{state=\"ready\"}";

/// Returns the answer of the process at `port` for the n-th prime.
async fn prime(client: &Client, port: u16, n: u32) -> Value {
    let answer = client.get(port, &format!("/primes/{n}")).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

/// Returns the value of a metric of the process at `port`.
async fn metric(client: &Client, port: u16, name: &str) -> u64 {
    let text = client.get(port, "/metrics").await.unwrap().body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Checks that both processes answer users alike, that each prime is computed once, that bad requests are refused and
/// counted, and that the peer service answers only a client with the certificate of a peer.
#[tokio::test]
async fn pages_are_loaded_once_and_unknown_peers_are_refused() {
    let stage = Stage::new("pages").await;
    let [a, b] = stage.ports;
    let users = Client::of(&stage, None);

    let mut owners = Vec::new();
    for n in 1..=20 {
        let at_a = prime(&users, a, n).await;
        assert_eq!(at_a, prime(&users, b, n).await);
        owners.push(at_a["computed_by"].as_str().unwrap().to_owned());
    }
    assert!(
        ["a", "b"].iter().all(|name| owners.iter().any(|owner| owner == name)),
        "each node owns primes: {owners:?}"
    );
    assert_eq!(prime(&users, a, 20).await["prime"], 71);
    let loads = metric(&users, a, LOADS).await + metric(&users, b, LOADS).await;
    assert_eq!(loads, 20, "each prime is loaded once");
    assert_eq!(metric(&users, a, MEMBERS).await, 2);

    for path in ["/primes/0", "/primes/many", "/primes/300001"] {
        assert_eq!(users.get(a, path).await.unwrap().status, 400, "{path}");
    }
    assert_eq!(users.get(a, "/primes/007").await.unwrap().status, 200);
    assert_eq!(users.get(a, "/nothing").await.unwrap().status, 404);
    let counted = "http_requests_total{page=\"/primes/{n}\",status=\"400\"}";
    assert_eq!(metric(&users, a, counted).await, 3);

    // Three clients call the peer service: without a certificate, with a certificate for another purpose, and with the
    // certificate of a peer.
    let peer_service = "/groupcache.v1.Peer/Get";
    let refused = users.post(a, peer_service).await.unwrap();
    assert_eq!(refused.header("grpc-status"), Some("16"), "{refused:?}");
    let intruder = Client::of(&stage, Some(stage.issue("users.example.org")));
    let refused = intruder.post(a, peer_service).await.unwrap();
    assert_eq!(refused.header("grpc-status"), Some("16"), "{refused:?}");
    let peer = Client::of(&stage, Some(stage.certificate_of("a")));
    assert_ne!(peer.post(a, peer_service).await.unwrap().header("grpc-status"), Some("16"));
    assert_eq!(metric(&users, a, "groupcache_node_unauthenticated_total").await, 2);

    // A certificate of another authority ends the handshake. A client without TLS gets no page.
    let other = Stage::certificates("other-authority", &["b"]);
    let intruder = Client::of(&stage, Some(support::certificate(other.directory(), "b")));
    assert!(intruder.get(a, "/").await.is_err(), "the server refuses a certificate of another authority");
    assert!(!support::get_without_tls(a).contains("200 OK"));
}

/// Checks that a process answers its running request after SIGTERM and exits with success, and that the other process
/// then serves all keys alone.
#[tokio::test]
async fn terminated_process_answers_its_running_request() {
    let mut stage = Stage::new("ends").await;
    let [a, b] = stage.ports;
    let users = Client::of(&stage, None);
    // The owner of the key computes for more than a second.
    let slow = tokio::spawn(async move {
        let answer = Client::clone(&users).get(a, "/primes/250000").await.unwrap();
        (answer.status, Instant::now())
    });
    let users = Client::of(&stage, None);
    let loads = async |port| metric(&users, port, LOADS).await;
    eventually("the load has begun", async || loads(a).await + loads(b).await == 1).await;

    let asked = Instant::now();
    stage.processes[0].signal(Signal::TERM);
    eventually("b logs that a drains", async || stage.processes[1].out.said("a (draining)")).await;
    assert!(!slow.is_finished(), "b owns the keys of a before a has answered its last request");
    let (status, answered) = slow.await.unwrap();
    assert_eq!(status, 200, "{:#?}", stage.processes[0].out.lines());
    println!("request answered {:?} after SIGTERM", answered.saturating_duration_since(asked));
    assert!(exits_with_success(&mut stage.processes[0]), "{:#?}", stage.processes[0].out.lines());
    println!("process ended {:?} after SIGTERM", asked.elapsed());
    assert!(!stage.processes[0].out.said("cutting off"), "{:#?}", stage.processes[0].out.lines());

    for n in 1..=20 {
        assert_eq!(prime(&users, b, n).await["n"], n);
    }
    eventually("b is the only member", async || metric(&users, b, MEMBERS).await == 1).await;
    assert!(users.get(a, "/").await.is_err());
}

/// Checks that connections which ask for nothing keep neither users nor peers out, however many there are.
#[tokio::test]
async fn idle_connections_give_their_places_to_others() {
    let stage = Stage::with("idle", &[("MAX_CONNECTIONS", "8")]).await;
    let [a, b] = stage.ports;
    let strangers = Client::of(&stage, None);
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(strangers.idle(a).await.unwrap());
    }
    let users = Client::of(&stage, None);
    for n in 1..=20 {
        assert_eq!(prime(&users, a, n).await, prime(&users, b, n).await);
    }
    assert_eq!(metric(&users, b, MEMBERS).await, 2, "the connection of the peers goes on");
    drop(idle);
}

/// Checks that the server shows a renewed certificate, and that unusable files change nothing.
#[tokio::test]
async fn certificates_are_replaced_without_a_restart() {
    let stage = Stage::new("renewed").await;
    let [a, b] = stage.ports;
    let users = Client::of(&stage, None);
    let first = users.get(a, "/").await.unwrap().server_certificate;
    // A key file without a key is unusable, so the server keeps its certificate.
    let key = stage.file("a-key.pem");
    let kept = fs::read(&key).unwrap();
    fs::write(&key, "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n").unwrap();
    eventually("a logs the unusable file", async || stage.processes[0].out.said("keeps its certificate")).await;
    assert_eq!(users.get(a, "/").await.unwrap().server_certificate, first);

    fs::write(&key, kept).unwrap();
    support::make_certificates(stage.directory(), &["a", "b"]);
    let begun = Instant::now();
    eventually("users see the new certificate", async || users.get(a, "/").await.unwrap().server_certificate != first)
        .await;
    println!("the server shows a new certificate after {:?} (figure: 10 s)", begun.elapsed());
    assert_eq!(prime(&users, a, 9).await, prime(&users, b, 9).await);
}

/// Checks that a process which cannot start ends with one line that names the setting.
#[tokio::test]
async fn bad_setting_ends_the_process_with_one_line() {
    let stage = Stage::new("wrong").await;
    let directory = stage.directory().display().to_string();
    let (taken, free) = (stage.ports[0].to_string(), process::free_ports(1).to_string());
    for (vars, expected) in [
        (vec![("NODE_NAME", "a"), ("CERTIFICATES", &directory)], "GROUP_PORT is not set"),
        (vec![("NODE_NAME", "a"), ("CERTIFICATES", &directory), ("GROUP_PORT", &taken)], "cannot listen on 127.0.0.1"),
        (
            vec![("NODE_NAME", "c"), ("CERTIFICATES", &directory), ("GROUP_PORT", &free)],
            "c.pem, make it with the program",
        ),
        (vec![("NODE_NAME", "a"), ("GROUP_PORT", &free), ("PEERS", "a@nowhere")], "PEERS cannot be read"),
    ] {
        let mut process = start(&vars);
        assert!(!exits_with_success(&mut process), "{vars:?}");
        let lines = process.out.lines();
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].starts_with("axum-https: ") && lines[0].contains(expected), "{lines:#?}");
    }
}
