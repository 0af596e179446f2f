//! Clients and servers that are not peers: each is refused with a reason and counted, and keeps no peer out.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    self, PATIENCE, Peers, eventually, identity,
    pki::{Authority, Pem},
    unlisted_client::{PREFACE, UnlistedClient, listen, send_and_read},
    warnings::Warnings,
};
use groupcache_core::{BoxError, Group, Node, PeerId, discovery::Peer, stats::NodeStats};
use rustls::version::TLS12;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

const TLS_ALERT: u8 = 0x15;

/// Node `a`, which lets in peers named `*.peers`.
struct Scene {
    ours: Authority,
    a: Node,
    _group: Group<String>,
}

async fn echo((): &(), key: &str) -> Result<String, BoxError> {
    Ok(key.to_owned())
}

fn group(node: &Node) -> Group<String> {
    node.group("data").capacity_bytes(1 << 20).loader_with((), echo).build().unwrap()
}

impl Scene {
    async fn start() -> Self {
        let ours = Authority::new("ours");
        let tls = ours.issue("a.peers").mutual(&ours.pem());
        let a = Node::builder().identity(identity("a")).mutual_tls(tls).start().await.unwrap();
        Self { _group: group(&a), ours, a }
    }

    fn address(&self) -> SocketAddr {
        self.a.address()
    }

    fn certificate(&self) -> Pem {
        self.ours.issue("b.peers")
    }

    /// Checks that peer `b` with a valid certificate connects and is served.
    async fn check_valid_peer(&self) {
        let peers = Peers::default();
        peers.set(vec![support::peer(&self.a)]);
        let tls = self.certificate().mutual(&self.ours.pem());
        let b = Node::builder().identity(identity("b")).mutual_tls(tls).provider(peers).start().await.unwrap();
        let group = group(&b);
        eventually("a is a member with the group", || b.members().len() == 2 && b.peers_with_group("data") == 1).await;
        let of_a: Vec<_> =
            (0..50).map(|n| format!("key-{n}")).filter(|key| group.inspect().owner_of(key) == self.a.id()).collect();
        for key in &of_a {
            assert_eq!(&group.get(key).await.unwrap(), key);
        }
        assert_eq!((group.stats().loads, of_a.is_empty()), (0, false), "all keys are loaded at their owner");
    }

    /// Returns the bytes that a valid peer sends to `a` from its first byte until it is a member.
    async fn record(&self) -> Vec<u8> {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let (to, recorded) = (self.address(), Arc::clone(&sent));
        let recorder = listen(move |tcp| {
            let recorded = Arc::clone(&recorded);
            async move {
                let (mut from, mut back) = tcp.into_split();
                let (mut answers, mut onward) = TcpStream::connect(to).await.unwrap().into_split();
                tokio::spawn(async move { copy(&mut answers, &mut back).await });
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut bytes).await {
                    recorded.lock().unwrap().extend_from_slice(&bytes[..n]);
                    let _ = onward.write_all(&bytes[..n]).await;
                }
            }
        });
        let peers = Peers::default();
        peers.set(vec![Peer::member(self.a.id(), [recorder.await.into()])]);
        let tls = self.certificate().mutual(&self.ours.pem());
        let b = Node::builder().identity(identity("b")).mutual_tls(tls).provider(peers).start().await.unwrap();
        eventually("a is a member", || b.members().len() == 2).await;
        sent.lock().unwrap().clone()
    }
}

/// An attempt to connect that the node refuses.
#[derive(Clone)]
enum Attempt {
    /// A handshake that ends with an alert or a closed connection.
    Tls(UnlistedClient),
    /// Bytes, after which the client closes its side.
    Bytes(Vec<u8>),
}

impl Attempt {
    /// Makes the attempt and returns the answer of the node.
    async fn run(&self, node: SocketAddr) -> String {
        let answer = async {
            match self {
                Self::Tls(client) => client.attempt(node, "a.peers").await,
                Self::Bytes(bytes) => match &*send_and_read(node, bytes).await {
                    [] => "closed".to_owned(),
                    [TLS_ALERT, ..] => "an alert".to_owned(),
                    other => format!("{other:?}"),
                },
            }
        };
        timeout(Duration::from_secs(5), answer).await.expect("the node answers within 5 s")
    }
}

struct Case {
    name: &'static str,
    attempt: Attempt,
    /// Part of the answer to the client.
    answer: &'static str,
    /// Part of the log line of the node.
    line: &'static str,
    counter: fn(&NodeStats) -> u64,
}

async fn cases(scene: &Scene) -> Vec<Case> {
    let good = UnlistedClient::new(&scene.ours, scene.certificate());
    let theirs = Authority::new("theirs").issue("b.peers");
    let recorded = scene.record().await;
    let tls = |change: fn(&mut UnlistedClient)| Attempt::Tls(good.with(change));
    let bytes = |bytes: &[u8]| Attempt::Bytes(bytes.to_vec());
    let plain = "the other side does not speak TLS and this node does; compare on both nodes";
    let broken = "the connection broke during the handshake";
    vec![
        Case {
            name: "no certificate",
            attempt: tls(|client| client.certificate = None),
            answer: "CertificateRequired",
            line: "the other side presented no certificate",
            counter: |stats| stats.refused_certificates,
        },
        Case {
            name: "a certificate of another authority",
            attempt: Attempt::Tls(good.with(|client| client.certificate = Some(theirs))),
            answer: "UnknownCA",
            line: "the presented certificate is of an authority that this node does not know",
            counter: |stats| stats.refused_certificates,
        },
        Case {
            name: "a name that is not let in",
            attempt: Attempt::Tls(good.with(|client| client.certificate = Some(scene.ours.issue("b.users")))),
            answer: "CertificateUnknown",
            line: "the presented certificate is for b.users, and peer_names lets none of that in",
            counter: |stats| stats.refused_names,
        },
        Case {
            name: "TLS 1.2 only",
            attempt: tls(|client| client.version = &TLS12),
            answer: "ProtocolVersion",
            line: "the other side speaks another TLS; nodes speak TLS 1.3 only",
            counter: |stats| stats.refused_tls,
        },
        Case {
            name: "no ALPN",
            attempt: tls(|client| client.alpn = None),
            answer: "closed",
            line: "the other side does not ask for HTTP/2 (ALPN h2)",
            counter: |stats| stats.refused_tls,
        },
        Case {
            name: "HTTP/1.1 only",
            attempt: tls(|client| client.alpn = Some("http/1.1")),
            answer: "NoApplicationProtocol",
            line: "the other side does not offer HTTP/2 (ALPN h2)",
            counter: |stats| stats.refused_tls,
        },
        Case {
            name: "HTTP/2 without TLS",
            attempt: bytes(PREFACE),
            answer: "an alert",
            line: plain,
            counter: |stats| stats.refused_plain,
        },
        Case {
            name: "HTTP/1.1 without TLS",
            attempt: bytes(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            answer: "an alert",
            line: plain,
            counter: |stats| stats.refused_plain,
        },
        Case { name: "no bytes", attempt: bytes(b""), answer: "an alert", line: "", counter: |stats| stats.probes },
        Case {
            name: "a part of a ClientHello",
            attempt: bytes(&recorded[..100]),
            answer: "closed",
            line: "the other side closed it in the middle",
            counter: |stats| stats.handshakes_broken,
        },
        Case {
            name: "garbage that begins like TLS",
            attempt: bytes(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]),
            answer: "an alert",
            line: broken,
            counter: |stats| stats.handshakes_broken,
        },
        Case {
            name: "a replay of the bytes of a valid peer",
            attempt: Attempt::Bytes(recorded),
            answer: "",
            line: broken,
            counter: |stats| stats.handshakes_broken,
        },
    ]
}

#[tokio::test]
async fn unlisted_client_is_refused_logged_and_counted() {
    let mut at = 0;
    loop {
        // Each case has a node of its own, because a node writes at most ten of these lines a second.
        let scene = Scene::start().await;
        let Some(case) = cases(&scene).await.into_iter().nth(at) else { break };
        let (warnings, _guard) = Warnings::capture();
        let (before, accepted) = ((case.counter)(&scene.a.stats()), scene.a.stats().accepted);
        let answer = case.attempt.run(scene.address()).await;
        assert!(answer.contains(case.answer), "{}: the answer is {answer:?}", case.name);
        eventually(case.name, || (case.counter)(&scene.a.stats()) == before + 1).await;
        let lines = warnings.lines_with("refused a connection");
        // A connection without a byte is a probe of the port and no line.
        assert_eq!(lines.len(), usize::from(!case.line.is_empty()), "{}: {lines:?}", case.name);
        let is_told = |line: &String| line.contains(case.line) && line.contains("remote=127.0.0.1:");
        assert!(lines.iter().all(is_told), "{}: {lines:?}", case.name);
        assert_eq!(scene.a.stats().accepted, accepted, "{}", case.name);
        scene.check_valid_peer().await;
        at += 1;
    }
    assert_eq!(at, 12);
}

/// Checks that health checks of the port, which connect and close or reset, are counted and write no warning.
#[tokio::test]
async fn probe_of_the_port_is_counted_and_not_logged() {
    let (warnings, _guard) = Warnings::capture();
    let node = Node::builder().identity(identity("a")).start().await.unwrap();
    for _ in 0..20 {
        drop(TcpStream::connect(node.address()).await.unwrap());
        let reset = TcpStream::connect(node.address()).await.unwrap();
        reset.set_zero_linger().unwrap();
    }
    eventually("all probes are counted", || node.stats().probes == 40).await;
    assert_eq!(warnings.lines_with("refused a connection"), [""; 0]);
    assert_eq!(node.stats().handshakes_broken, 0);
}

#[tokio::test]
async fn silent_or_stalled_client_is_closed_after_five_seconds() {
    let (warnings, _guard) = Warnings::capture();
    let scene = Scene::start().await;
    let recorded = scene.record().await;
    let mut silent = Vec::new();
    for sent in [&b""[..], &recorded[..100]] {
        let mut tcp = TcpStream::connect(scene.address()).await.unwrap();
        tcp.write_all(sent).await.unwrap();
        silent.push(tcp);
    }
    scene.check_valid_peer().await;
    for mut tcp in silent {
        let closed = timeout(PATIENCE, tcp.read(&mut [0])).await.expect("the node closes the connection");
        assert_eq!(closed.unwrap_or(0), 0);
    }
    eventually("both are counted", || scene.a.stats().handshake_timeouts == 2).await;
    assert_eq!(warnings.lines_with("the other side did not finish its handshake in time").len(), 2);
}

/// Checks that an address without a valid peer leads to an error within 5 s, and that gets do not wait for that peer.
#[tokio::test]
async fn invalid_server_is_an_error_within_five_seconds() {
    let ours = Authority::new("ours");
    let good = UnlistedClient::new(&ours, ours.issue("b.peers"));
    let silent = listen(|mut tcp| async move { drop(tcp.read_to_end(&mut Vec::new()).await) });
    let closes = listen(|mut tcp| async move {
        let _ = tcp.read(&mut [0; 10]).await;
    });
    let http = listen(|mut tcp| async move {
        let _ = tcp.read(&mut [0; 10_000]).await;
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (name, server, is_about_trust, text) in [
        ("no listener", closed, false, "refused"),
        ("TLS 1.2", good.with(|s| s.version = &TLS12).listen().await, true, "the other side does not speak TLS 1.3"),
        (
            "no ALPN",
            good.with(|s| s.alpn = None).listen().await,
            true,
            "the other side does not offer HTTP/2 (ALPN h2)",
        ),
        (
            "HTTP/1.1",
            good.with(|s| s.alpn = Some("http/1.1")).listen().await,
            true,
            "the other side does not offer HTTP/2 (ALPN h2)",
        ),
        (
            "HTTP without TLS",
            http.await,
            true,
            "the other side does not speak TLS and this node does; compare on both nodes",
        ),
        ("closes during the handshake", closes.await, false, "broke"),
        ("sends nothing", silent.await, false, "the other side did not finish its handshake in time"),
        ("sends nothing after the handshake", good.clone().listen().await, false, "sent no Hello"),
    ] {
        let peers = Peers::default();
        let tls = ours.issue("a.peers").mutual(&ours.pem());
        let a = Node::builder().identity(identity("a")).mutual_tls(tls).provider(peers.clone()).start().await.unwrap();
        let group = group(&a);
        peers.set(vec![Peer::member(PeerId::new("b").unwrap(), [server.into()])]);
        let error = timeout(Duration::from_secs(5), async {
            loop {
                match a.unconnected().pop() {
                    Some(unconnected) => return unconnected.error,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
                assert_eq!(group.get("key").await.expect("a serves the get"), "key");
            }
        });
        let error = error.await.unwrap_or_else(|_| panic!("{name}: no error within 5 s"));
        assert_eq!((error.is_unauthenticated(), error.is_unreachable()), (is_about_trust, !is_about_trust), "{name}");
        assert!(error.to_string().contains(text), "{name}: {error}");
        assert_eq!(a.members().len(), 1, "{name}");
        println!("{name}: {error}");
    }
}

/// Checks that a thousand refused connections are all counted, produce at most ten log lines a second and keep no valid
/// peer out.
#[tokio::test]
async fn thousand_bad_handshakes_keep_no_peer_out() {
    const ATTEMPTS: usize = 1000;
    let scene = Scene::start().await;
    let attempts: Vec<_> = cases(&scene).await.into_iter().map(|case| case.attempt).collect();
    let (warnings, _guard) = Warnings::capture();
    let began = Instant::now();
    let mut under_way = JoinSet::new();
    for n in 0..ATTEMPTS {
        if under_way.len() == 50 {
            under_way.join_next().await.expect("an attempt is under way").expect("the attempt ends");
        }
        let (attempt, address) = (attempts[n % attempts.len()].clone(), scene.address());
        under_way.spawn(async move { attempt.run(address).await });
    }
    under_way.join_all().await;
    let refused = |stats: &NodeStats| {
        let about_certificates = stats.refused_certificates + stats.refused_names;
        stats.refused_plain + stats.refused_tls + about_certificates + stats.handshakes_broken + stats.probes
    };
    // The connection of the recorded peer may have been counted too.
    eventually("all attempts are counted", || refused(&scene.a.stats()) >= ATTEMPTS as u64).await;
    let seconds = began.elapsed().as_secs() as usize + 1;
    let lines = warnings.lines_with("refused a connection");
    println!("{ATTEMPTS} in {:?}, {} lines", began.elapsed(), lines.len());
    assert!((10..=10 * (seconds + 1)).contains(&lines.len()), "{} lines in {seconds} s", lines.len());
    scene.check_valid_peer().await;
    assert_eq!((scene.a.stats().handshake_timeouts, scene.a.stats().connections_evicted), (0, 0));
}
