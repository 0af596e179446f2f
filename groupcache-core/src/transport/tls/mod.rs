//! TLS between peers: certificates of the user, or a key that the cluster shares. Feature `tls`.
//!
//! TLS is always 1.3, with a certificate on both sides. A peer is admitted by name, and never by "any certificate of that
//! authority". Sessions are not resumed, because connections live long; each handshake checks everything.

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
    identity::PeerId,
    transport::{
        TcpStream,
        handshake::{Caller, HandshakeError},
    },
};

/// HTTP/2, the only protocol of peers, as ALPN calls it.
const ALPN: &[u8] = b"h2";

/// Source of certificates and keys.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Certificates(MutualTls),
    Key(ClusterKey),
}

impl Source {
    fn is_read_from_files(&self) -> bool {
        match self {
            Self::Certificates(mutual) => mutual.is_read_from_files(),
            Self::Key(key) => key.is_read_from_a_file(),
        }
    }

    /// Reads the source; returns `None` when its bytes have the `known` digest.
    async fn read(&self, me: &TlsIdentity, known: &[u8]) -> Result<Option<Material>> {
        match self {
            Self::Certificates(mutual) => mutual.read(known).await,
            Self::Key(key) => key.read(me, known).await,
        }
    }
}

/// Identity for which a node issues certificates to itself.
#[derive(Clone, Debug)]
pub(crate) struct TlsIdentity {
    pub(crate) cluster: Arc<str>,
    pub(crate) id: PeerId,
}

/// Certificates and keys that were read from a source.
pub(crate) struct Material {
    own: OwnCertificate,
    trust: Arc<Trust>,
    /// Digest of the bytes that were read, by which a change is noticed.
    digest: Vec<u8>,
}

/// Certificates that this node shows: the first of them, or the one whose authority the other side asks for.
#[derive(Debug)]
struct OwnCertificate(Vec<(Option<DistinguishedName>, Arc<CertifiedKey>)>);

impl OwnCertificate {
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

/// The certificates and keys that are in use.
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
            .dangerous() // a verifier of this crate: peers are known by name, not by the address that was dialled
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

/// A connection, the identity of its other end, and the generation of the certificates that admitted it.
type Accepted = (TlsStream<TcpStream>, Caller, u64);

/// Store of a node's certificates and keys, which replaces them when they change.
pub(crate) struct CredentialStore {
    me: TlsIdentity,
    /// Lock that is held during a read, so that an earlier read is not installed after a later one.
    source: tokio::sync::Mutex<Source>,
    in_use: ArcSwap<ActiveCredentials>,
    generation: watch::Sender<u64>,
}

impl CredentialStore {
    pub(crate) async fn new(source: Source, me: TlsIdentity) -> Result<Self> {
        let material = source.read(&me, &[]).await?;
        let material = material.ok_or_else(|| Error::config("certificates and keys could not be read"))?;
        let in_use = ArcSwap::from_pointee(ActiveCredentials::new(1, material)?);
        Ok(Self { me, source: tokio::sync::Mutex::new(source), in_use, generation: watch::Sender::new(1) })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.in_use.load().generation
    }

    /// Returns the generation of the certificates, and a way to wait for the next.
    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads the source again, and returns whether anything is new. An unusable source changes nothing.
    pub(crate) async fn reload(&self) -> Result<bool> {
        let source = self.source.lock().await;
        self.put(&source).await
    }

    /// Reads the source again if it is one that changes by itself; otherwise as [`reload`](Self::reload).
    pub(crate) async fn reload_files(&self) -> Result<bool> {
        if self.source.lock().await.is_read_from_files() { self.reload().await } else { Ok(false) }
    }

    /// Reads another source from now on; otherwise as [`reload`](Self::reload).
    pub(crate) async fn take(&self, source: Source) -> Result<bool> {
        let mut source_now = self.source.lock().await;
        let is_new = self.put(&source).await?;
        *source_now = source;
        Ok(is_new)
    }

    /// Installs what the source has; the caller holds the lock of the source.
    async fn put(&self, source: &Source) -> Result<bool> {
        let before = self.in_use.load_full();
        let Some(material) = source.read(&self.me, &before.digest).await? else { return Ok(false) };
        let generation = before.generation + 1;
        self.in_use.store(Arc::new(ActiveCredentials::new(generation, material)?));
        self.generation.send_replace(generation);
        Ok(true)
    }

    /// Returns the identity of a client that showed these certificates to a TLS server of the user.
    pub(crate) fn check(&self, shown: &PeerCertificates) -> Result<Caller, HandshakeError> {
        self.in_use.load().trust.check_client(shown.chain())
    }

    /// Does the handshake as the side that connects.
    pub(crate) async fn connect(
        &self,
        tcp: TcpStream,
        host: &str,
    ) -> Result<(TlsStream<TcpStream>, Caller), HandshakeError> {
        let (connector, trust) = {
            let in_use = self.in_use.load();
            (in_use.client.clone(), Arc::clone(&in_use.trust))
        };
        // The server is known by its certificate; the name is for servers that choose a certificate by name.
        let name = ServerName::try_from(host.to_owned()).or_else(|_| ServerName::try_from("groupcache.invalid"));
        let name = name.map_err(|e| HandshakeError::Broken(e.to_string()))?;
        let stream = connector.connect(name, tcp).await.map_err(|e| ended(&e))?;
        let (_, connection) = stream.get_ref();
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::OtherTls("it does not offer HTTP/2 (ALPN h2)".to_owned()));
        }
        let caller = trust.name(connection.peer_certificates().unwrap_or_default())?;
        Ok((stream.into(), caller))
    }

    /// Does the handshake as the side that listens.
    ///
    /// When the handshake fails and an alert was sent, the connection is returned, to be closed once the alert was read.
    pub(crate) async fn accept(&self, tcp: TcpStream) -> Result<Accepted, (HandshakeError, Option<TcpStream>)> {
        let in_use = self.in_use.load_full();
        let stream = in_use.server.accept(tcp).into_fallible().await.map_err(|(e, tcp)| (ended(&e), Some(tcp)))?;
        Self::accepted(&in_use, stream).map_err(|trouble| (trouble, None))
    }

    fn accepted(
        in_use: &ActiveCredentials,
        stream: tokio_rustls::server::TlsStream<TcpStream>,
    ) -> Result<Accepted, HandshakeError> {
        let (_, connection) = stream.get_ref();
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::OtherTls("it does not ask for HTTP/2 (ALPN h2)".to_owned()));
        }
        let caller = in_use.trust.name(connection.peer_certificates().unwrap_or_default())?;
        Ok((stream.into(), caller, in_use.generation))
    }
}

impl fmt::Debug for CredentialStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("me", &self.me).field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// Outcome of a handshake.
fn ended(error: &io::Error) -> HandshakeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => HandshakeError::Broken("it closed the connection in the middle".to_owned()),
        _ => HandshakeError::of(error),
    }
}

/// Returns `ring`, which is named wherever it is used because the default of the process may be another provider.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Returns the digest of bytes that were read from several places.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    context.finish().as_ref().to_vec()
}

/// Reads a whole file.
async fn read_file(what: &str, path: &std::path::Path) -> Result<zeroize::Zeroizing<Vec<u8>>> {
    tokio::fs::read(path).await.map(Into::into).map_err(|e| {
        let text = format!("{what} cannot be read from {}; name a file that this process may read", path.display());
        Error::caused(Kind::Config, text, e)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::testing::unit::support::pki::{self, Authority};

    fn me() -> TlsIdentity {
        TlsIdentity { cluster: "default".into(), id: PeerId::new("a").unwrap() }
    }

    /// A folder that is removed at the end of the test.
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
    async fn mismatched_files_change_nothing_until_they_match() {
        let (folder, authority) = (Folder::new("torn"), Authority::new("ours"));
        let (old, new) = (authority.issue("a.peers"), authority.issue("a.peers"));
        let certificate = folder.write("tls.crt", &old.certificate);
        let (key, ca) = (folder.write("tls.key", &old.key), folder.write("ca.crt", &authority.pem()));
        let tls = MutualTls::from_files(&certificate, &key, &ca).peer_names(["*.peers"]).unwrap();
        let keeper = CredentialStore::new(Source::Certificates(tls), me()).await.unwrap();
        assert_eq!((keeper.reload().await.unwrap(), keeper.generation()), (false, 1), "the same as before");

        folder.write("tls.crt", &new.certificate);
        let torn = keeper.reload().await.expect_err("the key is still the old one");
        assert!(torn.is_config() && torn.to_string().contains("not that of the certificate"), "{torn}");
        std::fs::remove_file(&key).unwrap();
        assert!(keeper.reload().await.expect_err("no key").to_string().contains("tls.key"));
        folder.write("tls.key", "-----BEGIN nonsense");
        assert!(keeper.reload().await.is_err());
        assert_eq!(keeper.generation(), 1);

        folder.write("tls.key", &new.key);
        assert_eq!((keeper.reload().await.unwrap(), keeper.generation()), (true, 2));
    }

    #[tokio::test]
    async fn unusable_certificates_are_refused_with_a_remedy() {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let (pem, other) = (ours.issue("a.peers"), ours.issue("b.peers"));
        let start = async |tls: MutualTls| CredentialStore::new(Source::Certificates(tls), me()).await;
        let named = |tls: MutualTls| tls.peer_names(["*.peers"]).unwrap();
        for (tls, says) in [
            (MutualTls::from_pem(&pem.certificate, &pem.key, ours.pem()), "peer_names"),
            (named(MutualTls::from_pem(&pem.certificate, &other.key, ours.pem())), "not that of the certificate"),
            (named(MutualTls::from_pem(&pem.certificate, "nothing", ours.pem())), "private key"),
            (named(MutualTls::from_pem("nothing", &pem.key, ours.pem())), "the certificate"),
            (named(MutualTls::from_pem(&pem.certificate, &pem.key, "nothing")), "the authorities"),
            (named(MutualTls::from_files("/no/such/tls.crt", "/x", "/y")), "/no/such/tls.crt"),
        ] {
            let error = start(tls).await.expect_err(says);
            assert!(error.is_config() && error.to_string().contains(says), "{error}");
            assert!(!format!("{error:?}").contains(pem.key.lines().nth(1).unwrap()));
        }
        // The user may know better than this node which certificates its peers trust.
        assert!(start(named(MutualTls::from_pem(&pem.certificate, &pem.key, theirs.pem()))).await.is_ok());
    }

    #[tokio::test]
    async fn late_reader_of_the_generation_sees_the_replacement() {
        let source = || Source::Key(ClusterKey::new(pki::cluster_key()).unwrap());
        let keeper = Arc::new(CredentialStore::new(source(), me()).await.unwrap());
        let security = crate::transport::Security::Tls(Arc::clone(&keeper));
        let generation = security.generation();
        assert!(keeper.take(source()).await.unwrap());
        security.replaced(generation, 0).await;
        let current = security.replaced(security.generation(), 0);
        assert!(futures_util::FutureExt::now_or_never(current).is_none(), "those of now are in use");
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "its own connection")]
    async fn node_with_two_keys_shows_the_certificate_that_is_known() {
        let [old, new] = [(); 2].map(|()| pki::cluster_key());
        let keeper =
            async |keys: &str| CredentialStore::new(Source::Key(ClusterKey::new(keys).unwrap()), me()).await.unwrap();
        let (before, both, after) = (keeper(&old).await, keeper(&format!("{new},{old}")).await, keeper(&new).await);
        let talk = async |client: &CredentialStore, server: &CredentialStore| {
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
            assert_eq!(talk(client, server).await, (true, true));
        }
        assert_eq!(talk(&before, &after).await, (false, false));
        assert_eq!(talk(&after, &before).await, (false, false));
    }
}
