//! TLS between peers, with certificates of the user or with a key that the cluster shares. Feature `tls`.
//!
//! The version is always TLS 1.3, and both sides always present a certificate. A peer is let in by a name in its
//! certificate, because a certificate of a trusted authority is not enough. Sessions are not resumed, so that
//! each handshake checks everything. Handshakes are rare, because connections live long.

mod cluster_key;
mod mutual;
mod names;
mod peer_certificates;
mod verify;

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DistinguishedName, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    pki_types::ServerName,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::transport::tls::verify::Trust;
pub use crate::transport::tls::{cluster_key::ClusterKey, mutual::MutualTls, peer_certificates::PeerCertificates};
use crate::{
    error::{Error, Kind, Result},
    files,
    identity::PeerId,
    transport::{
        TcpStream,
        handshake::{Caller, HandshakeError},
    },
};

/// Maximum size of a file with certificates or keys, many times that of the authorities of a system.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// ALPN name of HTTP/2, the only protocol of peers.
const ALPN: &[u8] = b"h2";

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

    /// Returns the credentials of the source, or `None` when its content has the digest `known`.
    async fn read(&self, identity: &TlsIdentity, known: &[u8]) -> Result<Option<Material>> {
        match self {
            Self::Certificates(mutual) => mutual.read(known).await,
            Self::Key(key) => key.read(identity, known).await,
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

/// Certificates of this node, each with the name of its authority. The node presents a certificate of an authority that
/// the other side asks for, or else the first one.
#[derive(Debug)]
struct OwnCertificate(Vec<(Option<DistinguishedName>, Arc<CertifiedKey>)>);

impl OwnCertificate {
    /// Returns the certificate to present.
    fn choose(&self, is_asked_for: impl Fn(&[u8]) -> bool) -> Option<Arc<CertifiedKey>> {
        let asked = |issuer: &Option<DistinguishedName>| issuer.as_ref().is_some_and(|dn| is_asked_for(dn.as_ref()));
        let chosen = self.0.iter().find(|(issuer, _)| asked(issuer)).or_else(|| self.0.first());
        chosen.map(|(_, key)| Arc::clone(key))
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
}

impl ActiveCredentials {
    fn new(generation: u64, material: Material) -> Result<Self> {
        let failed = |e| Error::caused(Kind::Config, "these certificates and keys cannot be used for TLS 1.3", e);
        let own = Arc::new(material.own);
        let client =
            ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).map_err(failed)?;
        let mut client = client
            .dangerous() // `Trust` lets a peer in by the names in its certificate and not by the dialled address
            .with_custom_certificate_verifier(Arc::clone(&material.trust) as _)
            .with_client_cert_resolver(Arc::clone(&own) as _);
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        let server =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).map_err(failed)?;
        let mut server =
            server.with_client_cert_verifier(Arc::clone(&material.trust) as _).with_cert_resolver(own as _);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            generation,
            digest: material.digest,
            client: TlsConnector::from(Arc::new(client)),
            server: TlsAcceptor::from(Arc::new(server)),
            trust: material.trust,
        })
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
}

impl CredentialStore {
    /// Reads the source for the first time.
    pub(crate) async fn new(source: Source, identity: TlsIdentity) -> Result<Self> {
        let material = source.read(&identity, &[]).await?;
        let material = material.ok_or_else(|| Error::config("certificates and keys could not be read"))?;
        let in_use = ArcSwap::from_pointee(ActiveCredentials::new(1, material)?);
        Ok(Self { identity, source: tokio::sync::Mutex::new(source), in_use, generation: watch::Sender::new(1) })
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
        let is_new = self.replace_from(&source).await?;
        *source_now = source;
        Ok(is_new)
    }

    /// Reads `source` and replaces the credentials in use if its content is new. The caller holds the lock of the
    /// source.
    async fn replace_from(&self, source: &Source) -> Result<bool> {
        let before = self.in_use.load_full();
        let Some(material) = source.read(&self.identity, &before.digest).await? else { return Ok(false) };
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
        let (connector, trust) = {
            let in_use = self.in_use.load();
            (in_use.client.clone(), Arc::clone(&in_use.trust))
        };
        // The server is identified by its certificate; the name is for servers that choose a certificate by name.
        let name = ServerName::try_from(host.to_owned()).or_else(|_| ServerName::try_from("groupcache.invalid"));
        let name = name.map_err(|e| HandshakeError::Broken(e.to_string()))?;
        let stream = connector.connect(name, tcp).await.map_err(|e| ended(&e))?;
        let (_, connection) = stream.get_ref();
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::OtherTls("the other side does not offer HTTP/2 (ALPN h2)".to_owned()));
        }
        let caller = trust.identify(connection.peer_certificates().unwrap_or_default())?;
        Ok((stream.into(), caller))
    }

    /// Performs the handshake of the side that listens, and returns the identity of the client.
    ///
    /// When the handshake fails, the error returns the TCP connection, so that the caller can keep it open until the
    /// client has read the alert. A connection that fails the checks after its handshake is closed at once.
    pub(crate) async fn accept(&self, tcp: TcpStream) -> Result<Accepted, (HandshakeError, Option<TcpStream>)> {
        let in_use = self.in_use.load_full();
        let stream = in_use.server.accept(tcp).into_fallible().await.map_err(|(e, tcp)| (ended(&e), Some(tcp)))?;
        Self::accepted(&in_use, stream).map_err(|trouble| (trouble, None))
    }

    /// Checks a connection after its handshake.
    fn accepted(
        in_use: &ActiveCredentials,
        stream: tokio_rustls::server::TlsStream<TcpStream>,
    ) -> Result<Accepted, HandshakeError> {
        let (_, connection) = stream.get_ref();
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::OtherTls("the other side does not ask for HTTP/2 (ALPN h2)".to_owned()));
        }
        let caller = in_use.trust.identify(connection.peer_certificates().unwrap_or_default())?;
        Ok((stream.into(), caller, in_use.generation))
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

/// Returns the reason for the end of a handshake.
fn ended(error: &io::Error) -> HandshakeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => HandshakeError::Broken("the other side closed it in the middle".to_owned()),
        _ => HandshakeError::of(error),
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
        let store = CredentialStore::new(Source::Certificates(tls), test_identity()).await.unwrap();
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
        let start = async |tls: MutualTls| CredentialStore::new(Source::Certificates(tls), test_identity()).await;
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
        let store = Arc::new(CredentialStore::new(source(), test_identity()).await.unwrap());
        let security = crate::transport::Security::Tls(Arc::clone(&store));
        let generation = security.generation();
        assert!(store.take(source()).await.unwrap());
        security.replaced(generation, 0).await;
        let current = security.replaced(security.generation(), 0);
        assert!(futures_util::FutureExt::now_or_never(current).is_none(), "the current credentials are not replaced");
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the test connects as a client")]
    async fn node_with_two_keys_connects_to_holders_of_either() {
        let [old, new] = [(); 2].map(|()| pki::cluster_key());
        let store = async |keys: &str| {
            CredentialStore::new(Source::Key(ClusterKey::new(keys).unwrap()), test_identity()).await.unwrap()
        };
        let (before, both, after) = (store(&old).await, store(&format!("{new},{old}")).await, store(&new).await);
        let connect_both = async |client: &CredentialStore, server: &CredentialStore| {
            let listener = crate::transport::listen(([127, 0, 0, 1], 0).into()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let connect = async {
                let tcp = TcpStream::connect(address).await.unwrap();
                client.connect(tcp, "127.0.0.1").await.map(drop)
            };
            let accept = async {
                let (tcp, _) = listener.accept().await.unwrap();
                server.accept(tcp).await.map(drop)
            };
            let (connected, accepted) = tokio::join!(connect, accept);
            (connected.is_ok(), accepted.is_ok())
        };
        for (client, server) in [(&before, &both), (&both, &before), (&both, &after), (&after, &both), (&both, &both)] {
            assert_eq!(connect_both(client, server).await, (true, true));
        }
        assert_eq!(connect_both(&before, &after).await, (false, false));
        assert_eq!(connect_both(&after, &before).await, (false, false));
    }
}
