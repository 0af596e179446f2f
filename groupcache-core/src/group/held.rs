//! What the store holds: the encoded value, and the decoded one once it was needed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use crate::{
    clock::NEVER,
    error::{Error, Kind},
    message::{Encoded, Source},
    store::Entry,
    value::{DecodeError, EncodeError, Value},
};

/// An entry as flights and the store share it.
pub(super) type Slot<V> = Arc<Entry<Held<V>>>;

/// A value in both its forms; for types whose decoding is a clone, in one.
#[derive(Debug)]
pub(super) struct Held<V> {
    encoded: Bytes,
    decoded: OnceLock<V>,
}

impl<V: Value> Held<V> {
    /// Of a value that was loaded or set here; also how many bytes it has outside of itself.
    pub(super) fn of(value: V) -> Result<(Self, u64), EncodeError> {
        let encoded = value.to_encoded()?;
        let weight = encoded.len() as u64 + if V::DECODES_LIKE_A_CLONE { 0 } else { value.weight() as u64 };
        let decoded = if V::DECODES_LIKE_A_CLONE { OnceLock::new() } else { OnceLock::from(value) };
        Ok((Self { encoded, decoded }, weight))
    }

    /// Of a value that came from a peer; it is decoded by the first who needs it.
    pub(super) fn received(encoded: Bytes) -> Self {
        Self { encoded, decoded: OnceLock::new() }
    }

    /// The encoded form.
    pub(super) fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// A clone of the value, decoded if it has not been.
    pub(super) fn value(&self) -> Result<V, DecodeError> {
        if let Some(value) = self.decoded.get() {
            return Ok(value.clone());
        }
        let value = decode::<V>(self.encoded.clone())?;
        if V::DECODES_LIKE_A_CLONE {
            return Ok(value);
        }
        // Two may decode at once; that is cheaper than to let everyone wait under a lock.
        Ok(self.decoded.get_or_init(|| value).clone())
    }
}

/// Decodes; a decoder that panics is one that cannot.
pub(super) fn decode<V: Value>(bytes: Bytes) -> Result<V, DecodeError> {
    catch_unwind(AssertUnwindSafe(|| V::decode(bytes)))
        .unwrap_or_else(|_| Err(DecodeError::new("the decoder panicked")))
}

impl From<DecodeError> for Error {
    fn from(e: DecodeError) -> Self {
        Self::caused(Kind::LoadFailed { is_transient: false }, "the value cannot be decoded again", e)
    }
}

/// An entry as it is told to a peer.
pub(super) fn encoded<V: Value>(slot: &Entry<Held<V>>, now_ms: u64, source: Source) -> Encoded {
    Encoded {
        bytes: slot.payload.encoded().clone(),
        age_ms: now_ms.saturating_sub(slot.loaded_at_ms),
        remaining_ms: (slot.expires_at_ms != NEVER).then(|| slot.expires_at_ms.saturating_sub(now_ms)),
        source,
    }
}
