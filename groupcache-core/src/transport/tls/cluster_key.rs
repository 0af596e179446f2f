//! Cluster key: a secret that the nodes of a cluster share, from which each node derives one common authority.
//!
//! The authority issues each node a certificate that carries its id, so that all other rules of TLS between peers are
//! those of certificates that the user brings.

use std::{fmt, path::PathBuf, sync::Arc};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::environment::{Variables, trimmed};
use crate::error::{BoxError, Error, Kind, Result};
use crate::transport::tls::{
    Material, OwnCertificate, TlsIdentity,
    authority::{material, origin},
    digest,
    names::Name,
    read_file,
    stretched::{Derivation, StretchedKeys},
    verify::Trust,
};

/// Minimum length of a key in bytes, because an attacker may guess offline and a correct guess makes it a peer.
const MIN_BYTES: usize = 32;

/// Maximum number of active keys: the key in use, and the previous or the next one.
const MAX_KEYS: usize = 2;

/// Minimum number of different bytes in a key. Of random keys of 32 bytes, fewer than one in 10^16 has less; a short
/// password that is repeated has less.
const MIN_DIFFERENT: usize = 16;

/// Bits of a part of an encoded key that returns within it. The parts of a random key of 32 bytes do in one of 10^11.
const REPEATED_BITS: usize = 48;

/// Variable of [`ClusterKey::accept_old_keys`].
const ACCEPT_OLD: &str = "GROUPCACHE_ACCEPT_OLD_KEYS";

/// Remedy in error texts: how to make a key.
const MAKE: &str = "make one with: head -c 32 /dev/urandom | base64";

/// Key for TLS between peers that needs no certificates, only a secret that all nodes of a cluster share.
///
/// A key is at least 32 random bytes in hexadecimal or base64. The command `head -c 32 /dev/urandom | base64` makes
/// one. The key and the name of the cluster are the seed of an authority (Argon2id, Ed25519). Every node computes
/// the authority for itself and issues itself a certificate in memory. A node with another key or another cluster name
/// is not let in. Certificates do not expire, so that no wall clock has to be right. To shut out a holder of the key,
/// change the key.
///
/// To change the key, first give every node both keys, `new,old`, in any order of nodes, and then the new key alone. A
/// node with two keys shows each peer the certificate of the authority that the peer knows. Files are read again every
/// 10 s. Connections that a replaced key has let in end within 50 s, one by one and without a failed get.
///
/// ```
/// # use groupcache_core::{tls::ClusterKey, Node};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), groupcache_core::Error> {
/// let key = ClusterKey::new("1kzNdPkhZJ6L4bmd8bcPYQmCxp8eI2a7A1yj3uVJ2Yk=")?;
/// let node = Node::builder().cluster_key(key).start().await?;
/// # node.shutdown().await }
/// ```
#[derive(Clone)]
pub struct ClusterKey {
    source: KeySource,
    /// Whether the authority of release 0.1 is used with nodes that know no other; `None` for the setting of the node.
    accepts_old: Option<bool>,
}

/// Place from which the keys are read.
#[derive(Clone)]
enum KeySource {
    Memory(Arc<[Secret]>),
    File(PathBuf),
}

/// Bytes of a key, which are overwritten on drop and never printed.
pub(super) type Secret = Zeroizing<Vec<u8>>;

impl ClusterKey {
    /// Reads one key, or two keys during a change: `new,old`, separated by a comma or white space.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when a key is shorter than 32 bytes, is not random, or is neither hexadecimal
    /// nor base64, and when there are no keys or more than two. The text names the command that makes a key and never
    /// contains the given key.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        Ok(Self { source: KeySource::Memory(parse(text.as_ref())?.into()), accepts_old: None })
    }

    /// Reads the keys from a file, in the format of [`new`](Self::new), when the node starts and again every 10 s.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self { source: KeySource::File(path.into()), accepts_old: None }
    }

    /// Reads the keys from `GROUPCACHE_CLUSTER_KEY`, or from the file that `GROUPCACHE_CLUSTER_KEY_FILE` names. Returns
    /// `None` when neither variable is set. A node that is started without a cluster key and without certificates calls
    /// this function.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new).
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_variables(&Variables::of_process())
    }

    pub(crate) fn from_variables(vars: &Variables<'_>) -> Result<Option<Self>> {
        let key = vars.read("GROUPCACHE_CLUSTER_KEY", |text| Self::new(text))?;
        let file = vars.text("GROUPCACHE_CLUSTER_KEY_FILE")?;
        Ok(key.or_else(|| file.map(Self::from_file)))
    }

    /// Returns the key with the setting of `GROUPCACHE_ACCEPT_OLD_KEYS`, unless the key has one of its own.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) for a switch that is neither on nor off.
    pub(crate) fn with_setting_of(self, vars: &Variables<'_>) -> Result<Self> {
        let accepts_old = vars.text(ACCEPT_OLD)?.is_none() || vars.switch(ACCEPT_OLD)?;
        Ok(Self { accepts_old: self.accepts_old.or(Some(accepts_old)), ..self })
    }

    /// Returns the key with the setting of the key that it replaces, unless it has one of its own.
    pub(super) fn in_the_place_of(self, before: &Self) -> Self {
        Self { accepts_old: self.accepts_old.or(before.accepts_old), ..self }
    }

    /// Sets whether the node connects to nodes of release 0.1, which derive the authority from the key without
    /// stretching it (HKDF-SHA-256). Default: that of `GROUPCACHE_ACCEPT_OLD_KEYS` at the start of the node, or else
    /// true; a key that replaces another has the setting of that one.
    ///
    /// While it is true, a client that reaches the port can guess at a weak key as fast as with release 0.1. Each
    /// connection that such a node opens or takes is counted in `old_keys` of [`Node::stats`](crate::Node::stats) and
    /// logged. Connections live long, so that only a node which has started after the last upgrade, and has counted none
    /// since, shows that no node of release 0.1 is left.
    #[must_use]
    pub fn accept_old_keys(self, accepts_old: bool) -> Self {
        Self { accepts_old: Some(accepts_old), ..self }
    }

    /// Returns a new random key of 32 bytes in base64, for programs that generate their key.
    ///
    /// # Errors
    /// [`is_config`](Error::is_config) when the system has no random numbers.
    pub fn random() -> Result<String> {
        let mut bytes = Zeroizing::new([0; MIN_BYTES]);
        let filled = SystemRandom::new().fill(bytes.as_mut());
        filled.map_err(|_| Error::config("the system provides no random numbers; check that /dev/urandom exists"))?;
        Ok(BASE64.encode(bytes.as_ref()))
    }

    /// Returns whether the keys are in a file, which may change.
    pub(crate) fn is_read_from_a_file(&self) -> bool {
        matches!(self.source, KeySource::File(_))
    }

    /// Returns the credentials that follow from the keys, or `None` when the keys have the digest `known`.
    pub(super) async fn read(
        &self,
        identity: &TlsIdentity,
        known: &[u8],
        stretched: &StretchedKeys,
    ) -> Result<Option<Material>> {
        let keys = match &self.source {
            KeySource::Memory(keys) => Arc::clone(keys),
            KeySource::File(path) => {
                let bytes = read_file("the cluster key", path).await?;
                let text = std::str::from_utf8(&bytes).map_err(|_| unreadable())?;
                let of = |e: Error| Error::caused(Kind::Config, format!("{}: {e}", path.display()), e);
                parse(text).map_err(of)?.into()
            }
        };
        let accepts_old = self.accepts_old.unwrap_or(true);
        let settings: &[u8] = &[u8::from(accepts_old)];
        let digest = digest(keys.iter().map(|key| key.as_slice()).chain([settings]));
        if digest == known {
            return Ok(None);
        }
        let derivations: &[Derivation] =
            if accepts_old { &[Derivation::Stretched, Derivation::Old] } else { &[Derivation::Stretched] };
        credentials(&keys, derivations, identity, digest, stretched).await.map(Some)
    }
}

/// Returns the credentials that follow from keys by these derivations.
pub(super) async fn credentials(
    keys: &[Secret],
    derivations: &[Derivation],
    identity: &TlsIdentity,
    digest: Vec<u8>,
    stretched: &StretchedKeys,
) -> Result<Material> {
    let failed = |e: BoxError| Error::caused(Kind::Config, "no certificate can be issued from the cluster key", e);
    let secrets = stretched.secrets(keys, derivations, &identity.cluster).await.map_err(failed)?;
    let (own, roots) = material(&secrets, identity).map_err(failed)?;
    let name = Name::parse(&format!("{}{{id}}", origin(&identity.cluster)))?;
    let trust = Arc::new(Trust::new(roots, vec![name])?.at_any_time());
    Ok(Material { own: OwnCertificate(own), trust, digest })
}

/// Returns the keys of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Secret>> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).map(trimmed).filter(|word| !word.is_empty());
    let keys: Vec<_> = words.map(key).collect::<Result<_>>()?;
    match keys.len() {
        0 => Err(Error::config(format!("the text holds no cluster key; {MAKE}"))),
        n if n > MAX_KEYS => Err(Error::config(format!(
            "{n} cluster keys are more than {MAX_KEYS}; give the new one and the previous one"
        ))),
        _ => Ok(keys),
    }
}

/// Decodes a key: hexadecimal if all characters fit, otherwise base64 of either alphabet, padded or not.
fn key(word: &str) -> Result<Secret> {
    let word = word.as_bytes();
    let encodings = [&HEXLOWER_PERMISSIVE, &BASE64, &BASE64_NOPAD, &BASE64URL, &BASE64URL_NOPAD];
    let decoded = encodings.iter().find_map(|encoding| encoding.decode(word).ok());
    let key = Zeroizing::new(decoded.ok_or_else(unreadable)?);
    if key.len() < MIN_BYTES {
        return Err(Error::config(format!("a cluster key of {} bytes is too short; {MAKE}", key.len())));
    }
    let mut different = Zeroizing::new(key.to_vec());
    different.sort_unstable();
    different.dedup();
    if different.len() < MIN_DIFFERENT || is_text(word) {
        return Err(Error::config(format!("the cluster key is not random and can be guessed; {MAKE}")));
    }
    Ok(key)
}

/// Returns whether an encoded key looks like words, which decode to bytes that look random: letters of one case only, or
/// a part that returns. Of random keys of 32 bytes, one in 10^9 does.
fn is_text(word: &[u8]) -> bool {
    let is_hex = HEXLOWER_PERMISSIVE.decode(word).is_ok();
    let has = |is: fn(&u8) -> bool| word.iter().any(is);
    let has_both_cases = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
    let parts: Vec<_> = word.windows(if is_hex { REPEATED_BITS / 4 } else { REPEATED_BITS / 6 }).collect();
    let returns = parts.iter().enumerate().any(|(at, part)| parts.iter().skip(at + 1).any(|other| other == part));
    (!is_hex && !has_both_cases) || returns
}

fn unreadable() -> Error {
    Error::config(format!("a cluster key is at least {MIN_BYTES} random bytes in hexadecimal or base64; {MAKE}"))
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ClusterKey");
        match &self.source {
            KeySource::Memory(keys) => out.field("keys", &keys.len()),
            KeySource::File(path) => out.field("file", path),
        };
        out.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ED25519, SanType};
    use rustls::{
        RootCertStore,
        client::danger::ServerCertVerifier,
        pki_types::{ServerName, UnixTime},
        server::danger::ClientCertVerifier,
    };

    use super::*;
    use crate::identity::PeerId;
    use crate::transport::tls::{authority::authority, stretched::extract};

    const HEX: &str = "d64ccd74f921649e8be1b99df1b70f610982c69f1e2366bb035ca3dee549d989";

    fn refused(text: &str) -> String {
        let error = ClusterKey::new(text).expect_err("the key is refused");
        assert!(error.is_config());
        error.to_string()
    }

    #[test]
    fn cluster_key_is_read_from_hexadecimal_and_base64() {
        let bytes = key(HEX).unwrap();
        for encoding in [&BASE64, &BASE64_NOPAD, &BASE64URL, &BASE64URL_NOPAD] {
            assert_eq!(key(&encoding.encode(&bytes)).unwrap(), bytes);
        }
        assert_eq!(key(&HEX.to_uppercase()).unwrap(), bytes);
        assert_eq!(parse(&format!(" {HEX},\n{}\n", ClusterKey::random().unwrap())).unwrap().len(), 2);
    }

    /// Checks that a key is read whatever editors and shells put around it.
    #[test]
    fn byte_order_mark_and_line_ends_are_no_part_of_key() {
        let clean = key(HEX).unwrap();
        for text in [format!("\u{feff}{HEX}\r\n"), format!("{HEX}\r"), format!("\u{200b}{HEX}")] {
            assert_eq!(parse(&text).unwrap(), std::slice::from_ref(&clean), "{text:?}");
        }
        let file = |name: &str| (name == "GROUPCACHE_CLUSTER_KEY_FILE").then(|| "/run/key\r".to_owned());
        let read = ClusterKey::from_variables(&Variables::from_fn(file)).unwrap().unwrap();
        assert!(matches!(&read.source, KeySource::File(path) if path.as_os_str() == "/run/key"), "{read:?}");
    }

    /// Checks that the error names the command that makes a key, and that neither the error nor `Debug` shows the key.
    #[test]
    fn invalid_cluster_key_error_has_remedy_and_no_key() {
        let short = &HEX[..62];
        for text in ["", "   ", short, "correct horse battery staple", &"00".repeat(32), &"password".repeat(8)] {
            let text_of_error = refused(text);
            assert!(text_of_error.contains("/dev/urandom"), "{text_of_error}");
            assert!(text.trim().is_empty() || !text_of_error.contains(text), "{text_of_error}");
        }
        for text in [
            "productionproductionproductionproduction1234",
            "correcthorsebatterystapleandsomefurtherwords",
            "CorrectHorseBatteryStapleCorrectHorseBattery",
            "WEAK0KEY1OF2UPPER3CASE4AND5DIGITS6ONLY7890AB",
            &"0123456789abcdef0f1e2d3c4b5a6978".repeat(2),
        ] {
            assert!(refused(text).contains("not random"), "{text}");
        }
        for _ in 0..1000 {
            ClusterKey::new(ClusterKey::random().unwrap()).expect("random");
        }
        assert!(refused(short).contains("31 bytes"));
        assert!(refused(&[HEX; 3].join(",")).contains("3 cluster keys"));
        assert!(!format!("{:?}", ClusterKey::new(HEX).unwrap()).contains(&HEX[..8]));
    }

    #[test]
    fn old_keys_are_accepted_unless_the_environment_says_no() {
        let in_code = || ClusterKey::new(HEX).unwrap();
        let started = |key: ClusterKey, accept: &'static str| {
            let accept = move |name: &str| (name == "GROUPCACHE_ACCEPT_OLD_KEYS").then(|| accept.to_owned());
            key.with_setting_of(&Variables::from_fn(accept))
        };
        for (value, accepts_old) in [("", true), ("1", true), ("0", false), ("no\r", false)] {
            assert_eq!(started(in_code(), value).unwrap().accepts_old, Some(accepts_old), "{value:?}");
        }
        let told = started(in_code().accept_old_keys(false), "1").unwrap();
        assert_eq!(told.accepts_old, Some(false), "code wins over the environment");
        let error = started(in_code(), "maybe").unwrap_err();
        assert!(error.is_config() && error.to_string().contains("GROUPCACHE_ACCEPT_OLD_KEYS"), "{error}");
    }

    #[test]
    fn authority_depends_on_key_and_cluster_name() {
        let other = ClusterKey::random().unwrap();
        let public = |key_text: &str, cluster: &str| {
            let authority = authority(&extract(b"salt", &key(key_text).unwrap()), cluster).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.der().clone()).unwrap();
            roots.roots.remove(0).subject_public_key_info.to_vec()
        };
        assert_eq!(public(HEX, "users"), public(HEX, "users"), "every node computes the same authority");
        assert_ne!(public(HEX, "users"), public(HEX, "orders"));
        assert_ne!(public(HEX, "users"), public(&other, "users"));
    }

    /// Checks that a node accepts the certificates of 0.1.0, which are valid from 1975 on, whatever its clock says.
    #[test]
    fn dates_of_certificate_are_not_checked() {
        let authority = authority(&extract(b"salt", &key(HEX).unwrap()), "users").unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(format!("{}a", origin("users")).try_into().unwrap())];
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let issuer = Issuer::from_params(&authority.params, &*authority.key);
        let shown = params.signed_by(&pair, &issuer).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone()).unwrap();
        let name = Name::parse(&format!("{}{{id}}", origin("users"))).unwrap();
        let dated = Trust::new(roots.clone(), vec![name.clone()]).unwrap();
        let trust = Trust::new(roots, vec![name]).unwrap().at_any_time();
        let (now, peer) = (UnixTime::since_unix_epoch(Duration::ZERO), ServerName::try_from("a").unwrap());
        for (trust, is_valid) in [(dated, false), (trust, true)] {
            let by_client = ServerCertVerifier::verify_server_cert(&trust, &shown, &[], &peer, &[], now);
            let by_server = ClientCertVerifier::verify_client_cert(&trust, &shown, &[], now);
            assert_eq!((by_client.is_ok(), by_server.is_ok()), (is_valid, is_valid));
        }
    }

    /// Checks that the certificate of a node is valid whatever its clock or that of a peer says.
    #[test]
    fn certificate_is_valid_from_1970_to_9999() {
        let identity = TlsIdentity { id: PeerId::new("a").unwrap(), cluster: "users".into() };
        let (own, roots) = material(&[(Derivation::Old, extract(b"salt", &key(HEX).unwrap()))], &identity).unwrap();
        let shown = own[0].key.cert[0].clone();
        let name = Name::parse(&format!("{}{{id}}", origin("users"))).unwrap();
        let trust = Trust::new(roots, vec![name]).unwrap();
        const YEAR_9999: u64 = 253_370_764_800;
        for seconds in [0, 1, 86_400, 1_790_000_000, YEAR_9999] {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let peer = ServerName::try_from("a").unwrap();
            ServerCertVerifier::verify_server_cert(&trust, &shown, &[], &peer, &[], now).unwrap();
            ClientCertVerifier::verify_client_cert(&trust, &shown, &[], now).unwrap();
        }
    }
}
