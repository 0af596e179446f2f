//! Stretched keys: each guess at a cluster key costs memory and time, because the secret of an authority does.
//!
//! Nodes of release 0.1 use the key without stretching it. The protocol name (ALPN) that both sides of a handshake offer
//! chooses the derivation.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use zeroize::Zeroizing;

use crate::error::BoxError;
use crate::runtime::{off_thread::off_thread, sync::Mutex};
use crate::transport::tls::{ALPN, cluster_key::Secret, digest};

/// Memory of Argon2id in KiB: the minimum of OWASP, because a node may change keys close to the limit of its memory.
const MEMORY_KIB: u32 = 19 * 1024;

/// Passes of Argon2id over its memory: the minimum of OWASP, because a build without optimization takes 0.6 s for them.
/// They take about 0.03 s of one core in a release build.
const PASSES: u32 = 2;

/// Lanes of Argon2id. The crate computes them one after another.
const LANES: u32 = 1;

/// Bytes of a stretched key.
const STRETCHED_BYTES: usize = 32;

/// Maximum number of remembered stretched keys: those of a change of keys, and of the change before.
const REMEMBERED: usize = 4;

/// Salt of HKDF and, with the name of the cluster, of Argon2id, which separates this use of the key from any other.
const SALT: &[u8] = b"groupcache v2 cluster key";

/// Salt of HKDF of release 0.1.
const OLD_SALT: &[u8] = b"groupcache v1 cluster key";

/// Way from a key to the secret of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Derivation {
    /// Argon2id, and HKDF-SHA-256.
    Stretched,
    /// HKDF-SHA-256 alone, as in release 0.1.
    Old,
}

impl Derivation {
    /// Returns the protocol name (ALPN) of HTTP/2 with this derivation. Other parameters need another name.
    pub(super) fn protocol(self) -> &'static [u8] {
        match self {
            Self::Stretched => b"h2-groupcache-argon2id",
            Self::Old => ALPN,
        }
    }
}

/// Stretched keys of a node, by key, so that a node computes each once.
#[derive(Default)]
pub(super) struct StretchedKeys(Mutex<Vec<(Secret, Secret)>>);

impl StretchedKeys {
    /// Returns the secrets of all keys, those of the first derivation first.
    pub(super) async fn secrets(
        &self,
        keys: &[Secret],
        derivations: &[Derivation],
        cluster: &str,
    ) -> Result<Vec<(Derivation, Prk)>, BoxError> {
        let mut secrets = Vec::new();
        for derivation in derivations {
            for key in keys {
                let secret = match derivation {
                    Derivation::Stretched => extract(SALT, &self.stretched(key, cluster).await?),
                    Derivation::Old => extract(OLD_SALT, key),
                };
                secrets.push((*derivation, secret));
            }
        }
        Ok(secrets)
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.0.lock().len()
    }

    /// Returns the stretched form of a key, from memory if it is there. A node has one cluster name.
    async fn stretched(&self, key: &Secret, cluster: &str) -> Result<Secret, BoxError> {
        let known = self.0.lock().iter().find(|(known, _)| known == key).map(|(_, stretched)| stretched.clone());
        if let Some(known) = known {
            return Ok(known);
        }
        let (of_thread, salt) = (key.clone(), digest([SALT, cluster.as_bytes()]));
        let stretched = off_thread(move || stretch(&of_thread, &salt)).await?;
        let mut all = self.0.lock();
        if all.len() >= REMEMBERED {
            all.remove(0);
        }
        all.push((key.clone(), stretched.clone()));
        Ok(stretched)
    }
}

/// Computes the stretched form of a key.
fn stretch(key: &[u8], salt: &[u8]) -> Result<Secret, argon2::Error> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(STRETCHED_BYTES))?;
    let mut memory = Zeroizing::new(vec![Block::default(); params.block_count()]);
    let mut stretched = Zeroizing::new(vec![0; STRETCHED_BYTES]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into_with_memory(key, salt, &mut stretched, memory.as_mut_slice())?;
    Ok(stretched)
}

pub(super) fn extract(salt: &[u8], key: &[u8]) -> Prk {
    Salt::new(HKDF_SHA256, salt).extract(key)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// Checks the stretched form against the reference implementation of Argon2, because all releases must agree.
    #[test]
    fn stretched_key_equals_that_of_the_reference() {
        let key = HEXLOWER.decode(b"d64ccd74f921649e8be1b99df1b70f610982c69f1e2366bb035ca3dee549d989").unwrap();
        let stretched = stretch(&key, &digest([SALT, b"users"])).unwrap();
        assert_eq!(HEXLOWER.encode(&stretched), "94e46959e2712fe0f8f23037cafe1e42c79383367f5697de9866cf15c791e19d");
    }
}
