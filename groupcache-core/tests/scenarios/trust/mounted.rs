//! The peer service mounted in servers of users: peers reach the cache, and all other clients only the user's routes.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    proto::{GetRequest, peer_client::PeerClient},
    support::{
        Cluster, Loads, PATIENCE, Peers, eventually, identity, pki,
        pki::{Authority, Pem},
    },
};
use axum::{Extension, Router, routing::get};
use groupcache_core::{
    BoxError, Group, Identity, Node, NodeBuilder,
    mount::PeerService,
    tls::{ClusterKey, PeerCertificates},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity as TonicIdentity, Server, ServerTlsConfig},
};

async fn echo(loads: &Loads, key: &str) -> Result<String, BoxError> {
    loads.begin(key);
    Ok(key.to_owned())
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

fn certified(pem: &Pem) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap())
}

/// Starts an HTTPS server of a user, which accepts client certificates of its authority and clients without one.
async fn axum_server(listener: TcpListener, authority: &Authority, pem: &Pem, peers: PeerService) {
    let verifier = WebPkiClientVerifier::builder(roots(authority)).allow_unauthenticated().build().unwrap();
    let (chain, key) = certified(pem);
    let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let app = Router::new().route("/", get(async || "the user's page")).route_service(PeerService::PATH, peers);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let shown = tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec());
                let app = app.layer(Extension(PeerCertificates::from_der(shown)));
                let service = TowerToHyperService::new(app);
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
}

/// Starts a tonic server of a user with tonic's own TLS.
async fn tonic_server(listener: TcpListener, authority: &Authority, pem: &Pem, peers: PeerService) {
    let tls = ServerTlsConfig::new()
        .identity(TonicIdentity::from_pem(&pem.certificate, &pem.key))
        .client_ca_root(Certificate::from_pem(authority.pem()))
        .client_auth_optional(true);
    let router = Server::builder().tls_config(tls).unwrap().add_service(peers);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
}

#[derive(Clone, Copy)]
enum Kind {
    Axum,
    Tonic,
}

/// Starts nodes `a` and `b`, mounted in servers of one kind.
async fn mounted(kind: Kind, authority: &Authority) -> (Cluster, Vec<Group<String>>, Loads) {
    let (peers, loads) = (Peers::default(), Loads::default());
    let mut nodes = Vec::new();
    for id in ["a", "b"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let me = Identity::new(listener.local_addr().unwrap()).with_id(id).unwrap();
        let (service, pem) = (PeerService::default(), authority.issue(&format!("{id}.peers")));
        match kind {
            Kind::Axum => axum_server(listener, authority, &pem, service.clone()).await,
            Kind::Tonic => tonic_server(listener, authority, &pem, service.clone()).await,
        }
        let tls = pem.mutual(&authority.pem());
        let node = Node::builder().identity(me).mount(&service).mutual_tls(tls).provider(peers.clone());
        nodes.push(node.start().await.unwrap());
    }
    peers.set(nodes.iter().map(crate::support::peer).collect());
    let cluster = Cluster { nodes, peers };
    cluster.agree().await;
    let groups = cluster
        .group(|_, node| node.group::<String>("data").capacity_bytes(4 << 20).loader_with(loads.clone(), echo))
        .await;
    (cluster, groups, loads)
}

/// Gets a value as an unlisted client with the given certificate or none.
async fn get_as_client(
    address: SocketAddr,
    authority: &Authority,
    shown: Option<&Pem>,
    key: &str,
) -> Result<(), Status> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem())).domain_name("a.peers");
    if let Some(pem) = shown {
        tls = tls.identity(TonicIdentity::from_pem(&pem.certificate, &pem.key));
    }
    let channel = Channel::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
    let mut client =
        PeerClient::new(timeout(PATIENCE, channel.connect()).await.expect("the client connects in time").unwrap());
    let request = GetRequest {
        cluster: "default".into(),
        group: "data".into(),
        key: key.to_owned().into(),
        ..Default::default()
    };
    client.get(request).await.map(drop)
}

/// Checks that unlisted clients are refused with a reason, and that a client with the name of a peer is served.
async fn check_unlisted_clients(cluster: &Cluster, authority: &Authority, held: &str) {
    let a = &cluster.nodes[0];
    for (shown, reason) in [
        (None, "PeerCertificates"),
        (Some(authority.issue("users.example.org")), "users.example.org"),
        (Some(authority.issue_as("b.peers", |p| p.extended_key_usages.truncate(1))), "clientAuth"),
    ] {
        let before = a.stats().unauthenticated;
        let refused = get_as_client(a.address(), authority, shown.as_ref(), held).await;
        // The user's server may refuse a certificate in its own handshake.
        if let Err(status) = &refused
            && status.code() == Code::Unauthenticated
        {
            assert!(status.message().contains(reason), "{status:?}");
            assert_eq!(a.stats().unauthenticated, before + 1);
        } else {
            assert!(refused.is_err() && reason == "clientAuth", "{reason}: {refused:?}");
        }
    }
    let peer = authority.issue("z.peers");
    get_as_client(a.address(), authority, Some(&peer), held).await.expect("the name is that of a peer");
}

/// Checks that every node gets every key and that each key is loaded once.
async fn check_shared_cache(cluster: &Cluster, groups: &[Group<String>], loads: &Loads) {
    for n in 0..50 {
        let key = format!("key-{n}");
        for group in groups {
            assert_eq!(timeout(PATIENCE, group.get(&key)).await.expect("the get ends in time").unwrap(), key);
        }
    }
    assert_eq!((loads.total(), cluster.nodes.len()), (50, 2), "each key is loaded once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_router_serves_the_cache_to_peers_only() {
    let authority = Authority::new("ours");
    let (cluster, groups, loads) = mounted(Kind::Axum, &authority).await;
    check_shared_cache(&cluster, &groups, &loads).await;
    let held = cluster.key_of(&groups, 0);
    groups[0].get(&held).await.unwrap();
    check_unlisted_clients(&cluster, &authority, &held).await;

    // A user without a certificate, with HTTP/1.1.
    let config = ClientConfig::builder().with_root_certificates(roots(&authority)).with_no_client_auth();
    let tcp = TcpStream::connect(cluster.nodes[0].address()).await.unwrap();
    let name = ServerName::try_from("a.peers").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut page = String::new();
    let _ = timeout(PATIENCE, tls.read_to_string(&mut page)).await.expect("the page comes in time");
    assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("the user's page"), "{page}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonic_server_serves_the_cache_to_peers_only() {
    let authority = Authority::new("ours");
    let (cluster, groups, loads) = mounted(Kind::Tonic, &authority).await;
    check_shared_cache(&cluster, &groups, &loads).await;
    let held = cluster.key_of(&groups, 0);
    groups[0].get(&held).await.unwrap();
    check_unlisted_clients(&cluster, &authority, &held).await;
    cluster.shutdown().await;
}

/// Starts a server without TLS and returns its address.
async fn plain_server(peers: PeerService) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(async move { Server::builder().add_service(peers).serve_with_incoming(incoming).await.unwrap() });
    address
}

/// Checks that a mounted service without `mutual_tls` needs `insecure` and an advertised address, belongs to one node
/// at a time, and answers `unavailable` without a node.
#[tokio::test]
async fn mounted_service_without_tls_requires_insecure() {
    let service = PeerService::default();
    let address = plain_server(service.clone()).await;
    let me = || identity("a").with_advertised([address.into()]).unwrap();
    let get = async || {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let request =
            GetRequest { cluster: "default".into(), group: "none".into(), key: "k".into(), ..Default::default() };
        PeerClient::new(channel).get(request).await.map(|answer| answer.into_inner().status)
    };
    assert_eq!(get().await.expect_err("there is no node yet").code(), Code::Unavailable);

    let refused = async |builder: NodeBuilder| builder.start().await.expect_err("the settings are refused").to_string();
    let mount = || Node::builder().identity(me()).mount(&service);
    assert!(refused(mount()).await.contains("mutual_tls"));
    let key = ClusterKey::new(pki::cluster_key()).unwrap();
    assert!(refused(mount().cluster_key(key)).await.contains("mutual_tls"));
    assert!(refused(mount().identity(Identity::default()).insecure()).await.contains("with_advertised"));

    let node = mount().insecure().start().await.unwrap();
    assert_eq!(get().await.expect("the node answers"), 6, "declined, because the group does not exist");
    let twice = Node::builder().identity(me().with_id("b").unwrap()).mount(&service).insecure();
    assert!(refused(twice).await.contains("one node"));
    assert_eq!(get().await.expect("the first node answers"), 6);
    node.shutdown().await.unwrap();
    assert_eq!(get().await.expect_err("the node is shut down").code(), Code::Unavailable);
    let again = mount().insecure().start().await.expect("another node may use the service");
    assert_eq!(get().await.expect("the node answers"), 6);
    again.shutdown().await.unwrap();
}

/// Checks that connections of a mounted service end when the node's authority is replaced, as those of its own listener
/// do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_authority_ends_mounted_connections() {
    let authority = Authority::new("old");
    let (cluster, groups, _) = mounted(Kind::Axum, &authority).await;
    let [a, b] = [&cluster.nodes[0], &cluster.nodes[1]];
    // Node a trusts another authority, while its server shows and accepts the same certificates as before.
    let (new, own) = (Authority::new("new"), authority.issue("a.peers"));
    let accepted = a.stats().accepted;
    assert!(a.set_mutual_tls(own.mutual(&new.pem())).await.unwrap());
    let is_refused = async {
        while !b.unconnected().iter().any(|peer| peer.error.is_unauthenticated()) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    timeout(std::time::Duration::from_secs(60), is_refused).await.expect("the connection ends within 50 s");
    assert_eq!(a.stats().accepted, accepted);
    let key = cluster.key_of(&groups, 0);
    assert_eq!(groups[1].get(&key).await.unwrap(), key, "b loads the value itself");
    assert!(
        a.set_cluster_key(ClusterKey::new(pki::cluster_key()).unwrap())
            .await
            .expect_err("a mounted node takes no cluster key")
            .is_config()
    );
}

#[tokio::test]
async fn mounted_service_without_certificates_names_the_remedy() {
    let authority = Authority::new("ours");
    let service = PeerService::default();
    let address = plain_server(service.clone()).await;
    let me = identity("a").with_advertised([address.into()]).unwrap();
    let tls = authority.issue("a.peers").mutual(&authority.pem());
    let a = Node::builder().identity(me).mount(&service).mutual_tls(tls).start().await.unwrap();
    // Neither the server nor b uses TLS, so that requests of b reach the service and are refused there.
    let peers = Peers::default();
    let b = Node::builder().identity(identity("b")).provider(peers.clone()).start().await.unwrap();
    peers.set(vec![groupcache_core::discovery::Peer::member(a.id(), [address.into()])]);
    eventually("b is refused", || b.unconnected().iter().any(|peer| peer.error.is_unauthenticated())).await;
    let error = b.unconnected().remove(0).error.to_string();
    assert!(error.contains("cluster_key") && error.contains("PeerCertificates"), "{error}");
    assert!(a.stats().unauthenticated > 0);
}
