//! Mutual TLS with certificates that the user brings, from files or from memory.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    Error as TlsError, RootCertStore,
    crypto::ring::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use webpki::{EndEntityCert, Error::UnsupportedCertVersion};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};
use crate::transport::tls::{ALPN, Material, OwnCertificate, Presented, digest, names::Name, read_file, verify::Trust};

/// TLS between peers with certificates that you bring. Each side presents a certificate and is let in by name.
///
/// Certificates must be issued for `serverAuth` and `clientAuth`, because a peer is server and client. Files are read
/// again every 10 s. New connections use new content at once; older connections end within 50 s, one by one and without
/// a failed get. Files that do not fit together or cannot be read change nothing.
///
/// To change the authority, first put the old and the new authority into the CA file of every node, and then replace
/// the certificates.
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
    source: PemSource,
    names: Vec<Name>,
}

/// Place from which the PEM texts are read.
#[derive(Clone)]
enum PemSource {
    Files { certificate: PathBuf, key: PathBuf, authorities: PathBuf },
    Memory { certificate: Arc<[u8]>, key: Arc<Zeroizing<Vec<u8>>>, authorities: Arc<[u8]> },
}

impl MutualTls {
    /// Uses PEM files: the certificate of this node (followed by its intermediates), its private key, and the
    /// authorities that are trusted. The files are read when the node starts and again every 10 s.
    pub fn from_files(
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        authorities: impl Into<PathBuf>,
    ) -> Self {
        let (certificate, key, authorities) = (certificate.into(), key.into(), authorities.into());
        Self { source: PemSource::Files { certificate, key, authorities }, names: Vec::new() }
    }

    /// Uses PEM texts in memory, with the content that [`from_files`](Self::from_files) describes. To change them
    /// later, see [`Node::set_mutual_tls`](crate::Node::set_mutual_tls).
    pub fn from_pem(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>, authorities: impl AsRef<[u8]>) -> Self {
        let source = PemSource::Memory {
            certificate: certificate.as_ref().into(),
            key: Arc::new(Zeroizing::new(key.as_ref().to_vec())),
            authorities: authorities.as_ref().into(),
        };
        Self { source, names: Vec::new() }
    }

    /// Sets the names of the peers that are let in: DNS names or URIs in their certificates (subject alternative
    /// names). Names are required, because an authority issues certificates for others too. A later call replaces the
    /// names.
    ///
    /// `*` stands for the whole first label of a DNS name, or for one whole segment of the path of a URI. `{id}` stands
    /// for the same parts, and the part must be the [`PeerId`](crate::PeerId) of the peer (percent-encoded in URIs).
    /// Examples are `cache.example.org`, `*.peers.example.org` and `spiffe://example.org/ns/prod/cache/{id}`.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when a name can match nothing, or everything.
    pub fn peer_names<N: AsRef<str>>(mut self, names: impl IntoIterator<Item = N>) -> Result<Self> {
        self.names = names.into_iter().map(|name| Name::parse(name.as_ref())).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Returns whether the PEM texts are in files, which may change.
    pub(crate) fn is_read_from_files(&self) -> bool {
        matches!(self.source, PemSource::Files { .. })
    }

    /// Returns the credentials that the PEM texts hold, or `None` when the texts have the digest `known`.
    pub(crate) async fn read(&self, known: &[u8]) -> Result<Option<Material>> {
        if self.names.is_empty() {
            return Err(Error::config(
                "mutual TLS without peer_names would let in every certificate of the authority; add \
                 .peer_names([\"*.peers.example.org\"]) with the names that your peers' certificates carry",
            ));
        }
        match &self.source {
            PemSource::Files { certificate, key, authorities } => {
                let certificate = read_file("the certificate", certificate).await?;
                let key = read_file("the private key", key).await?;
                let authorities = read_file("the authorities", authorities).await?;
                self.material(&certificate, &key, &authorities, known)
            }
            PemSource::Memory { certificate, key, authorities } => self.material(certificate, key, authorities, known),
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
                "the private key has an unsupported type; use RSA, ECDSA P-256 or P-384, or Ed25519",
                e,
            )
        })?;
        let own = CertifiedKey::new(chain, signing);
        own.keys_match().map_err(|e| unusable(e, &own))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates("the authorities", authorities)? {
            roots.add(authority).map_err(|e| {
                Error::caused(Kind::Config, "one of the authorities cannot be used; give CA certificates only", e)
            })?;
        }
        let trust = Trust::new(roots, self.names.clone())?;
        // A warning and no error, because the peers may trust more than this node does.
        if let Err(trouble) = trust.check_client(&own.cert) {
            tracing::warn!(
                error = %trouble,
                "this node would not let its own certificate in, and its peers may not either; correct peer_names or \
                 the certificate"
            );
        }
        let own = OwnCertificate(vec![Presented { protocol: ALPN, issuer: None, key: Arc::new(own) }]);
        Ok(Some(Material { own, trust: Arc::new(trust), digest }))
    }
}

/// Returns the error for a certificate and a key that cannot be used together.
fn unusable(error: TlsError, own: &CertifiedKey) -> Error {
    let is_outdated =
        own.cert.first().is_some_and(|cert| matches!(EndEntityCert::try_from(cert), Err(UnsupportedCertVersion)));
    let text = match error {
        TlsError::InconsistentKeys(_) => {
            "the private key is not that of the certificate; name the two files that were issued together"
        }
        _ if is_outdated => {
            "the certificate is not of X.509 version 3, so that it carries no names; issue it with subject alternative \
             names, such as by openssl x509 -req -extfile"
        }
        _ => "the certificate cannot be read; issue it again, as X.509 version 3 with subject alternative names",
    };
    Error::caused(Kind::Config, text, error)
}

/// Returns the error for a PEM text that cannot be read. The error of the library is dropped, because it quotes lines
/// of the text, which may belong to a private key.
fn unreadable(what: &str, error: &pem::Error) -> Error {
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "a block has no end",
        pem::Error::IllegalSectionStart { .. } => {
            "the first line of a block is malformed, or its line breaks are missing"
        }
        pem::Error::Base64Decode(_) => "a block is not base64",
        pem::Error::NoItemsFound => "the text has no such block",
        _ => "the text is too large, or its end cannot be read",
    };
    Error::config(format!("{what} cannot be read: {why}; give PEM text, without encryption of a private key"))
}

/// Returns all certificates of a PEM text.
fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|e| unreadable(what, &e))?;
    if read.is_empty() {
        return Err(Error::config(format!("{what} cannot be read: the text has no PEM block of a CERTIFICATE")));
    }
    Ok(read)
}

impl fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("MutualTls");
        if let PemSource::Files { certificate, key, authorities } = &self.source {
            out.field("certificate", certificate).field("key", key).field("authorities", authorities);
        }
        out.field("peer_names", &self.names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Certificate of X.509 version 1 for a key that nothing else uses. Made by `openssl x509 -req` without extensions.
    const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIHgMIGTAhRWR5F1Biw4nw24RBZMW/ZxebR+WTAFBgMrZXAwEjEQMA4GA1UEAwwH
YS5wZWVyczAgFw0yNjExMzAwOTQ2NTNaGA8yMTI2MTEwNjA5NDY1M1owEjEQMA4G
A1UEAwwHYS5wZWVyczAqMAUGAytlcAMhAC2GXzcAyeIPa5AZxomrsa/DbQ3L+YIz
YNpN8t5xN+fiMAUGAytlcANBAOyYL50y3pcoveKW5qX175dGaJ2ozwBwh1vJu1Q8
rciIWLFzz5slLAT6zz+w8hkC9TXf/mPnOaE1DyfNdjrWQQ4=
-----END CERTIFICATE-----
";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIBtvfgQox03MH1iBXAi6Ch0d6SiC2+XhCu7FBgeSGmw2
-----END PRIVATE KEY-----
";

    #[tokio::test]
    async fn certificate_of_version_1_is_named_as_the_fault() {
        let tls = MutualTls::from_pem(VERSION_1, KEY, VERSION_1).peer_names(["*.peers"]).unwrap();
        let Err(error) = tls.read(&[]).await else { panic!("a certificate of version 1 is refused") };
        let text = error.to_string();
        assert!(text.contains("X.509 version 3") && !text.contains("is not that of"), "{text}");
    }
}
