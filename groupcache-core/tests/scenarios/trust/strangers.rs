//! Clients and servers that no node would be: each is refused in words and counted, and keeps no peer out.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    self, PATIENCE, Peers, eventually, identity,
    pki::{Authority, Pem},
    stranger::{PREFACE, Stranger, listen, say},
    warnings::Warnings,
};
use groupcache_core::{BoxError, Group, Node, NodeStats, Peer, PeerId};
use rustls::version::TLS12;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

const TLS_ALERT: u8 = 0x15;

/// Node `a`, which lets in who is called `*.peers`.
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

    /// A peer that does everything right and is called b connects and is served.
    async fn serves_a_good_peer(&self) {
        let peers = Peers::default();
        peers.set(vec![support::peer(&self.a)]);
        let tls = self.certificate().mutual(&self.ours.pem());
        let b = Node::builder().identity(identity("b")).mutual_tls(tls).provider(peers).start().await.unwrap();
        let group = group(&b);
        eventually("a is a member with the group", || b.members().len() == 2 && b.peers_with_group("data") == 1).await;
        let of_a: Vec<_> =
            (0..50).map(|n| format!("key-{n}")).filter(|key| group.owner_of(key) == self.a.id()).collect();
        for key in &of_a {
            assert_eq!(&group.get(key).await.unwrap(), key);
        }
        assert_eq!((group.stats().loads, of_a.is_empty()), (0, false), "all of them at their owner");
    }

    /// What a good peer says to `a` from its first byte until it is a member.
    async fn record(&self) -> Vec<u8> {
        let said = Arc::new(Mutex::new(Vec::new()));
        let (to, recorded) = (self.address(), Arc::clone(&said));
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
        said.lock().unwrap().clone()
    }
}

/// One way to come to the door and not be let in.
#[derive(Clone)]
enum Knock {
    /// A handshake that ends in an alert, or in silence.
    Tls(Stranger),
    /// Bytes, and then the end.
    Bytes(Vec<u8>),
}

impl Knock {
    /// What the node answers.
    async fn at(&self, node: SocketAddr) -> String {
        let answer = async {
            match self {
                Self::Tls(stranger) => stranger.knock(node, "a.peers").await,
                Self::Bytes(bytes) => match &*say(node, bytes).await {
                    [] => "closed".to_owned(),
                    [TLS_ALERT, ..] => "an alert".to_owned(),
                    other => format!("{other:?}"),
                },
            }
        };
        timeout(Duration::from_secs(5), answer).await.expect("an answer within 5 s")
    }
}

struct Case {
    name: &'static str,
    knock: Knock,
    /// What it hears says so.
    hears: &'static str,
    line: &'static str,
    counter: fn(&NodeStats) -> u64,
}

async fn cases(scene: &Scene) -> Vec<Case> {
    let good = Stranger::new(&scene.ours, scene.certificate());
    let theirs = Authority::new("theirs").issue("b.peers");
    let recorded = scene.record().await;
    let tls = |change: fn(&mut Stranger)| Knock::Tls(good.with(change));
    let bytes = |bytes: &[u8]| Knock::Bytes(bytes.to_vec());
    let plain = "it does not speak TLS and this node does; compare on both nodes";
    let broken = "the connection broke during the handshake";
    vec![
        Case {
            name: "no certificate",
            knock: tls(|client| client.certificate = None),
            hears: "CertificateRequired",
            line: "it shows no certificate",
            counter: |stats| stats.refused_certificates,
        },
        Case {
            name: "a certificate of another authority",
            knock: Knock::Tls(good.with(|client| client.certificate = Some(theirs))),
            hears: "UnknownCA",
            line: "its certificate is of an authority that this node does not know",
            counter: |stats| stats.refused_certificates,
        },
        Case {
            name: "a name that is not let in",
            knock: Knock::Tls(good.with(|client| client.certificate = Some(scene.ours.issue("b.strangers")))),
            hears: "CertificateUnknown",
            line: "its certificate is for b.strangers, and peer_names lets none of that in",
            counter: |stats| stats.refused_names,
        },
        Case {
            name: "TLS 1.2 only",
            knock: tls(|client| client.version = &TLS12),
            hears: "ProtocolVersion",
            line: "it speaks another TLS; nodes speak 1.3 and nothing older",
            counter: |stats| stats.refused_tls,
        },
        Case {
            name: "no ALPN",
            knock: tls(|client| client.alpn = None),
            hears: "closed",
            line: "it does not ask for HTTP/2 (ALPN h2)",
            counter: |stats| stats.refused_tls,
        },
        Case {
            name: "HTTP/1.1 only",
            knock: tls(|client| client.alpn = Some("http/1.1")),
            hears: "NoApplicationProtocol",
            line: "it does not offer HTTP/2 (ALPN h2)",
            counter: |stats| stats.refused_tls,
        },
        Case {
            name: "HTTP/2 without TLS",
            knock: bytes(PREFACE),
            hears: "an alert",
            line: plain,
            counter: |stats| stats.refused_plain,
        },
        Case {
            name: "HTTP/1.1 without TLS",
            knock: bytes(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            hears: "an alert",
            line: plain,
            counter: |stats| stats.refused_plain,
        },
        Case {
            name: "nothing at all",
            knock: bytes(b""),
            hears: "an alert",
            line: "it was closed before anything was said",
            counter: |stats| stats.handshakes_broken,
        },
        Case {
            name: "half of a greeting",
            knock: bytes(&recorded[..100]),
            hears: "closed",
            line: "it closed the connection in the middle",
            counter: |stats| stats.handshakes_broken,
        },
        Case {
            name: "nonsense that begins like TLS",
            knock: bytes(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]),
            hears: "an alert",
            line: broken,
            counter: |stats| stats.handshakes_broken,
        },
        Case {
            name: "what a good peer said, again",
            knock: Knock::Bytes(recorded),
            hears: "",
            line: broken,
            counter: |stats| stats.handshakes_broken,
        },
    ]
}

#[tokio::test]
async fn a_client_that_is_no_peer_is_refused_in_words_and_counted() {
    let mut at = 0;
    loop {
        // A node of its own for each: ten lines a second are written, and no more.
        let scene = Scene::start().await;
        let Some(case) = cases(&scene).await.into_iter().nth(at) else { break };
        let (warnings, _guard) = Warnings::listen();
        let (before, accepted) = ((case.counter)(&scene.a.stats()), scene.a.stats().accepted);
        let heard = case.knock.at(scene.address()).await;
        assert!(heard.contains(case.hears), "{}: it heard {heard:?}", case.name);
        eventually(case.name, || (case.counter)(&scene.a.stats()) == before + 1).await;
        let lines = warnings.saying("refused a connection");
        assert_eq!(lines.len(), 1, "{}: {lines:?}", case.name);
        assert!(lines[0].contains(case.line) && lines[0].contains("remote=127.0.0.1:"), "{}: {lines:?}", case.name);
        assert_eq!(scene.a.stats().accepted, accepted, "{}", case.name);
        scene.serves_a_good_peer().await;
        at += 1;
    }
    assert_eq!(at, 12);
}

#[tokio::test]
async fn a_client_that_says_nothing_or_stops_halfway_is_given_five_seconds() {
    let (warnings, _guard) = Warnings::listen();
    let scene = Scene::start().await;
    let greeting = scene.record().await;
    let mut silent = Vec::new();
    for said in [&b""[..], &greeting[..100]] {
        let mut tcp = TcpStream::connect(scene.address()).await.unwrap();
        tcp.write_all(said).await.unwrap();
        silent.push(tcp);
    }
    scene.serves_a_good_peer().await;
    for mut tcp in silent {
        let closed = timeout(PATIENCE, tcp.read(&mut [0])).await.expect("it is closed");
        assert_eq!(closed.unwrap_or(0), 0);
    }
    eventually("both are counted", || scene.a.stats().handshake_timeouts == 2).await;
    assert_eq!(warnings.saying("it did not finish its handshake in time").len(), 2);
}

#[tokio::test]
async fn a_server_that_is_no_peer_is_an_error_within_five_seconds_and_nobody_waits_for_it() {
    let ours = Authority::new("ours");
    let good = Stranger::new(&ours, ours.issue("b.peers"));
    let silent = listen(|mut tcp| async move { drop(tcp.read_to_end(&mut Vec::new()).await) });
    let closes = listen(|mut tcp| async move {
        let _ = tcp.read(&mut [0; 10]).await;
    });
    let http = listen(|mut tcp| async move {
        let _ = tcp.read(&mut [0; 10_000]).await;
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (name, server, is_about_trust, text) in [
        ("nobody", nobody, false, "refused"),
        ("TLS 1.2", good.with(|s| s.version = &TLS12).listen().await, true, "it speaks no TLS 1.3"),
        ("no ALPN", good.with(|s| s.alpn = None).listen().await, true, "it does not offer HTTP/2 (ALPN h2)"),
        (
            "HTTP/1.1",
            good.with(|s| s.alpn = Some("http/1.1")).listen().await,
            true,
            "it does not offer HTTP/2 (ALPN h2)",
        ),
        ("HTTP without TLS", http.await, true, "it does not speak TLS and this node does; compare on both nodes"),
        ("closes in the middle", closes.await, false, "broke"),
        ("says nothing at all", silent.await, false, "it did not finish its handshake in time"),
        ("nothing after its handshake", good.clone().listen().await, false, "did not say Hello"),
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
                assert_eq!(group.get("key").await.expect("served here"), "key");
            }
        });
        let error = error.await.unwrap_or_else(|_| panic!("{name}: no error within 5 s"));
        assert_eq!((error.is_unauthenticated(), error.is_unreachable()), (is_about_trust, !is_about_trust), "{name}");
        assert!(error.to_string().contains(text), "{name}: {error}");
        assert_eq!(a.members().len(), 1, "{name}");
        println!("{name}: {error}");
    }
}

#[tokio::test]
async fn a_thousand_bad_handshakes_keep_no_good_peer_out_and_leave_the_log_readable() {
    const KNOCKS: usize = 1000;
    let scene = Scene::start().await;
    let knocks: Vec<_> = cases(&scene).await.into_iter().map(|case| case.knock).collect();
    let (warnings, _guard) = Warnings::listen();
    let began = Instant::now();
    let mut under_way = JoinSet::new();
    for n in 0..KNOCKS {
        if under_way.len() == 50 {
            under_way.join_next().await.expect("one of them").expect("ends");
        }
        let (knock, address) = (knocks[n % knocks.len()].clone(), scene.address());
        under_way.spawn(async move { knock.at(address).await });
    }
    under_way.join_all().await;
    let refused = |stats: &NodeStats| {
        let about_certificates = stats.refused_certificates + stats.refused_names;
        stats.refused_plain + stats.refused_tls + about_certificates + stats.handshakes_broken
    };
    // And one of those that recorded what a good peer says, whose end may have been counted or not.
    eventually("all are counted", || refused(&scene.a.stats()) >= KNOCKS as u64).await;
    let seconds = began.elapsed().as_secs() as usize + 1;
    let lines = warnings.saying("refused a connection");
    println!("{KNOCKS} in {:?}, {} lines", began.elapsed(), lines.len());
    assert!((10..=10 * (seconds + 1)).contains(&lines.len()), "{} lines in {seconds} s", lines.len());
    scene.serves_a_good_peer().await;
    assert_eq!((scene.a.stats().handshake_timeouts, scene.a.stats().crowded_out), (0, 0));
}
