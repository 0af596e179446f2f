//! Two processes with one port each: users by HTTPS, peers by mutual TLS, strangers not at all.
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
use support::{Client, Stage, ends, eventually, start};

/// The n-th prime, as one of the processes says it.
async fn prime(client: &Client, port: u16, n: u32) -> Value {
    let answer = client.get(port, &format!("/primes/{n}")).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

async fn metric(client: &Client, port: u16, name: &str) -> u64 {
    let text = client.get(port, "/metrics").await.unwrap().body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[tokio::test]
async fn users_get_pages_peers_share_them_and_strangers_get_nothing_of_the_cache() {
    let stage = Stage::new("pages").await;
    let [a, b] = stage.ports;
    let users = Client::of(&stage, None);

    let mut owners = Vec::new();
    for n in 1..=20 {
        let at_a = prime(&users, a, n).await;
        assert_eq!(at_a, prime(&users, b, n).await);
        owners.push(at_a["computed_by"].as_str().unwrap().to_owned());
    }
    assert!(["a", "b"].iter().all(|name| owners.iter().any(|owner| owner == name)), "each has its share: {owners:?}");
    assert_eq!(prime(&users, a, 20).await["prime"], 71);
    let loads = metric(&users, a, "groupcache_loads_total").await + metric(&users, b, "groupcache_loads_total").await;
    assert_eq!(loads, 20, "each once");
    assert_eq!(metric(&users, a, "groupcache_members").await, 2);

    for path in ["/primes/0", "/primes/many", "/primes/300001"] {
        assert_eq!(users.get(a, path).await.unwrap().status, 400, "{path}");
    }
    assert_eq!(users.get(a, "/primes/007").await.unwrap().status, 200);
    assert_eq!(users.get(a, "/nothing").await.unwrap().status, 404);
    let counted = "http_requests_total{page=\"/primes/{n}\",status=\"400\"}";
    assert_eq!(metric(&users, a, counted).await, 3);

    // The peer service, asked for by a user without a certificate, by one with a certificate for something else, by a peer.
    let peer_service = "/groupcache.v1.Peer/Get";
    let refused = users.post(a, peer_service).await.unwrap();
    assert_eq!(refused.header("grpc-status"), Some("16"), "{refused:?}");
    let intruder = Client::of(&stage, Some(stage.issue("users.example.org")));
    let refused = intruder.post(a, peer_service).await.unwrap();
    assert_eq!(refused.header("grpc-status"), Some("16"), "{refused:?}");
    let peer = Client::of(&stage, Some(stage.certificate_of("a")));
    assert_ne!(peer.post(a, peer_service).await.unwrap().header("grpc-status"), Some("16"));
    assert_eq!(metric(&users, a, "groupcache_node_unauthenticated_total").await, 2);

    // Of another authority; and no TLS at all.
    let other = Stage::certificates("other-authority", &["b"]);
    let stranger = Client::of(&stage, Some(support::certificate(other.directory(), "b")));
    assert!(stranger.get(a, "/").await.is_err(), "a certificate that is shown must be good");
    assert!(!support::plain(a).contains("200 OK"));
}

#[tokio::test]
async fn who_is_asked_to_end_answers_what_it_was_asked_and_the_other_goes_on() {
    let mut stage = Stage::new("ends").await;
    let [a, b] = stage.ports;
    let users = Client::of(&stage, None);
    // A second of work and more, at whichever of them.
    let slow = tokio::spawn(async move {
        let answer = Client::clone(&users).get(a, "/primes/250000").await.unwrap();
        (answer.status, Instant::now())
    });
    let users = Client::of(&stage, None);
    let loads = async |port| metric(&users, port, "groupcache_loads_total").await;
    eventually("the work has begun", async || loads(a).await + loads(b).await == 1).await;

    let asked = Instant::now();
    stage.processes[0].signal(Signal::TERM);
    eventually("b hears that a leaves", async || stage.processes[1].out.said("a (draining)")).await;
    assert!(!slow.is_finished(), "others own its keys before it is done with its last requests");
    let (status, answered) = slow.await.unwrap();
    assert_eq!(status, 200, "{:#?}", stage.processes[0].out.lines());
    println!("answered {:?} after it was asked to end", answered.saturating_duration_since(asked));
    assert!(ends(&mut stage.processes[0]), "{:#?}", stage.processes[0].out.lines());
    println!("ended {:?} after it was asked to", asked.elapsed());
    assert!(!stage.processes[0].out.said("cutting off"), "{:#?}", stage.processes[0].out.lines());

    for n in 1..=20 {
        assert_eq!(prime(&users, b, n).await["n"], n);
    }
    eventually("b is alone", async || metric(&users, b, "groupcache_members").await == 1).await;
    assert!(users.get(a, "/").await.is_err());
}

#[tokio::test]
async fn certificates_are_replaced_without_a_restart() {
    let stage = Stage::new("renewed").await;
    let [a, b] = stage.ports;
    let users = Client::of(&stage, None);
    let first = users.get(a, "/").await.unwrap().server_certificate;
    // Half of a pair is no certificate: everything stays as it is.
    let key = stage.file("a-key.pem");
    let kept = fs::read(&key).unwrap();
    fs::write(&key, "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n").unwrap();
    eventually("it says that it cannot read it", async || stage.processes[0].out.said("stays as it is")).await;
    assert_eq!(users.get(a, "/").await.unwrap().server_certificate, first);

    fs::write(&key, kept).unwrap();
    support::make_certificates(stage.directory(), &["a", "b"]);
    let begun = Instant::now();
    eventually("users see the new one", async || users.get(a, "/").await.unwrap().server_certificate != first).await;
    println!("a new certificate is shown after {:?} (figure: 10 s)", begun.elapsed());
    assert_eq!(prime(&users, a, 9).await, prime(&users, b, 9).await);
}

#[tokio::test]
async fn what_is_wrong_is_said_in_a_sentence() {
    let stage = Stage::new("wrong").await;
    let directory = stage.directory().display().to_string();
    let (taken, free) = (stage.ports[0].to_string(), process::free_ports(1).to_string());
    for (vars, says) in [
        (vec![("NODE_NAME", "a"), ("CERTIFICATES", &directory)], "GROUP_PORT is not set"),
        (vec![("NODE_NAME", "a"), ("CERTIFICATES", &directory), ("GROUP_PORT", &taken)], "cannot listen on 127.0.0.1"),
        (
            vec![("NODE_NAME", "c"), ("CERTIFICATES", &directory), ("GROUP_PORT", &free)],
            "c.pem, make it with the program",
        ),
        (vec![("NODE_NAME", "a"), ("GROUP_PORT", &free), ("PEERS", "a@nowhere")], "PEERS cannot be read"),
    ] {
        let mut process = start(&vars);
        assert!(!ends(&mut process), "{vars:?}");
        let said = process.out.lines();
        assert_eq!(said.len(), 1, "{said:#?}");
        assert!(said[0].starts_with("axum-https: ") && said[0].contains(says), "{said:#?}");
    }
}
