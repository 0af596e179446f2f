//! TLS between peers, with certificates of the user or with a key that the cluster shares. Feature `tls`.
//!
//! The version is always TLS 1.3, and both sides always present a certificate. A peer is let in by a name in its
//! certificate, because a certificate of a trusted authority is not enough. Sessions are not resumed, so that
//! each handshake checks everything. Handshakes are rare, because connections live long.

mod authority;
mod cluster_key;
mod mutual;
mod names;
mod peer_certificates;
mod stretched;
mod verify;

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    AlertDescription as Alert, ClientConfig, DistinguishedName, Error as TlsError, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    pki_types::ServerName,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

pub use crate::transport::tls::{cluster_key::ClusterKey, mutual::MutualTls, peer_certificates::PeerCertificates};
use crate::transport::tls::{stretched::StretchedKeys, verify::Trust};
use crate::{
    error::{Error, Kind, Result},
    files,
    identity::PeerId,
    runtime::{log_limit::LogRateLimit, stats::NodeCounters},
    transport::{
        TcpStream,
        handshake::{Caller, HandshakeError},
    },
};

/// Maximum size of a file with certificates or keys, many times that of the authorities of a system.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// ALPN name of HTTP/2, the only protocol of peers. With a cluster key, it stands for the derivation of release 0.1, and
/// another name for the stretched one.
const ALPN: &[u8] = b"h2";

/// Reason for a failed handshake with a node that does not offer the only derivation that this node accepts.
const NOT_STRETCHED: &str = "the other side does not offer the stretched derivation of the cluster key, and this node \
    accepts no other: upgrade the other node if it is of release 0.1, or set GROUPCACHE_ACCEPT_OLD_KEYS=1 or \
    accept_old_keys(true) here until it is upgraded; a node with mutual_tls(...) needs the same security as this node, and \
    a client that is no node needs nothing";

/// Source of the credentials of a node.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Certificates(MutualTls),
    Key(ClusterKey),
}

impl Source {
    /// Returns whether the source is in files, which may change.
    fn is_read_from_files(&self) -> bool {
        match self {
            Self::Certificates(mutual) => mutual.is_read_from_files(),
            Self::Key(key) => key.is_read_from_a_file(),
        }
    }

    /// Returns the source with the settings of the one that it replaces, as far as it has none of its own.
    fn in_the_place_of(self, before: &Self) -> Self {
        match (self, before) {
            (Self::Key(key), Self::Key(before)) => Self::Key(key.in_the_place_of(before)),
            (source, _) => source,
        }
    }

    /// Returns the credentials of the source, or `None` when its content has the digest `known`.
    async fn read(&self, identity: &TlsIdentity, known: &[u8], stretched: &StretchedKeys) -> Result<Option<Material>> {
        match self {
            Self::Certificates(mutual) => mutual.read(known).await,
            Self::Key(key) => key.read(identity, known, stretched).await,
        }
    }
}

/// Identity in the certificates that a node issues to itself.
#[derive(Clone, Debug)]
pub(crate) struct TlsIdentity {
    pub(crate) cluster: Arc<str>,
    pub(crate) id: PeerId,
}

/// Credentials that were read from a source.
pub(crate) struct Material {
    own: OwnCertificate,
    trust: Arc<Trust>,
    /// SHA-256 digest of the content of the source, which shows whether the content has changed.
    digest: Vec<u8>,
}

/// Certificates of this node. The node presents a certificate of an authority that the other side asks for, or else the
/// first one.
#[derive(Debug)]
struct OwnCertificate(Vec<Presented>);

/// Certificate of this node.
#[derive(Debug)]
struct Presented {
    /// Protocol name (ALPN) of the connections that use the certificate.
    protocol: &'static [u8],
    /// Name of the authority.
    issuer: Option<DistinguishedName>,
    key: Arc<CertifiedKey>,
}

impl OwnCertificate {
    /// Returns the protocol names that this node offers, in the order in which it prefers them.
    fn protocols(&self) -> Vec<&'static [u8]> {
        let mut protocols: Vec<_> = self.0.iter().map(|own| own.protocol).collect();
        protocols.dedup();
        protocols
    }

    /// Returns the certificate to present. Nodes of each release ask for the authorities that they trust, so that the
    /// protocol of the connection need not choose too.
    fn choose(&self, is_asked_for: impl Fn(&[u8]) -> bool) -> Option<Arc<CertifiedKey>> {
        let is_asked = |own: &&Presented| own.issuer.as_ref().is_some_and(|dn| is_asked_for(dn.as_ref()));
        self.0.iter().find(is_asked).or_else(|| self.0.first()).map(|own| Arc::clone(&own.key))
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.certificate_authorities().unwrap_or_default();
        self.choose(|issuer| wanted.iter().any(|dn| dn.as_ref() == issuer))
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, wanted: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.choose(|issuer| wanted.contains(&issuer))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Credentials that are in use, as the settings of both sides of a handshake.
struct ActiveCredentials {
    generation: u64,
    digest: Vec<u8>,
    client: TlsConnector,
    server: TlsAcceptor,
    trust: Arc<Trust>,
    protocols: Vec<&'static [u8]>,
}

impl ActiveCredentials {
    fn new(generation: u64, material: Material) -> Result<Self> {
        let failed = |e| Error::caused(Kind::Config, "these certificates and keys cannot be used for TLS 1.3", e);
        let own = Arc::new(material.own);
        let protocols = own.protocols();
        let alpn_protocols: Vec<_> = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let client =
            ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).map_err(failed)?;
        let mut client = client
            .dangerous() // `Trust` lets a peer in by the names in its certificate and not by the dialled address
            .with_custom_certificate_verifier(Arc::clone(&material.trust) as _)
            .with_client_cert_resolver(Arc::clone(&own) as _);
        client.alpn_protocols = alpn_protocols.clone();
        client.resumption = Resumption::disabled();
        let server =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).map_err(failed)?;
        let mut server =
            server.with_client_cert_verifier(Arc::clone(&material.trust) as _).with_cert_resolver(own as _);
        server.alpn_protocols = alpn_protocols;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            generation,
            digest: material.digest,
            client: TlsConnector::from(Arc::new(client)),
            server: TlsAcceptor::from(Arc::new(server)),
            trust: material.trust,
            protocols,
        })
    }

    /// Returns whether a connection of this protocol uses the derivation of release 0.1.
    ///
    /// # Errors
    /// `missing` when the protocol is none of this node.
    fn is_old(&self, protocol: Option<&[u8]>, missing: &str) -> Result<bool, HandshakeError> {
        let known = protocol.filter(|protocol| self.protocols.contains(protocol));
        let known = known.ok_or_else(|| HandshakeError::OtherTls(missing.to_owned()))?;
        Ok(known == ALPN && self.protocols.len() > 1)
    }

    /// Returns the reason for the end of a handshake.
    fn ended(&self, error: &io::Error) -> HandshakeError {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls {
            Some(TlsError::NoApplicationProtocol | TlsError::AlertReceived(Alert::NoApplicationProtocol))
                if !self.protocols.contains(&ALPN) =>
            {
                HandshakeError::OtherTls(NOT_STRETCHED.to_owned())
            }
            _ if error.kind() == io::ErrorKind::UnexpectedEof => {
                HandshakeError::Broken("the other side closed it in the middle".to_owned())
            }
            _ => HandshakeError::of(error),
        }
    }
}

/// Connection, identity of its client, and generation of the credentials that let it in.
type Accepted = (TlsStream<TcpStream>, Caller, u64);

/// Store of the credentials of a node, which replaces them when their source changes.
///
/// Each replacement increases the generation, so that connections of earlier generations can be retired.
pub(crate) struct CredentialStore {
    identity: TlsIdentity,
    /// Source of the credentials, locked while it is read, so that an earlier read never replaces the result of a later
    /// one.
    source: tokio::sync::Mutex<Source>,
    in_use: ArcSwap<ActiveCredentials>,
    generation: watch::Sender<u64>,
    stretched: StretchedKeys,
    counters: Arc<NodeCounters>,
    /// Limit of the lines about connections with the derivation of release 0.1.
    log_limit: LogRateLimit,
}

impl CredentialStore {
    /// Reads the source for the first time.
    pub(crate) async fn new(source: Source, identity: TlsIdentity, counters: Arc<NodeCounters>) -> Result<Self> {
        let stretched = StretchedKeys::default();
        let material = source.read(&identity, &[], &stretched).await?;
        let material = material.ok_or_else(|| Error::config("certificates and keys could not be read"))?;
        let in_use = ArcSwap::from_pointee(ActiveCredentials::new(1, material)?);
        Ok(Self {
            identity,
            source: tokio::sync::Mutex::new(source),
            in_use,
            generation: watch::Sender::new(1),
            stretched,
            counters,
            log_limit: LogRateLimit::default(),
        })
    }

    /// Returns the generation of the credentials in use.
    pub(crate) fn generation(&self) -> u64 {
        self.in_use.load().generation
    }

    /// Returns a receiver of the current and all later generations.
    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads the source again and returns whether its content has changed. Unusable content changes nothing.
    pub(crate) async fn reload(&self) -> Result<bool> {
        let source = self.source.lock().await;
        self.replace_from(&source).await
    }

    /// Reads the source again if it is in files, as [`reload`](Self::reload) does.
    pub(crate) async fn reload_files(&self) -> Result<bool> {
        if self.source.lock().await.is_read_from_files() { self.reload().await } else { Ok(false) }
    }

    /// Replaces the source and reads it, as [`reload`](Self::reload) does. An unusable source changes nothing.
    pub(crate) async fn take(&self, source: Source) -> Result<bool> {
        let mut source_now = self.source.lock().await;
        let source = source.in_the_place_of(&source_now);
        let is_new = self.replace_from(&source).await?;
        *source_now = source;
        Ok(is_new)
    }

    /// Reads `source` and replaces the credentials in use if its content is new. The caller holds the lock of the
    /// source.
    async fn replace_from(&self, source: &Source) -> Result<bool> {
        let before = self.in_use.load_full();
        let Some(material) = source.read(&self.identity, &before.digest, &self.stretched).await? else {
            return Ok(false);
        };
        let generation = before.generation + 1;
        self.in_use.store(Arc::new(ActiveCredentials::new(generation, material)?));
        self.generation.send_replace(generation);
        Ok(true)
    }

    /// Returns the identity of a client that presented these certificates to the TLS server of the user.
    pub(crate) fn check(&self, shown: &PeerCertificates) -> Result<Caller, HandshakeError> {
        self.in_use.load().trust.check_client(shown.chain())
    }

    /// Performs the handshake of the side that connects, and returns the identity of the server.
    pub(crate) async fn connect(
        &self,
        tcp: TcpStream,
        host: &str,
    ) -> Result<(TlsStream<TcpStream>, Caller), HandshakeError> {
        let in_use = self.in_use.load_full();
        // The server is identified by its certificate; the name is for servers that choose a certificate by name.
        let name = ServerName::try_from(host.to_owned()).or_else(|_| ServerName::try_from("groupcache.invalid"));
        let name = name.map_err(|e| HandshakeError::Broken(e.to_string()))?;
        let stream = in_use.client.connect(name, tcp).await.map_err(|e| in_use.ended(&e))?;
        let (tcp, connection) = stream.get_ref();
        let is_old = in_use.is_old(connection.alpn_protocol(), "the other side does not offer HTTP/2 (ALPN h2)")?;
        let caller = in_use.trust.identify(connection.peer_certificates().unwrap_or_default())?;
        self.note(is_old, tcp);
        Ok((stream.into(), caller))
    }

    /// Performs the handshake of the side that listens, and returns the identity of the client.
    ///
    /// When the handshake fails, the error returns the TCP connection, so that the caller can keep it open until the
    /// client has read the alert. A connection that fails the checks after its handshake is closed at once.
    pub(crate) async fn accept(&self, tcp: TcpStream) -> Result<Accepted, (HandshakeError, Option<TcpStream>)> {
        let in_use = self.in_use.load_full();
        let stream =
            in_use.server.accept(tcp).into_fallible().await.map_err(|(e, tcp)| (in_use.ended(&e), Some(tcp)))?;
        self.accepted(&in_use, stream).map_err(|trouble| (trouble, None))
    }

    /// Checks a connection after its handshake.
    fn accepted(
        &self,
        in_use: &ActiveCredentials,
        stream: tokio_rustls::server::TlsStream<TcpStream>,
    ) -> Result<Accepted, HandshakeError> {
        let (tcp, connection) = stream.get_ref();
        let is_old = in_use.is_old(connection.alpn_protocol(), "the other side does not ask for HTTP/2 (ALPN h2)")?;
        let caller = in_use.trust.identify(connection.peer_certificates().unwrap_or_default())?;
        self.note(is_old, tcp);
        Ok((stream.into(), caller, in_use.generation))
    }

    /// Counts and logs a connection with the derivation of release 0.1.
    fn note(&self, is_old: bool, tcp: &TcpStream) {
        if !is_old {
            return;
        }
        self.counters.old_keys.up();
        self.log_limit.write(|suppressed| {
            tracing::warn!(
                remote = ?tcp.peer_addr().ok(),
                suppressed,
                "a peer derives from the cluster key as release 0.1 does, so that a weak key can be guessed; upgrade \
                 it, and set GROUPCACHE_ACCEPT_OLD_KEYS=0 or accept_old_keys(false) on all nodes once none is left"
            );
        });
    }
}

impl fmt::Debug for CredentialStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialStore")
            .field("identity", &self.identity)
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

/// Returns the cryptography of `ring`. Each use names the provider, because other code may set another default for the
/// process.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Returns the SHA-256 digest of several parts; the length of each part is included.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    context.finish().as_ref().to_vec()
}

/// Reads a whole file into memory that is overwritten on drop.
async fn read_file(what: &str, path: &std::path::Path) -> Result<zeroize::Zeroizing<Vec<u8>>> {
    files::read(path, MAX_FILE_BYTES).await.map(Into::into).map_err(|e| {
        let text =
            format!("{what} cannot be read from {} ({e}); name a file that this process may read", path.display());
        Error::caused(Kind::Config, text, e)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::testing::unit::support::pki::{self, Authority};

    fn test_identity() -> TlsIdentity {
        TlsIdentity { cluster: "default".into(), id: PeerId::new("a").unwrap() }
    }

    /// Folder that is deleted at the end of the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("groupcache-{test}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn reload_of_files_that_do_not_fit_changes_nothing() {
        let (folder, authority) = (Folder::new("torn"), Authority::new("ours"));
        let (old, new) = (authority.issue("a.peers"), authority.issue("a.peers"));
        let certificate = folder.write("tls.crt", &old.certificate);
        let (key, ca) = (folder.write("tls.key", &old.key), folder.write("ca.crt", &authority.pem()));
        let tls = MutualTls::from_files(&certificate, &key, &ca).peer_names(["*.peers"]).unwrap();
        let store = CredentialStore::new(Source::Certificates(tls), test_identity(), Arc::default()).await.unwrap();
        assert_eq!((store.reload().await.unwrap(), store.generation()), (false, 1), "the content is unchanged");

        folder.write("tls.crt", &new.certificate);
        let torn = store.reload().await.expect_err("the key file holds the old key");
        assert!(torn.is_config() && torn.to_string().contains("not that of the certificate"), "{torn}");
        std::fs::remove_file(&key).unwrap();
        assert!(store.reload().await.expect_err("the key file is missing").to_string().contains("tls.key"));
        folder.write("tls.key", "-----BEGIN nonsense");
        assert!(store.reload().await.is_err());
        assert_eq!(store.generation(), 1);

        folder.write("tls.key", &new.key);
        assert_eq!((store.reload().await.unwrap(), store.generation()), (true, 2));
    }

    #[tokio::test]
    async fn start_with_unusable_certificates_names_the_cause() {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let (pem, other) = (ours.issue("a.peers"), ours.issue("b.peers"));
        let start = async |tls: MutualTls| {
            CredentialStore::new(Source::Certificates(tls), test_identity(), Arc::default()).await
        };
        let named = |tls: MutualTls| tls.peer_names(["*.peers"]).unwrap();
        for (tls, part) in [
            (MutualTls::from_pem(&pem.certificate, &pem.key, ours.pem()), "peer_names"),
            (named(MutualTls::from_pem(&pem.certificate, &other.key, ours.pem())), "not that of the certificate"),
            (named(MutualTls::from_pem(&pem.certificate, "nothing", ours.pem())), "private key"),
            (named(MutualTls::from_pem("nothing", &pem.key, ours.pem())), "the certificate"),
            (named(MutualTls::from_pem(&pem.certificate, &pem.key, "nothing")), "the authorities"),
            (named(MutualTls::from_files("/no/such/tls.crt", "/x", "/y")), "/no/such/tls.crt"),
        ] {
            let error = start(tls).await.expect_err(part);
            assert!(error.is_config() && error.to_string().contains(part), "{error}");
            assert!(!format!("{error:?}").contains(pem.key.lines().nth(1).unwrap()));
        }
        // A certificate that this node does not trust is accepted, because the peers may trust it.
        assert!(start(named(MutualTls::from_pem(&pem.certificate, &pem.key, theirs.pem()))).await.is_ok());
    }

    /// Checks that a connection that begins to wait after the replacement of its credentials is retired as well.
    #[tokio::test]
    async fn replacement_before_the_wait_is_noticed() {
        let source = || Source::Key(ClusterKey::new(pki::cluster_key()).unwrap());
        let store = Arc::new(CredentialStore::new(source(), test_identity(), Arc::default()).await.unwrap());
        let security = crate::transport::Security::Tls(Arc::clone(&store));
        let generation = security.generation();
        assert!(store.take(source()).await.unwrap());
        security.replaced(generation, 0).await;
        let current = security.replaced(security.generation(), 0);
        assert!(futures_util::FutureExt::now_or_never(current).is_none(), "the current credentials are not replaced");
    }

    /// Outcome of a handshake: the protocol, or the error of that side.
    type Side = Result<Vec<u8>, String>;

    /// Returns a node with these keys, separated by commas.
    async fn node(keys: &str, accepts_old: bool) -> CredentialStore {
        let key = ClusterKey::new(keys).unwrap().accept_old_keys(accepts_old);
        CredentialStore::new(Source::Key(key), test_identity(), Arc::default()).await.unwrap()
    }

    /// Returns a node that knows the derivation of release 0.1 only.
    async fn old_node(keys: &str) -> CredentialStore {
        let (store, secrets) = (node(keys, true).await, cluster_key::parse(keys).unwrap());
        let old = [stretched::Derivation::Old];
        let material = cluster_key::credentials(&secrets, &old, &store.identity, Vec::new(), &store.stretched).await;
        store.in_use.store(Arc::new(ActiveCredentials::new(2, material.unwrap()).unwrap()));
        store
    }

    /// Performs a handshake and returns its outcome at the client and at the server.
    #[expect(clippy::disallowed_methods, reason = "the test connects as a client")]
    async fn connect(client: &CredentialStore, server: &CredentialStore) -> (Side, Side) {
        let protocol = |stream: &TlsStream<TcpStream>| stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
        let listener = crate::transport::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connect = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            client.connect(tcp, "127.0.0.1").await.map(|(stream, _)| protocol(&stream)).map_err(|e| e.to_string())
        };
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let accepted = server.accept(tcp).await;
            accepted.map(|(stream, ..)| protocol(&stream)).map_err(|(e, _)| e.to_string())
        };
        tokio::join!(connect, accept)
    }

    fn old_uses(store: &CredentialStore) -> u64 {
        store.counters.snapshot().old_keys
    }

    /// Checks that nodes use the stretched key, whether they accept old keys and in whichever order a change of keys has
    /// listed them. A node that accepts no old keys knows no other authority.
    #[tokio::test]
    async fn nodes_of_this_release_use_the_stretched_key() {
        let [one, other] = [(); 2].map(|()| pki::cluster_key());
        let (both, reversed) =
            (node(&format!("{one},{other}"), true).await, node(&format!("{other},{one}"), true).await);
        let (strict, strict_other) = (node(&one, false).await, node(&other, false).await);
        let stretched = stretched::Derivation::Stretched.protocol().to_vec();
        let pairs = [
            (&both, &reversed),
            (&reversed, &both),
            (&both, &strict),
            (&strict, &both),
            (&both, &strict_other),
            (&strict_other, &both),
            (&strict, &strict),
        ];
        for (client, server) in pairs {
            assert_eq!(connect(client, server).await, (Ok(stretched.clone()), Ok(stretched.clone())));
        }
        assert!([&both, &reversed, &strict, &strict_other].into_iter().all(|node| old_uses(node) == 0));
    }

    #[tokio::test]
    async fn old_key_of_a_peer_is_used_and_counted() {
        let [new, old] = [(); 2].map(|()| pki::cluster_key());
        let (before, of_both) = (old_node(&old).await, old_node(&format!("{new},{old}")).await);
        let now = node(&format!("{new},{old}"), true).await;
        for (at, (client, server)) in
            [(&before, &now), (&now, &before), (&of_both, &now), (&now, &of_both)].iter().enumerate()
        {
            assert_eq!(connect(client, server).await, (Ok(ALPN.to_vec()), Ok(ALPN.to_vec())));
            assert_eq!(old_uses(&now), at as u64 + 1);
        }
    }

    #[tokio::test]
    async fn old_key_that_is_not_accepted_is_an_error_with_remedy() {
        let key = pki::cluster_key();
        let (before, strict) = (old_node(&key).await, node(&key, false).await);
        let (by_old, by_strict) = connect(&before, &strict).await;
        let (by_strict_client, by_old_server) = connect(&strict, &before).await;
        assert!(by_old.is_err() && by_old_server.is_err());
        for refused in [by_strict, by_strict_client] {
            let error = refused.unwrap_err();
            assert!(error.contains("GROUPCACHE_ACCEPT_OLD_KEYS=1") && error.contains("upgrade"), "{error}");
        }
        assert_eq!(old_uses(&strict), 0);
    }

    /// Checks that a new key without a setting of its own lets in no more than the key before.
    #[tokio::test]
    async fn new_key_keeps_the_refusal_of_old_ones() {
        let [old, new] = [(); 2].map(|()| pki::cluster_key());
        let (before, strict) = (old_node(&old).await, node(&old, false).await);
        let both = || ClusterKey::new(format!("{new},{old}")).unwrap();
        assert!(strict.take(Source::Key(both())).await.unwrap());
        assert!(connect(&before, &strict).await.1.is_err());
        assert!(strict.take(Source::Key(both().accept_old_keys(true))).await.unwrap());
        assert!(connect(&before, &strict).await.1.is_ok());
    }

    #[tokio::test]
    async fn end_of_old_keys_is_a_change_without_a_new_stretch() {
        let key = pki::cluster_key();
        let store = node(&key, true).await;
        let strict = || Source::Key(ClusterKey::new(&key).unwrap().accept_old_keys(false));
        assert!(store.take(strict()).await.unwrap());
        assert!(!store.take(strict()).await.unwrap());
        assert_eq!(store.stretched.remembered(), 1);
    }

    #[tokio::test]
    async fn node_with_two_keys_connects_to_holders_of_either() {
        let [old, new] = [(); 2].map(|()| pki::cluster_key());
        let both = node(&format!("{new},{old}"), true).await;
        let (before, after) = (node(&old, true).await, node(&new, true).await);
        let connect_both = async |client: &CredentialStore, server: &CredentialStore| {
            let (connected, accepted) = connect(client, server).await;
            (connected.is_ok(), accepted.is_ok())
        };
        for (client, server) in [(&before, &both), (&both, &before), (&both, &after), (&after, &both), (&both, &both)] {
            assert_eq!(connect_both(client, server).await, (true, true));
        }
        assert_eq!(connect_both(&before, &after).await, (false, false));
        assert_eq!(connect_both(&after, &before).await, (false, false));
    }
}
