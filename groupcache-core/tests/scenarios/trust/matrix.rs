//! Pairs of nodes, one of them with wrong settings: each direction ends in an error that names the setting to change
//! and in a log line and a counter at the listening node, and both nodes serve gets alone.

use std::time::Duration;

use crate::support::{
    self, Peers, eventually, identity,
    pki::{self, Authority, Pem},
    warnings::Warnings,
};
use groupcache_core::{
    BoxError, Error, Group, Identity, Node,
    stats::NodeStats,
    tls::{ClusterKey, MutualTls},
};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::time::timeout;

/// Trust settings of a node.
#[derive(Clone)]
enum Trust {
    Plain,
    Tls(MutualTls),
    Key(ClusterKey),
    /// A cluster key in a cluster of another name.
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

/// Expected outcome of one direction.
struct Expected {
    /// Part of the error at the dialing node.
    error: &'static str,
    /// Part of the log line, and the counter, at the listening node, unless only the dialing node can judge.
    refusal: Option<(&'static str, Count)>,
}

/// A pair of nodes: the settings of `a` are right and those of `b` are wrong.
struct Case {
    name: &'static str,
    good: Trust,
    bad: Trust,
    bad_dials: Option<Expected>,
    good_dials: Option<Expected>,
}

const UNKNOWN_AUTHORITY: &str = "of an authority that this node does not know: another CA, another cluster key";
const COMPARE: &str = "compare on both nodes: cluster_key(...) or GROUPCACHE_CLUSTER_KEY, mutual_tls(...), insecure()";

fn expected(error: &'static str, line: &'static str, counter: Count) -> Option<Expected> {
    Some(Expected { error, refusal: Some((line, counter)) })
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
    let unknown_at_peer = "does not know the authority of this node's certificate: another CA, another cluster key";
    let case = |name, bad: Pem, bad_dials, good_dials| Case {
        name,
        good: Trust::Tls(good.clone()),
        bad: Trust::Tls(bad.mutual(&ours.pem())),
        bad_dials,
        good_dials,
    };
    let dates = "the other side finds the certificate of this node expired, or not valid yet";
    let expired = "the presented certificate has expired";
    let early = "the presented certificate is not valid yet";
    let its_use = "this node's certificate is not for this use; issue it for serverAuth and clientAuth";
    let no_name = "no name of this node's certificate is among the peer_names of the other side";
    let unlisted_name = "the presented certificate is for b.users, and peer_names lets none of that in";
    let another = "the presented certificate is for c, and its holder claims the id b";
    vec![
        case(
            "expired",
            ours.issue_as(b, pki::expired),
            expected(dates, expired, certificate),
            expected(expired, dates, by_peer),
        ),
        case(
            "not yet valid",
            ours.issue_as(b, pki::not_yet_valid),
            expected(dates, early, certificate),
            expected(early, dates, by_peer),
        ),
        case(
            "of another authority",
            theirs.issue(b),
            expected(unknown_at_peer, UNKNOWN_AUTHORITY, certificate),
            expected(UNKNOWN_AUTHORITY, unknown_at_peer, by_peer),
        ),
        case(
            "signed by itself",
            pki::self_signed(b),
            expected(unknown_at_peer, UNKNOWN_AUTHORITY, certificate),
            expected(UNKNOWN_AUTHORITY, unknown_at_peer, by_peer),
        ),
        case(
            "of our authority, with the name of a user",
            ours.issue("b.users"),
            expected(no_name, unlisted_name, name),
            expected(unlisted_name, no_name, by_peer),
        ),
        case(
            "of another peer",
            ours.issue("c.peers"),
            expected(another, another, |s| s.unauthenticated),
            Some(Expected { error: another, refusal: None }), // only the client can judge the id that a server claims
        ),
        case(
            "for servers only",
            ours.issue_as(b, for_use_as(ExtendedKeyUsagePurpose::ServerAuth)),
            expected(its_use, "the presented certificate is not for this use", certificate),
            None,
        ),
        case(
            "for clients only",
            ours.issue_as(b, for_use_as(ExtendedKeyUsagePurpose::ClientAuth)),
            None,
            expected("the presented certificate is not for this use", its_use, by_peer),
        ),
        Case {
            bad: Trust::Tls(theirs.issue(b).mutual(&theirs.pem())),
            ..case(
                "of another authority, and trusting only that authority",
                theirs.issue(b),
                expected(UNKNOWN_AUTHORITY, unknown_at_peer, by_peer),
                expected(UNKNOWN_AUTHORITY, unknown_at_peer, by_peer),
            )
        },
    ]
}

fn keys(ours: &Authority) -> Vec<Case> {
    let (by_peer, plain): (Count, Count) = (|s| s.refused_by_peers, |s| s.refused_plain);
    let unknown_at_peer = "another cluster key, or another cluster name";
    let key = || ClusterKey::new(pki::cluster_key()).unwrap();
    let good = key();
    let case = |name, bad| Case {
        name,
        good: Trust::Key(good.clone()),
        bad,
        bad_dials: expected(UNKNOWN_AUTHORITY, unknown_at_peer, by_peer),
        good_dials: expected(UNKNOWN_AUTHORITY, unknown_at_peer, by_peer),
    };
    let tls = ours.issue("a.peers").mutual(&ours.pem());
    vec![
        case("another cluster key", Trust::Key(key())),
        case("the same key in another cluster", Trust::KeyOf(good.clone(), "orders")),
        case("certificates and a cluster key", Trust::Tls(tls.clone())),
        Case {
            bad_dials: expected(
                "the other side speaks TLS and this node does not",
                "the other side does not speak TLS and this node does",
                plain,
            ),
            good_dials: expected(
                "the other side does not speak TLS and this node does",
                "the other side speaks TLS and this node does not",
                plain,
            ),
            good: Trust::Tls(tls),
            ..case("no TLS", Trust::Plain)
        },
    ]
}

async fn echo((): &(), key: &str) -> Result<String, BoxError> {
    Ok(key.to_owned())
}

/// Returns the error of a node's connection to its only peer, which is known within 5 s.
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

/// Checks one direction: the first node dials the second, neither becomes a member, and every get succeeds.
async fn check_direction(case: &str, trust: [(&'static str, Trust); 2], expected: &Expected) {
    let (warnings, _guard) = Warnings::capture();
    let (known, empty) = (Peers::default(), Peers::default());
    let [(dialing_id, dialing), (listening_id, listening)] = trust;
    let listening = listening.start(listening_id, &empty).await;
    let dialing = dialing.start(dialing_id, &known).await;
    let group = |node: &Node| -> Group<String> {
        node.group("data").capacity_bytes(1 << 20).loader_with((), echo).build().unwrap()
    };
    let groups = [group(&listening), group(&dialing)];
    known.set(vec![support::peer(&listening)]);

    let what = format!("{case}, {dialing_id} dials");
    let error = failure(&dialing, &what).await;
    assert!(error.is_unauthenticated(), "{what}: {error:?}");
    assert!(error.to_string().contains(expected.error), "{what}: {error}");
    assert!(
        error.to_string().contains(&listening.address().to_string()),
        "{what}: the error names the address: {error}"
    );
    if let Some((line, counter)) = expected.refusal {
        eventually(&what, || counter(&listening.stats()) > 0).await;
        let lines: Vec<_> = warnings.lines_with("refused").into_iter().filter(|text| text.contains(line)).collect();
        assert!(!lines.is_empty(), "{what}: {:?}", warnings.lines_with(""));
        assert_eq!(listening.stats().accepted, 0, "{what}");
        let compare = [&error.to_string(), &lines[0]].map(|text| text.contains(COMPARE));
        assert_eq!(compare, [line.contains("speak"); 2], "{what}: {error}");
    }
    for n in 0..20 {
        for group in &groups {
            assert_eq!(group.get(&format!("key-{n}")).await.expect("each node serves alone"), format!("key-{n}"));
        }
    }
    assert_eq!((listening.members().len(), dialing.members().len()), (1, 1), "{what}");
}

async fn check_cases(cases: Vec<Case>) {
    for Case { name, good, bad, bad_dials, good_dials } in cases {
        if let Some(expected) = &bad_dials {
            check_direction(name, [("b", bad.clone()), ("a", good.clone())], expected).await;
        }
        if let Some(expected) = &good_dials {
            check_direction(name, [("a", good), ("b", bad)], expected).await;
        }
    }
}

#[tokio::test]
async fn peer_with_unusable_certificate_is_refused_with_a_reason() {
    check_cases(certificates(&Authority::new("ours"))).await;
}

/// Checks different cluster keys, one key in clusters of different names, a key against certificates, and TLS against
/// no TLS.
#[tokio::test]
async fn mismatched_keys_or_tls_are_refused_with_a_reason() {
    check_cases(keys(&Authority::new("ours"))).await;
}

#[tokio::test]
async fn private_key_of_another_certificate_fails_the_start() {
    let ours = Authority::new("ours");
    let mixed = Pem { key: ours.issue("a.peers").key, ..ours.issue("a.peers") };
    let refused = Node::builder()
        .mutual_tls(mixed.mutual(&ours.pem()))
        .start()
        .await
        .expect_err("the key does not belong to the certificate");
    assert!(refused.is_config(), "{refused:?}");
    assert!(refused.to_string().contains("the private key is not that of the certificate"), "{refused}");
}

/// Checks in 300 rounds that the reason of a refusal reaches the peer, no matter how many bytes the peer has sent by
/// then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_reason_always_reaches_the_peer() {
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
