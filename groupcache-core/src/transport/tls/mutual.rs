//! Mutual TLS with certificates of the user.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::ring::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};
use crate::transport::tls::{Material, OwnCertificate, digest, names::Name, read_file, verify::Trust};

/// TLS between peers with certificates of your own: both sides show one, and are admitted by name.
///
/// Certificates must be issued for `serverAuth` and `clientAuth`, because a peer is both sides. Files are read again every
/// 10 s. New certificates are used for new connections at once, and older connections end within 50 s, one by one and
/// without a failed get. Files that do not fit together, or cannot be read, change nothing.
///
/// To change the authority, put the old and the new one into the CA file of every node first, and change the certificates
/// then.
///
/// ```no_run
/// # use groupcache_core::{tls::MutualTls, Node};
/// # async fn f() -> Result<(), groupcache_core::Error> {
/// let tls = MutualTls::from_files("/etc/tls/tls.crt", "/etc/tls/tls.key", "/etc/tls/ca.crt")
///     .peer_names(["{id}.users.default.svc.cluster.local"])?;
/// let node = Node::builder().mutual_tls(tls).start().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MutualTls {
    from: From,
    names: Vec<Name>,
}

#[derive(Clone)]
enum From {
    Files { certificate: PathBuf, key: PathBuf, authorities: PathBuf },
    Memory { certificate: Arc<[u8]>, key: Arc<Zeroizing<Vec<u8>>>, authorities: Arc<[u8]> },
}

impl MutualTls {
    /// Returns the settings for PEM files: this node's certificate (with its intermediates after it), its private key, and
    /// the authorities whose certificates are trusted. The node reads them when it starts.
    pub fn from_files(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        authorities: impl Into<PathBuf>,
    ) -> Self {
        let (certificate, key, authorities) = (certificate.into(), key.into(), authorities.into());
        Self { from: From::Files { certificate, key, authorities }, names: Vec::new() }
    }

    /// Returns the settings for PEM text in memory; otherwise as [`from_files`](Self::from_files). To change it later, see
    /// [`Node::set_mutual_tls`](crate::Node::set_mutual_tls).
    pub fn from_pem(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>, authorities: impl AsRef<[u8]>) -> Self {
        let from = From::Memory {
            certificate: certificate.as_ref().into(),
            key: Arc::new(Zeroizing::new(key.as_ref().to_vec())),
            authorities: authorities.as_ref().into(),
        };
        Self { from, names: Vec::new() }
    }

    /// Sets the names of admitted peers: DNS names or URIs in their certificates (subject alternative names). Required,
    /// because an authority issues certificates for others too.
    ///
    /// `*` stands for the first label of a DNS name, or for one segment of a URI's path. `{id}` stands for the same, and its
    /// text must be the [`PeerId`](crate::PeerId) of the peer (percent-encoded in URIs). For example `cache.example.org`, `*.peers.example.org`, `spiffe://example.org/ns/prod/cache/{id}`.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when a name can match nothing, or everything.
    pub fn peer_names<N: AsRef<str>>(mut self, names: impl IntoIterator<Item = N>) -> Result<Self> {
        self.names = names.into_iter().map(|name| Name::parse(name.as_ref())).collect::<Result<_>>()?;
        Ok(self)
    }

    pub(crate) fn is_read_from_files(&self) -> bool {
        matches!(self.from, From::Files { .. })
    }

    /// Reads the certificates; returns `None` when their bytes have the `known` digest.
    pub(crate) async fn read(&self, known: &[u8]) -> Result<Option<Material>> {
        if self.names.is_empty() {
            return Err(Error::config(
                "mutual TLS without peer_names would let in every certificate of the authority; add \
                 .peer_names([\"*.peers.example.org\"]) with the names that your peers' certificates carry",
            ));
        }
        match &self.from {
            From::Files { certificate, key, authorities } => {
                let certificate = read_file("the certificate", certificate).await?;
                let key = read_file("the private key", key).await?;
                let authorities = read_file("the authorities", authorities).await?;
                self.material(&certificate, &key, &authorities, known)
            }
            From::Memory { certificate, key, authorities } => self.material(certificate, key, authorities, known),
        }
    }

    fn material(&self, certificate: &[u8], key: &[u8], authorities: &[u8], known: &[u8]) -> Result<Option<Material>> {
        let digest = digest([certificate, key, authorities, format!("{:?}", self.names).as_bytes()]);
        if digest == known {
            return Ok(None);
        }
        let chain = certificates("the certificate", certificate)?;
        let private = PrivateKeyDer::from_pem_slice(key).map_err(|e| unreadable("the private key", &e))?;
        let private = Zeroizing::new(private);
        let signing = any_supported_type(&private).map_err(|e| {
            Error::caused(
                Kind::Config,
                "the private key is of no kind that is supported: RSA, ECDSA P-256 or P-384, Ed25519",
                e,
            )
        })?;
        let own = CertifiedKey::new(chain, signing);
        own.keys_match().map_err(|e| {
            let text = "the private key is not that of the certificate; name the two files that were issued together";
            Error::caused(Kind::Config, text, e)
        })?;
        let mut roots = RootCertStore::empty();
        for authority in certificates("the authorities", authorities)? {
            roots.add(authority).map_err(|e| {
                Error::caused(Kind::Config, "one of the authorities cannot be used; the file holds CA certificates", e)
            })?;
        }
        let trust = Trust::new(roots, self.names.clone())?;
        // No error, because the peers may trust more than this node does.
        if let Err(trouble) = trust.check_client(&own.cert) {
            tracing::warn!(error = %trouble, "this node would refuse its own certificate, and its peers may refuse it too; compare peer_names and authorities");
        }
        Ok(Some(Material { own: OwnCertificate(vec![(None, Arc::new(own))]), trust: Arc::new(trust), digest }))
    }
}

/// Drops the error itself, because it quotes lines of the text, which may be those of a private key.
fn unreadable(what: &str, error: &pem::Error) -> Error {
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "a block has no end",
        pem::Error::IllegalSectionStart { .. } => "a line that begins a block is malformed; are its line breaks there?",
        pem::Error::Base64Decode(_) => "a block is no base64",
        pem::Error::NoItemsFound => "there is no such block in it",
        _ => "it is too large, or cannot be read to its end",
    };
    Error::config(format!("{what} cannot be read: {why}; it is PEM text, and a private key is not encrypted"))
}

/// Returns all certificates of a PEM text.
fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|e| unreadable(what, &e))?;
    if read.is_empty() {
        return Err(Error::config(format!("{what}: there is no PEM block of a CERTIFICATE in it")));
    }
    Ok(read)
}

impl fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("MutualTls");
        if let From::Files { certificate, key, authorities } = &self.from {
            out.field("certificate", certificate).field("key", key).field("authorities", authorities);
        }
        out.field("peer_names", &self.names).finish_non_exhaustive()
    }
}
