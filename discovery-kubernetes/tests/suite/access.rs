//! How the API server is reached: kubeconfig, token, TLS, namespace. Over TCP.

use std::time::Duration;

use discovery_kubernetes::Pods;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use crate::support::{Eyes, NAMESPACE, Scratch, Simulated, World, eventually, kubeconfig, wire::listen};

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

#[tokio::test]
async fn options_that_cannot_be_used_ask_nobody() {
    let world = Simulated::new();
    let mut eyes = Eyes::open(world.pods().selector(" "));
    let runs =
        async || matches!(eyes.bench.health(), Some(groupcache_core::Health::Stale(why)) if why.contains("selector"));
    eventually("it says so", runs).await;
    assert_eq!(world.fake.asked(""), 0);
}
