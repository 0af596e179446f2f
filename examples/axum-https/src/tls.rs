//! TLS: reads the certificates for the server, which users and peers connect to, and for the node, which dials its
//! peers.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use groupcache_discovery::{BoxError, tls::MutualTls};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::{sync::watch, time::sleep};

/// DNS name in the certificate of a peer, with its id in place of `{id}`. No certificate for another purpose has such a
/// name.
const PEER_NAMES: &str = "{id}.peers.internal";

/// Interval between two reads of the files by the server. The node reads them at the same interval.
const LOOK: Duration = Duration::from_secs(10);

/// Paths of the certificate, of its key, and of the authority.
#[derive(Clone)]
pub(crate) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

/// Contents of the files.
#[derive(PartialEq, Eq)]
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Vec<u8>,
}

impl Files {
    /// Returns the paths of the files that the program `certificates` writes for the node `name`.
    pub(crate) fn of(directory: &Path, name: &str) -> Self {
        let file = |name: String| directory.join(name);
        let authority = file("ca.pem".to_owned());
        Self { certificate: file(format!("{name}.pem")), key: file(format!("{name}-key.pem")), authority }
    }

    /// Returns the settings of the node: its own certificate, and the names that the certificates of peers must have.
    pub(crate) fn mutual(&self) -> Result<MutualTls, BoxError> {
        Ok(MutualTls::from_files(&self.certificate, &self.key, &self.authority).peer_names([PEER_NAMES])?)
    }

    /// Reads the files and returns the settings of the server. The receiver gets new settings when the files change.
    pub(crate) async fn follow(self) -> Result<watch::Receiver<Arc<ServerConfig>>, BoxError> {
        let mut read = self.read().await?;
        let (sender, receiver) = watch::channel(read.server()?);
        tokio::spawn(async move {
            while !sender.is_closed() {
                sleep(LOOK).await;
                match self.read().await.and_then(|now| Ok((now.server()?, now))) {
                    Ok((server, now)) if now != read => {
                        read = now;
                        sender.send_replace(server);
                        tracing::info!("the certificate of the server was replaced");
                    }
                    Ok(_) => {}
                    // Another process may have written only some of the files so far.
                    Err(error) => tracing::warn!(%error, "the server keeps its certificate until the files are valid"),
                }
            }
        });
        Ok(receiver)
    }

    async fn read(&self) -> Result<Read, BoxError> {
        let file = async |path: &Path| {
            let read = tokio::fs::read(path).await;
            read.map_err(|e| format!("cannot read {}, make it with the program `certificates`: {e}", path.display()))
        };
        let (certificate, key) = (file(&self.certificate).await?, file(&self.key).await?);
        Ok(Read { certificate, key, authority: file(&self.authority).await? })
    }
}

impl Read {
    /// Builds the settings of the server. A client certificate is optional, because users have none. The server checks
    /// the authority of a client certificate, and the node checks its names.
    fn server(&self) -> Result<Arc<ServerConfig>, BoxError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.authority)? {
            roots.add(authority)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = verifier.allow_unauthenticated().build()?;
        // The error of the library is left out, because it quotes the line that cannot be read.
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| "the key file holds no private key in PEM")?;
        let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
        let mut config =
            config.with_client_cert_verifier(verifier).with_single_cert(certificates(&self.certificate)?, key)?;
        // Peers speak HTTP/2. Users speak HTTP/2 or HTTP/1.1.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BoxError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err("a certificate file holds no certificate in PEM, or a damaged one".into()),
    }
}
