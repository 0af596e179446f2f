//! Authorities and certificates, valid and invalid.

use groupcache_core::tls::{ClusterKey, MutualTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use read_along::is_secret;

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its private key in PEM.
#[derive(Clone)]
pub struct Pem {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate for a peer with this DNS name.
    pub fn issue(&self, name: &str) -> Pem {
        self.issue_as(name, |_| {})
    }

    /// Issues a certificate for a peer with this DNS name after `change` has altered its parameters.
    pub fn issue_as(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pem {
        let (params, key) = leaf(name, change);
        Pem::new(params.signed_by(&key, &self.issuer).unwrap().pem(), &key)
    }
}

/// Returns a self-signed certificate.
pub fn self_signed(name: &str) -> Pem {
    let (params, key) = leaf(name, |_| {});
    Pem::new(params.self_signed(&key).unwrap().pem(), &key)
}

fn leaf(name: &str, change: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    (params, KeyPair::generate().unwrap())
}

pub fn expired(params: &mut CertificateParams) {
    params.not_after = date_time_ymd(2020, 1, 1);
}

pub fn not_yet_valid(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2900, 1, 1);
}

pub fn with_uri(uri: &str) -> impl FnOnce(&mut CertificateParams) {
    let uri = SanType::URI(uri.try_into().unwrap());
    |params| params.subject_alt_names = vec![uri]
}

/// Returns a new random cluster key.
pub fn cluster_key() -> String {
    let key = ClusterKey::random().unwrap();
    is_secret(&key);
    key
}

impl Pem {
    fn new(certificate: String, key: &KeyPair) -> Self {
        let key = key.serialize_pem();
        is_secret(&key);
        Self { certificate, key }
    }

    /// Returns the TLS settings of a node that shows this certificate, trusts `authorities` and lets in peers named
    /// `{id}.peers`.
    pub fn mutual(&self, authorities: &str) -> MutualTls {
        MutualTls::from_pem(&self.certificate, &self.key, authorities).peer_names(["{id}.peers"]).unwrap()
    }
}
