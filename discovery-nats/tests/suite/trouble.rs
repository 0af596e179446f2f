//! Servers that refuse, hang or shut down: discovery reports the problem, loses no peer, and recovers with the server.

use std::{sync::Arc, time::Duration};

use discovery_nats::Nats;
use groupcache_core::{
    Identity, Node,
    conformance::Bench,
    discovery::{Health, Peer},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::support::{Broker, Fake, PATIENCE, Scratch, eventually, fake_client, member};

const HEARTBEAT: Duration = Duration::from_millis(250);

fn nats(broker: &Broker) -> Nats {
    Nats::new(broker.url(), "users").unwrap().heartbeat(HEARTBEAT)
}

fn bench(nats: Nats) -> Bench {
    Bench::start(Arc::new(nats)).unwrap()
}

async fn until_stale(bench: &mut Bench, words: &[&str]) {
    let is_said =
        |health: Option<Health>| matches!(health, Some(Health::Stale(why)) if words.iter().all(|w| why.contains(w)));
    eventually(&format!("discovery is stale because of {words:?}"), async || is_said(bench.health())).await;
}

async fn until_listed(bench: &mut Bench, names: &[&str]) -> Duration {
    let begun = tokio::time::Instant::now();
    loop {
        let mut listed: Vec<_> = bench.peers().iter().filter_map(|p: &Peer| Some(p.id()?.to_string())).collect();
        listed.sort();
        let health = bench.health();
        if bench.sets() > 0 && listed == names && health == Some(Health::Connected) {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {names:?} are expected, {listed:?} are listed, {health:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn wrong_credentials_are_reported_until_corrected() {
    let with = |password: &str| format!("authorization {{ user: cache, password: {password} }}");
    let mut broker = Broker::with(&with("other")).await;
    let mut bench = bench(nats(&broker).user_and_password("cache", "pa55-w0rd"));
    until_stale(&mut bench, &["refuses the credentials", "check user, password"]).await;
    assert_eq!(bench.sets(), 0, "no complete set without an answer of the server");
    broker.reconfigure(&with("pa55-w0rd")).await;
    let took = until_listed(&mut bench, &["under-test"]).await;
    println!("complete {took:?} after the password was right");
    bench.stop().await;
}

#[tokio::test]
async fn token_or_user_in_the_address_signs_in() {
    let broker = Broker::with("authorization { token: t0ken-of-cache }").await;
    let mut bench1 = bench(nats(&broker).token("t0ken-of-cache"));
    until_listed(&mut bench1, &["under-test"]).await;
    let broker = Broker::with("authorization { user: cache, password: pa55-w0rd }").await;
    let url = format!("nats://cache:pa55-w0rd@127.0.0.1:{}", broker.port);
    let mut bench2 = bench(Nats::new(url, "users").unwrap().heartbeat(HEARTBEAT));
    until_listed(&mut bench2, &["under-test"]).await;
}

/// Checks that credentials in an address are percent-decoded, as by every other client of NATS.
#[tokio::test]
async fn encoded_credentials_in_the_address_sign_in() {
    for (configured, written) in [
        (r#"user: cache, password: "p@ss-w0rd""#, "cache:p%40ss-w0rd"),
        (r#"user: cache, password: "pass/w0rd""#, "cache:pass%2Fw0rd"),
        (r#"user: cache, password: "käse-w0rd""#, "cache:k%C3%A4se-w0rd"),
        (r#"user: cache, password: "käse-w0rd""#, "cache:käse-w0rd"),
        (r#"user: "the@cache", password: "100%w0rd""#, "the%40cache:100%25w0rd"),
        (r#"token: "t0ken/of@cache""#, "t0ken%2Fof%40cache"),
    ] {
        let broker = Broker::with(&format!("authorization {{ {configured} }}")).await;
        let url = format!("nats://{written}@127.0.0.1:{}", broker.port);
        let mut bench = bench(Nats::new(url, "users").unwrap().heartbeat(HEARTBEAT));
        until_listed(&mut bench, &["under-test"]).await;
        bench.stop().await;
    }
}

/// Checks that refused credentials are tried ever more seldom, where every second brought one or two attempts before,
/// and that the client of NATS writes no line of its own.
#[tokio::test]
async fn refused_credentials_are_tried_seldom() {
    let broker = Broker::with("authorization { user: cache, password: other }").await;
    let mut bench = bench(nats(&broker).user_and_password("cache", "pa55-w0rd"));
    until_stale(&mut bench, &["refuses the credentials"]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let log = broker.log();
    let attempts = log.lines().filter(|line| line.contains("authentication error")).count();
    assert!((1..=6).contains(&attempts), "{attempts} attempts in 10 s\n{log}");
    assert!(matches!(bench.health(), Some(Health::Stale(why)) if why.contains("refuses the credentials")));
}

#[cfg(feature = "credentials")]
#[tokio::test]
async fn pipe_in_place_of_a_file_is_reported() {
    let (broker, scratch) = (Broker::start().await, Scratch::new());
    let pipe = scratch.0.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for nats in [
        nats(&broker).credentials_file(&pipe),
        nats(&broker).root_certificates(&pipe),
        nats(&broker).require_tls().client_certificate(&pipe, &pipe),
    ] {
        let mut bench = bench(nats);
        until_stale(&mut bench, &["pipe", "not a regular file"]).await;
        bench.stop().await;
    }
}

/// Checks that the server of `deploy/compose-nats.yml` admits the nodes with their password, and with what they need.
#[tokio::test]
async fn compose_configuration_admits_the_nodes_alone() {
    let config = include_str!("../../../deploy/nats.conf").replace("$NATS_PASSWORD", "\"pa55-w0rd\"");
    let broker = Broker::with(&config).await;
    let nats = |password: &str| {
        let nats = Nats::new(broker.url(), "cluster").unwrap().heartbeat(HEARTBEAT);
        nats.user_and_password("cache", password)
    };
    let mut refused = bench(nats("another"));
    until_stale(&mut refused, &["refuses the credentials"]).await;
    let mut admitted = bench(nats("pa55-w0rd"));
    until_listed(&mut admitted, &["under-test"]).await;
}

/// Checks that a node does not start on a server that other services may use without a name that keeps it apart.
#[tokio::test]
async fn node_without_application_and_cluster_does_not_start() {
    let broker = Broker::start().await;
    let nameless = || Nats::without_application(broker.url()).unwrap().heartbeat(HEARTBEAT);
    let node =
        |identity: Identity, nats: Nats| async { Node::builder().identity(identity).provider(nats).start().await };
    let error = node(Identity::default(), nameless()).await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_config() && text.contains("GROUPCACHE_NATS_APPLICATION") && text.contains("GROUPCACHE_CLUSTER"));
    // A choice that equals the default is a choice.
    node(Identity::default().with_cluster("default").unwrap(), nameless()).await.unwrap();
    node(Identity::default(), nameless().application("default").unwrap()).await.unwrap();
}

fn account(permissions: &str) -> String {
    format!(
        r#"authorization {{ users: [
            {{ user: cache, password: pa55-w0rd, permissions: {permissions} }},
            {{ user: fakes, password: fakes }} ] }}"#
    )
}

#[tokio::test]
async fn documented_permissions_are_enough() {
    let permission = Nats::new("h", "users").unwrap().permission();
    let config = account(&format!(r#"{{ publish: ["{permission}"], subscribe: ["{permission}"] }}"#));
    let broker = Broker::with(&config).await;
    let fake = Fake::join(&broker.url(), "users", &member("other"), HEARTBEAT).await;
    let nats = nats(&broker).user_and_password("cache", "pa55-w0rd");
    let mut first = bench(nats.clone());
    until_listed(&mut first, &["other", "under-test"]).await;
    // The goodbye of the other node arrives, so that the permission includes it.
    let heard = nats.stats().heard;
    assert!(heard > 0);
    fake.leave().await;
    until_listed(&mut first, &["under-test"]).await;
    assert_eq!(nats.stats().garbage, 0);
    first.stop().await;
}

/// Checks that a missing permission to publish is reported, that peers are published as a partial set meanwhile, and
/// that the set is complete once the permission is given.
#[tokio::test]
async fn missing_permission_to_publish_is_reported_until_given() {
    let config = account(r#"{ publish: ["else.>"], subscribe: [">"] }"#);
    let mut broker = Broker::with(&config).await;
    let _fake = Fake::join(&broker.url(), "users", &member("other"), HEARTBEAT).await;
    let mut bench = bench(nats(&broker).user_and_password("cache", "pa55-w0rd"));
    until_stale(&mut bench, &["groupcache-gossip.users.>"]).await;
    eventually("a peer whose messages arrive is in a partial set", async || bench.peers().len() == 1).await;
    assert_eq!(bench.sets(), 0, "no complete set without an echo");
    broker.reconfigure(&account(r#"{ publish: [">"], subscribe: [">"] }"#)).await;
    let took = until_listed(&mut bench, &["other", "under-test"]).await;
    println!("complete {took:?} after the permission was given");
}

/// Checks that a missing permission to subscribe is reported, and is not taken for a cluster of one node.
#[tokio::test]
async fn missing_permission_to_subscribe_publishes_no_set() {
    let broker = Broker::with(&account(r#"{ publish: [">"], subscribe: ["else.>"] }"#)).await;
    let _fake = Fake::join(&broker.url(), "users", &member("other"), HEARTBEAT).await;
    let mut bench = bench(nats(&broker).user_and_password("cache", "pa55-w0rd"));
    until_stale(&mut bench, &["groupcache-gossip.users.>"]).await;
    tokio::time::sleep(HEARTBEAT * 8).await; // longer than any expiry and any collection of answers
    assert_eq!(bench.sets(), 0);
}

/// Checks TLS with client certificates: a wrong authority and a missing certificate are reported, and the right ones
/// work.
#[tokio::test]
async fn wrong_tls_authority_is_reported_and_right_one_works() {
    let scratch = Scratch::new();
    let (right, wrong) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &right).unwrap();
    let certificate = scratch.write("cert.pem", leaf.pem());
    let key = scratch.write("key.pem", key.serialize_pem());
    let roots = scratch.write("right.pem", right.pem());
    let others = scratch.write("wrong.pem", wrong.pem());
    let broker = Broker::with(&format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {roots:?}, verify: true, timeout: 2 }}"
    ))
    .await;

    let mut bad = bench(nats(&broker).root_certificates(&others).client_certificate(&certificate, &key));
    until_stale(&mut bad, &["TLS", "check the root certificates"]).await;
    let mut bare = bench(nats(&broker).root_certificates(&roots));
    until_stale(&mut bare, &["NATS server"]).await;
    assert_eq!((bad.sets(), bare.sets()), (0, 0));

    let mut good = bench(nats(&broker).require_tls().root_certificates(&roots).client_certificate(&certificate, &key));
    until_listed(&mut good, &["under-test"]).await;
    good.stop().await; // the other provider has the same id
    // The file is read again for each attempt, so that a corrected file is enough.
    std::fs::copy(&roots, &others).unwrap();
    until_listed(&mut bad, &["under-test"]).await;
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[tokio::test]
async fn paused_server_expires_no_peer() {
    let broker = Broker::start().await;
    let _fake = Fake::join(&broker.url(), "users", &member("other"), HEARTBEAT).await;
    let mut bench = bench(nats(&broker));
    until_listed(&mut bench, &["other", "under-test"]).await;
    broker.pause();
    until_stale(&mut bench, &["do not come back"]).await;
    tokio::time::sleep(HEARTBEAT * 8).await;
    assert_eq!(bench.peers().len(), 2, "no peer expires in twice the time to live");
    broker.resume();
    until_listed(&mut bench, &["other", "under-test"]).await;
}

#[tokio::test]
async fn dead_peer_expires_at_a_node_with_rare_heartbeats() {
    let broker = Broker::start().await;
    let fake = Fake::join(&broker.url(), "users", &member("doomed"), HEARTBEAT).await;
    let mut bench = bench(nats(&broker).heartbeat(PATIENCE * 2));
    until_listed(&mut bench, &["doomed", "under-test"]).await;
    fake.crash();
    until_listed(&mut bench, &["under-test"]).await;
}

#[tokio::test]
async fn applications_and_clusters_on_one_subject_stay_apart() {
    let broker = Broker::start().await;
    let mut outsider = member("outsider");
    let _other_application = Fake::join(&broker.url(), "orders", &outsider, HEARTBEAT).await;
    outsider.cluster = "blue".into();
    let _other_cluster = Fake::join(&broker.url(), "users", &outsider, HEARTBEAT).await;
    let _friend = Fake::join(&broker.url(), "users", &member("friend"), HEARTBEAT).await;
    let nats = nats(&broker);
    let mut bench = bench(nats.clone());
    until_listed(&mut bench, &["friend", "under-test"]).await;
    let heard = nats.stats().heard;
    eventually("several heartbeats arrive", async || nats.stats().heard > heard + 8).await;
    assert_eq!(bench.peers().len(), 2);
    assert_eq!(nats.stats().garbage, 0, "messages of others do not even arrive");
}

#[tokio::test]
async fn question_with_a_foreign_reply_subject_is_not_answered() {
    use futures_util::StreamExt;
    let broker = Broker::start().await;
    let mut bench = bench(nats(&broker));
    until_listed(&mut bench, &["under-test"]).await;
    let client = fake_client(&broker.url()).await;
    let mut elsewhere = client.subscribe("orders.>").await.unwrap();
    let mut answers = client.subscribe("groupcache-gossip.users.conformance.to.me").await.unwrap();
    let question = r#"{"v":1,"id":"asker","inc":1,"addrs":["10.0.0.1:1"],"state":"ready","ttl_ms":1000}"#;
    for to in ["orders.cancel", "groupcache-gossip.users.conformance.to.me"] {
        let subject = "groupcache-gossip.users.conformance.q";
        client.publish_with_reply(subject, to, question.into()).await.unwrap();
    }
    let answer = tokio::time::timeout(Duration::from_secs(5), answers.next()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer.payload).contains("under-test"));
    let nothing = tokio::time::timeout(HEARTBEAT * 2, elsewhere.next()).await;
    assert!(nothing.is_err(), "an answer was sent: {nothing:?}");
}

#[tokio::test]
async fn client_of_the_application_is_used_and_outlives_node() {
    let mut broker = Broker::start().await;
    let client = async_nats::connect(broker.url()).await.unwrap();
    let _fake = Fake::on(client.clone(), "users", &member("other"), HEARTBEAT).await;
    let nats = Nats::from_client(client.clone(), "users").unwrap().heartbeat(HEARTBEAT);
    let mut bench = bench(nats);
    until_listed(&mut bench, &["other", "under-test"]).await;
    broker.kill();
    until_stale(&mut bench, &["lost"]).await;
    tokio::time::sleep(HEARTBEAT * 8).await;
    assert_eq!(bench.peers().len(), 2);
    broker.up().await;
    until_listed(&mut bench, &["other", "under-test"]).await;
    bench.stop().await;
    assert_eq!(client.connection_state(), async_nats::connection::State::Connected);
}

#[tokio::test]
async fn server_in_lame_duck_mode_is_left_for_another() {
    let (first, second) = (Broker::start().await, Broker::start().await);
    let servers = format!("{},{}", first.url(), second.url());
    let _fakes = [
        Fake::join(&first.url(), "users", &member("other"), HEARTBEAT).await,
        Fake::join(&second.url(), "users", &member("other"), HEARTBEAT).await,
    ];
    let mut bench = bench(Nats::new(servers, "users").unwrap().heartbeat(HEARTBEAT));
    until_listed(&mut bench, &["other", "under-test"]).await;
    // The signal starts lame-duck mode: the server notifies its clients, takes no new ones, and closes the connections
    // minutes later.
    first.signal(rustix::process::Signal::USR2);
    tokio::time::sleep(HEARTBEAT * 8).await;
    until_listed(&mut bench, &["other", "under-test"]).await;
}

#[cfg(feature = "credentials")]
#[tokio::test]
async fn missing_credentials_file_is_named() {
    let broker = Broker::start().await;
    let mut bench = bench(nats(&broker).credentials_file("/nowhere/cache.creds"));
    until_stale(&mut bench, &["/nowhere/cache.creds", "check its path"]).await;
}

#[cfg(feature = "credentials")]
#[tokio::test]
async fn nkey_signs_in() {
    // The pair of keys is from the documentation of the server.
    let (seed, public) = (
        "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
        "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
    );
    read_along::is_secret(seed);
    let broker = Broker::with(&format!("authorization {{ users: [ {{ nkey: {public} }} ] }}")).await;
    let mut bench = bench(nats(&broker).nkey(seed));
    until_listed(&mut bench, &["under-test"]).await;
}
