//! Two nodes of which one has the wrong settings: each direction ends in an error that says what to change, a line
//! and a counter at the side that listens, and both serve alone.

use std::time::Duration;

use crate::support::{
    self, Peers, eventually, identity,
    pki::{self, Authority, Pem},
    warnings::Warnings,
};
use groupcache_core::{BoxError, ClusterKey, Error, Group, Identity, MutualTls, Node, NodeStats};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::time::timeout;

/// How a node is told to trust others.
#[derive(Clone)]
enum Trust {
    Plain,
    Tls(MutualTls),
    Key(ClusterKey),
    /// The same in a cluster of another name.
    KeyOf(ClusterKey, &'static str),
}

impl Trust {
    async fn start(self, id: &str, peers: &Peers) -> Node {
        let builder = Node::builder().provider(peers.clone()).identity(identity(id));
        let builder = match self {
            Self::Plain => builder,
            Self::Tls(tls) => builder.mutual_tls(tls),
            Self::Key(key) => builder.cluster_key(key),
            Self::KeyOf(key, cluster) => {
                let me: Identity = identity(id).with_cluster(cluster).unwrap();
                builder.identity(me).cluster_key(key)
            }
        };
        builder.start().await.expect("starts")
    }
}

type Count = fn(&NodeStats) -> u64;

/// What one direction comes to.
struct Seen {
    /// The error at the node that dials says so.
    error: &'static str,
    /// The line and the counter at the node that listens, if it is the one to judge.
    refusal: Option<(&'static str, Count)>,
}

/// Node `a` is as it should be and node `b` is not.
struct Case {
    name: &'static str,
    good: Trust,
    bad: Trust,
    bad_dials: Option<Seen>,
    good_dials: Option<Seen>,
}

const UNKNOWN_AUTHORITY: &str = "of an authority that this node does not know: another CA, another cluster key";
const COMPARE: &str = "compare on both nodes: cluster_key(...) or GROUPCACHE_CLUSTER_KEY, mutual_tls(...), insecure()";

fn seen(error: &'static str, line: &'static str, counter: Count) -> Option<Seen> {
    Some(Seen { error, refusal: Some((line, counter)) })
}

fn for_use_as(only: ExtendedKeyUsagePurpose) -> impl FnOnce(&mut rcgen::CertificateParams) {
    |params| params.extended_key_usages = vec![only]
}

fn certificates(ours: &Authority) -> Vec<Case> {
    let (certificate, name, by_peer): (Count, Count, Count) =
        (|s| s.refused_certificates, |s| s.refused_names, |s| s.refused_by_peers);
    let theirs = Authority::new("theirs");
    let good = ours.issue("a.peers").mutual(&ours.pem());
    let b = "b.peers";
    let stranger = "it does not know the authority of our certificate: another CA, another cluster key";
    let case = |name, bad: Pem, bad_dials, good_dials| Case {
        name,
        good: Trust::Tls(good.clone()),
        bad: Trust::Tls(bad.mutual(&ours.pem())),
        bad_dials,
        good_dials,
    };
    let dates = "it finds our certificate expired, or not valid yet";
    let expired = "its certificate has expired";
    let early = "its certificate is not valid yet";
    let its_use = "our certificate is not for this use; issue it for serverAuth and clientAuth";
    let no_name = "no name of our certificate is among its peer_names";
    let strange_name = "its certificate is for b.strangers, and peer_names lets none of that in";
    let another = "its certificate is for c, and it says that it is b";
    vec![
        case(
            "expired",
            ours.issue_as(b, pki::expired),
            seen(dates, expired, certificate),
            seen(expired, dates, by_peer),
        ),
        case(
            "not yet valid",
            ours.issue_as(b, pki::not_yet_valid),
            seen(dates, early, certificate),
            seen(early, dates, by_peer),
        ),
        case(
            "of another authority",
            theirs.issue(b),
            seen(stranger, UNKNOWN_AUTHORITY, certificate),
            seen(UNKNOWN_AUTHORITY, stranger, by_peer),
        ),
        case(
            "signed by itself",
            pki::self_signed(b),
            seen(stranger, UNKNOWN_AUTHORITY, certificate),
            seen(UNKNOWN_AUTHORITY, stranger, by_peer),
        ),
        case(
            "of our authority, for somebody who is no peer",
            ours.issue("b.strangers"),
            seen(no_name, strange_name, name),
            seen(strange_name, no_name, by_peer),
        ),
        case(
            "of another peer",
            ours.issue("c.peers"),
            seen(another, another, |s| s.unauthenticated),
            Some(Seen { error: another, refusal: None }), // what a server says of itself only the client can judge
        ),
        case(
            "for servers only",
            ours.issue_as(b, for_use_as(ExtendedKeyUsagePurpose::ServerAuth)),
            seen(its_use, "its certificate is not for this use", certificate),
            None,
        ),
        case(
            "for clients only",
            ours.issue_as(b, for_use_as(ExtendedKeyUsagePurpose::ClientAuth)),
            None,
            seen("its certificate is not for this use", its_use, by_peer),
        ),
        Case {
            bad: Trust::Tls(theirs.issue(b).mutual(&theirs.pem())),
            ..case(
                "of another authority, and trusting that one only",
                theirs.issue(b),
                seen(UNKNOWN_AUTHORITY, stranger, by_peer),
                seen(UNKNOWN_AUTHORITY, stranger, by_peer),
            )
        },
    ]
}

fn keys(ours: &Authority) -> Vec<Case> {
    let (by_peer, plain): (Count, Count) = (|s| s.refused_by_peers, |s| s.refused_plain);
    let stranger = "another cluster key, or another cluster name";
    let key = || ClusterKey::new(pki::cluster_key()).unwrap();
    let good = key();
    let case = |name, bad| Case {
        name,
        good: Trust::Key(good.clone()),
        bad,
        bad_dials: seen(UNKNOWN_AUTHORITY, stranger, by_peer),
        good_dials: seen(UNKNOWN_AUTHORITY, stranger, by_peer),
    };
    let tls = ours.issue("a.peers").mutual(&ours.pem());
    vec![
        case("another cluster key", Trust::Key(key())),
        case("the same key in another cluster", Trust::KeyOf(good.clone(), "orders")),
        case("certificates and a cluster key", Trust::Tls(tls.clone())),
        Case {
            bad_dials: seen("it speaks TLS and this node does not", "it does not speak TLS and this node does", plain),
            good_dials: seen("it does not speak TLS and this node does", "it speaks TLS and this node does not", plain),
            good: Trust::Tls(tls),
            ..case("no TLS", Trust::Plain)
        },
    ]
}

async fn echo((): &(), key: &str) -> Result<String, BoxError> {
    Ok(key.to_owned())
}

/// Why a node has no connection to its only peer; it knows within 5 s.
async fn failure(node: &Node, what: &str) -> Error {
    let failure = async {
        loop {
            match node.unconnected().pop() {
                Some(unconnected) => return unconnected.error,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    timeout(Duration::from_secs(5), failure).await.unwrap_or_else(|_| panic!("{what}: no error within 5 s"))
}

/// One of them dials the other: neither becomes a member, and every get is answered.
async fn falls_out(case: &str, trust: [(&'static str, Trust); 2], seen: &Seen) {
    let (warnings, _guard) = Warnings::listen();
    let (known, nobody) = (Peers::default(), Peers::default());
    let [(dials, dialling), (listens, listening)] = trust;
    let listening = listening.start(listens, &nobody).await;
    let dialling = dialling.start(dials, &known).await;
    let group = |node: &Node| -> Group<String> {
        node.group("data").capacity_bytes(1 << 20).loader_with((), echo).build().unwrap()
    };
    let groups = [group(&listening), group(&dialling)];
    known.set(vec![support::peer(&listening)]);

    let what = format!("{case}, {dials} dials");
    let error = failure(&dialling, &what).await;
    assert!(error.is_unauthenticated(), "{what}: {error:?}");
    assert!(error.to_string().contains(seen.error), "{what}: {error}");
    assert!(error.to_string().contains(&listening.address().to_string()), "{what}: it names the address: {error}");
    if let Some((line, counter)) = seen.refusal {
        eventually(&what, || counter(&listening.stats()) > 0).await;
        let lines: Vec<_> = warnings.saying("refused").into_iter().filter(|said| said.contains(line)).collect();
        assert!(!lines.is_empty(), "{what}: {:?}", warnings.saying(""));
        assert_eq!(listening.stats().accepted, 0, "{what}");
        let compare = [&error.to_string(), &lines[0]].map(|said| said.contains(COMPARE));
        assert_eq!(compare, [line.contains("speak"); 2], "{what}: {error}");
    }
    for n in 0..20 {
        for group in &groups {
            assert_eq!(group.get(&format!("key-{n}")).await.expect("served alone"), format!("key-{n}"));
        }
    }
    assert_eq!((listening.members().len(), dialling.members().len()), (1, 1), "{what}");
}

async fn fall_out(cases: Vec<Case>) {
    for Case { name, good, bad, bad_dials, good_dials } in cases {
        if let Some(seen) = &bad_dials {
            falls_out(name, [("b", bad.clone()), ("a", good.clone())], seen).await;
        }
        if let Some(seen) = &good_dials {
            falls_out(name, [("a", good), ("b", bad)], seen).await;
        }
    }
}

#[tokio::test]
async fn a_peer_whose_certificate_will_not_do_stays_outside_and_is_told_why() {
    fall_out(certificates(&Authority::new("ours"))).await;
}

#[tokio::test]
async fn nodes_with_different_keys_or_only_one_that_speaks_tls_say_which_settings_to_compare() {
    fall_out(keys(&Authority::new("ours"))).await;
}

#[tokio::test]
async fn the_key_of_another_certificate_is_an_error_of_the_start() {
    let ours = Authority::new("ours");
    let mixed = Pem { key: ours.issue("a.peers").key, ..ours.issue("a.peers") };
    let refused = Node::builder().mutual_tls(mixed.mutual(&ours.pem())).start().await.expect_err("refused");
    assert!(refused.is_config(), "{refused:?}");
    assert!(refused.to_string().contains("the private key is not that of the certificate"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reason_reaches_the_peer_each_time_however_much_it_has_said_by_then() {
    let ours = Authority::new("ours");
    let a = Trust::Tls(ours.issue("a.peers").mutual(&ours.pem())).start("a", &Peers::default()).await;
    let expired = ours.issue_as("b.peers", pki::expired).mutual(&ours.pem());
    for round in 0..300 {
        let peers = Peers::default();
        let b = Trust::Tls(expired.clone()).start("b", &peers).await;
        peers.set(vec![support::peer(&a)]);
        let error = failure(&b, "expired").await;
        assert!(error.is_unauthenticated(), "in round {round}: {error}");
    }
}
