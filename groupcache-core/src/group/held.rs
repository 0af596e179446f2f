//! What the store holds: the encoded value, and the decoded one once it was needed.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use crate::{
    store::Entry,
    value::{DecodeError, EncodeError, Value},
};

/// An entry as flights and the store share it.
pub(super) type Slot<V> = Arc<Entry<Held<V>>>;

/// What is known of a key.
#[derive(Debug)]
pub(super) enum Held<V> {
    /// A value in both its forms; for types whose decoding is a clone, in one.
    Value { encoded: Bytes, decoded: OnceLock<V> },
    /// The loader found nothing.
    Nothing,
}

/// Why there is no value to hand out.
#[derive(Debug)]
pub(super) enum NoValue {
    NotFound,
    Undecodable(DecodeError),
}

impl<V: Value> Held<V> {
    /// Of a value that was loaded or set here; also how many bytes it has outside of itself.
    pub(super) fn of(value: V) -> Result<(Self, u64), EncodeError> {
        let encoded = value.to_encoded()?;
        let weight = encoded.len() as u64 + if V::DECODES_LIKE_A_CLONE { 0 } else { value.weight() as u64 };
        let decoded = if V::DECODES_LIKE_A_CLONE { OnceLock::new() } else { OnceLock::from(value) };
        Ok((Self::Value { encoded, decoded }, weight))
    }

    /// Of a value that came from a peer; it is decoded by the first who needs it.
    pub(super) fn received(encoded: Bytes) -> Self {
        Self::Value { encoded, decoded: OnceLock::new() }
    }

    /// Of a value that was another node's own, and that is weighed as if it had been loaded here.
    pub(super) fn handed(encoded: Bytes) -> Result<(Self, u64), DecodeError> {
        let value = decode::<V>(encoded.clone())?;
        if V::DECODES_LIKE_A_CLONE {
            let weight = encoded.len() as u64;
            return Ok((Self::received(encoded), weight));
        }
        let Ok(decoded) = catch_unwind(AssertUnwindSafe(|| value.weight())) else {
            release(value);
            return Err(DecodeError::new("the value panicked when it was weighed"));
        };
        let weight = encoded.len() as u64 + decoded as u64;
        Ok((Self::Value { encoded, decoded: OnceLock::from(value) }, weight))
    }

    /// What is held, for another entry.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Value { encoded, decoded } => Self::Value { encoded: encoded.clone(), decoded: decoded.clone() },
            Self::Nothing => Self::Nothing,
        }
    }

    /// The encoded form of a value.
    pub(super) fn encoded(&self) -> Option<&Bytes> {
        match self {
            Self::Value { encoded, .. } => Some(encoded),
            Self::Nothing => None,
        }
    }

    /// What the log shows of a value at TRACE.
    pub(super) fn beginning(&self) -> Cow<'_, str> {
        const SHOWN_BYTES: usize = 64;
        String::from_utf8_lossy(self.encoded().map_or(&[][..], |bytes| bytes.get(..SHOWN_BYTES).unwrap_or(bytes)))
    }

    /// A clone of the value, decoded if it has not been.
    pub(super) fn value(&self) -> Result<V, NoValue> {
        let Self::Value { encoded, decoded } = self else { return Err(NoValue::NotFound) };
        if let Some(value) = decoded.get() {
            return Ok(value.clone());
        }
        let value = decode::<V>(encoded.clone()).map_err(NoValue::Undecodable)?;
        if V::DECODES_LIKE_A_CLONE {
            return Ok(value);
        }
        // Two may decode at once; that is cheaper than to let everyone wait under a lock.
        Ok(decoded.get_or_init(|| value).clone())
    }
}

/// Lets go of what may hold the last of a value. Its `Drop` is the user's code: a panic of it must not end what happens to
/// let go of it, such as the reader of a connection.
pub(super) fn release<T>(values: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(values))).is_err() {
        tracing::error!("the `Drop` of a value panicked");
    }
}

/// The same for many, one by one: two that panic as they are dropped together would end the process.
pub(super) fn release_all<T>(values: impl IntoIterator<Item = T>) {
    values.into_iter().for_each(release);
}

/// Decodes; a decoder that panics is one that cannot.
pub(super) fn decode<V: Value>(bytes: Bytes) -> Result<V, DecodeError> {
    catch_unwind(AssertUnwindSafe(|| V::decode(bytes)))
        .unwrap_or_else(|_| Err(DecodeError::new("the decoder panicked")))
}
