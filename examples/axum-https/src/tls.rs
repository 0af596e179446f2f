//! The certificates: of the server, which users and peers see, and of the node, which dials its peers with them.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use groupcache_discovery::{BoxError, MutualTls};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::{sync::watch, time::sleep};

/// What the certificates of peers are called, and those of nobody else.
const PEER_NAMES: &str = "{id}.peers.internal";

/// How often the files are looked at; the node does it as often.
const LOOK: Duration = Duration::from_secs(10);

/// Where the certificate, its key, and the authority are.
#[derive(Clone)]
pub(crate) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

/// What was in them.
#[derive(PartialEq, Eq)]
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Vec<u8>,
}

impl Files {
    /// Those of the node of this name, as `certificates` writes them.
    pub(crate) fn of(directory: &Path, name: &str) -> Self {
        let file = |name: String| directory.join(name);
        let authority = file("ca.pem".to_owned());
        Self { certificate: file(format!("{name}.pem")), key: file(format!("{name}-key.pem")), authority }
    }

    /// What the node proves itself by, and whom it lets in.
    pub(crate) fn mutual(&self) -> Result<MutualTls, BoxError> {
        Ok(MutualTls::from_files(&self.certificate, &self.key, &self.authority).peer_names([PEER_NAMES])?)
    }

    /// The server's settings, now and whenever the files have changed.
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
                    // Perhaps only half of them are written.
                    Err(error) => tracing::warn!(%error, "the certificate of the server stays as it is"),
                }
            }
        });
        Ok(receiver)
    }

    async fn read(&self) -> Result<Read, BoxError> {
        let file = async |path: &Path| {
            let read = tokio::fs::read(path).await;
            read.map_err(|e| format!("cannot read {}, make it with the program certificates: {e}", path.display()))
        };
        let (certificate, key) = (file(&self.certificate).await?, file(&self.key).await?);
        Ok(Read { certificate, key, authority: file(&self.authority).await? })
    }
}

impl Read {
    /// TLS for users, who show no certificate, and for peers, who do. What a peer may be called is checked by the node.
    fn server(&self) -> Result<Arc<ServerConfig>, BoxError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.authority)? {
            roots.add(authority)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = verifier.allow_unauthenticated().build()?;
        // Not the error itself, which quotes the line that it could not read.
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| "the private key is no key in PEM")?;
        let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
        let mut config =
            config.with_client_cert_verifier(verifier).with_single_cert(certificates(&self.certificate)?, key)?;
        // Peers speak HTTP/2, users either.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BoxError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err("a certificate is no certificate in PEM".into()),
    }
}
