//! Authority of a cluster: every node computes it from a secret, and issues itself a certificate in memory.

use std::sync::Arc;

use data_encoding::HEXLOWER_PERMISSIVE;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType, date_time_ymd,
};
use ring::hkdf::{KeyType, Prk};
use rustls::{
    RootCertStore,
    crypto::ring::sign::any_supported_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::error::BoxError;
use crate::transport::tls::{Presented, TlsIdentity, stretched::Derivation};

/// Bytes before the seed in the PKCS #8 form of an Ed25519 private key (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Characters that are percent-encoded in a segment of the path of a URI.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Certificate authority that every node derives from the key and the name of the cluster.
pub(super) struct Authority {
    pub(super) params: CertificateParams,
    pub(super) key: Zeroizing<KeyPair>,
    pub(super) certificate: rcgen::Certificate,
}

/// Returns a certificate of each secret, and the authorities of all secrets.
pub(super) fn material(
    secrets: &[(Derivation, Prk)],
    identity: &TlsIdentity,
) -> Result<(Vec<Presented>, RootCertStore), BoxError> {
    let mut roots = RootCertStore::empty();
    let mut own = Vec::new();
    for (derivation, secret) in secrets {
        let authority = authority(secret, &identity.cluster)?;
        let mut name = RootCertStore::empty();
        name.add(authority.certificate.der().clone())?;
        roots.add(authority.certificate.der().clone())?;
        let (issuer, key) = (name.subjects().into_iter().next(), Arc::new(issue(&authority, identity)?));
        own.push(Presented { protocol: derivation.protocol(), issuer, key });
    }
    Ok((own, roots))
}

/// Returns the parameters of a certificate that is valid from 1970 to 9999, because a machine without a clock battery
/// starts in 1970. Nodes of release 0.1.0 check dates, and accept the certificate on such a machine too.
fn valid_at_any_time() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    params
}

/// Derives the authority of a secret and a cluster. The name of the authority identifies it and does not reveal the key.
pub(super) fn authority(secret: &Prk, cluster: &str) -> Result<Authority, BoxError> {
    let seed: Zeroizing<[u8; 32]> = expand(secret, &[b"authority", cluster.as_bytes()])?;
    let label: Zeroizing<[u8; 8]> = expand(secret, &[b"name", cluster.as_bytes()])?;
    let mut params = valid_at_any_time();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("groupcache {}", HEXLOWER_PERMISSIVE.encode(label.as_ref())));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mut pkcs8 = Zeroizing::new(PKCS8_ED25519.to_vec());
    pkcs8.extend_from_slice(seed.as_ref());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()), &PKCS_ED25519)?;
    let key = Zeroizing::new(key); // `KeyPair` does not overwrite its memory on drop
    let certificate = params.self_signed(&*key)?;
    Ok(Authority { params, key, certificate })
}

/// Issues a certificate for the local node, with a private key that never leaves this process.
fn issue(authority: &Authority, identity: &TlsIdentity) -> Result<CertifiedKey, BoxError> {
    let pair = Zeroizing::new(KeyPair::generate_for(&PKCS_ED25519)?);
    let mut params = valid_at_any_time();
    params.distinguished_name.push(DnType::CommonName, "groupcache peer");
    let name = format!("{}{}", origin(&identity.cluster), utf8_percent_encode(identity.id.as_str(), ESCAPED));
    params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let issuer = Issuer::from_params(&authority.params, &*authority.key);
    let certificate = params.signed_by(&*pair, &issuer)?;
    let private = Zeroizing::new(PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der())));
    Ok(CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&private)?))
}

/// Returns the beginning that all names in the certificates of a cluster share.
pub(super) fn origin(cluster: &str) -> String {
    format!("groupcache://{}/", HEXLOWER_PERMISSIVE.encode(cluster.as_bytes()))
}

/// Derives a secret of `N` bytes from the key (HKDF-Expand).
fn expand<const N: usize>(secret: &Prk, info: &[&[u8]]) -> Result<Zeroizing<[u8; N]>, BoxError> {
    struct Bytes(usize);
    impl KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = Zeroizing::new([0; N]);
    let expanded = secret.expand(info, Bytes(N)).and_then(|okm| okm.fill(out.as_mut()));
    expanded.map_err(|_| "the cluster key cannot be expanded")?;
    Ok(out)
}
