//! Payload of an entry: the encoded value, and its decoded form once that is needed.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

use bytes::Bytes;

use crate::{
    cache::store::{self, HeapSize},
    value::{DecodeError, EncodeError, Value},
};

/// Entry that flights and the store share.
pub(crate) type Slot<V> = store::Slot<Payload<V>>;

/// Value of a key, or the knowledge that the loader found nothing.
#[derive(Debug)]
pub(crate) enum Payload<V> {
    /// Encoded form of a value that decodes at the cost of a clone, so that the decoded form is not kept.
    Encoded(Bytes),
    /// Value in both forms, behind a pointer so that this variant is no larger than the other. `None` records that the
    /// loader found nothing.
    Decoded(Option<Box<DecodedPayload<V>>>),
}

/// Value in both forms.
#[derive(Debug)]
pub(crate) struct DecodedPayload<V> {
    encoded: Bytes,
    decoded: OnceLock<V>,
    heap_bytes: u64,
}

/// The drop of the last reference runs wherever that reference is: in the reader of a connection, in a sweep, under a
/// write of another caller. A panic of the value's `Drop`, which is user code, ends none of them.
impl<V> Drop for DecodedPayload<V> {
    fn drop(&mut self) {
        drop_caught(self.decoded.take());
    }
}

impl<V> HeapSize for Payload<V> {
    fn heap_bytes(&self) -> u64 {
        match self {
            Self::Encoded(encoded) => encoded.len() as u64,
            Self::Decoded(both) => both.as_ref().map_or(0, |both| both.heap_bytes),
        }
    }
}

/// Reason why a payload gives no value.
#[derive(Debug)]
pub(crate) enum NoValue {
    NotFound,
    Undecodable(DecodeError),
}

impl<V: Value> Payload<V> {
    /// Payload of a negative entry.
    pub(crate) const NOTHING: Self = Self::Decoded(None);

    /// Encodes a value that was loaded or set on this node.
    pub(crate) fn of(value: V) -> Result<Self, EncodeError> {
        let encoded = value.to_encoded()?;
        if V::DECODES_LIKE_A_CLONE {
            return Ok(Self::Encoded(encoded));
        }
        let weight = value.weight();
        Ok(Self::both(encoded, OnceLock::from(value), weight))
    }

    /// Accounted bytes of a value outside of its entry beside both its forms: the struct behind the pointer, and the
    /// overhead of its allocation.
    pub(crate) const BESIDE_BYTES: usize = if V::DECODES_LIKE_A_CLONE { 0 } else { size_of::<DecodedPayload<V>>() + 8 };

    fn both(encoded: Bytes, decoded: OnceLock<V>, weight: usize) -> Self {
        let heap_bytes = (encoded.len() + Self::BESIDE_BYTES).saturating_add(weight) as u64;
        Self::Decoded(Some(Box::new(DecodedPayload { encoded, decoded, heap_bytes })))
    }

    /// Makes the payload of a value that a peer sent. The first reader that needs the value decodes it.
    pub(crate) fn received(encoded: Bytes) -> Self {
        if V::DECODES_LIKE_A_CLONE { Self::Encoded(encoded) } else { Self::both(encoded, OnceLock::new(), 0) }
    }

    /// Decodes a value that a previous owner sent, so that it weighs as much as if it had been loaded here.
    ///
    /// # Errors
    /// The value does not decode, or its `decode` or `weight` panicked.
    pub(crate) fn from_handover(encoded: Bytes) -> Result<Self, DecodeError> {
        let value = decode::<V>(encoded.clone())?;
        if V::DECODES_LIKE_A_CLONE {
            return Ok(Self::Encoded(encoded));
        }
        let Ok(weight) = catch_unwind(AssertUnwindSafe(|| value.weight())) else {
            drop_caught(value);
            return Err(DecodeError::new("the value panicked when it was weighed"));
        };
        Ok(Self::both(encoded, OnceLock::from(value), weight))
    }

    /// Returns the same payload for another entry. The encoded form is shared, and the decoded one cloned.
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Encoded(encoded) => Self::Encoded(encoded.clone()),
            Self::Decoded(both) => Self::Decoded(both.as_ref().map(|both| {
                let (encoded, decoded) = (both.encoded.clone(), both.decoded.clone());
                Box::new(DecodedPayload { encoded, decoded, heap_bytes: both.heap_bytes })
            })),
        }
    }

    /// Returns the encoded form of a value, or `None` for a negative entry.
    pub(crate) fn encoded(&self) -> Option<&Bytes> {
        match self {
            Self::Encoded(encoded) => Some(encoded),
            Self::Decoded(both) => both.as_ref().map(|both| &both.encoded),
        }
    }

    /// Returns the first 64 bytes of the encoded value as text, for the log at level TRACE.
    pub(crate) fn preview(&self) -> Cow<'_, str> {
        const SHOWN_BYTES: usize = 64;
        String::from_utf8_lossy(self.encoded().map_or(&[][..], |bytes| bytes.get(..SHOWN_BYTES).unwrap_or(bytes)))
    }

    /// Returns a clone of the value, which is decoded first if that has not been done.
    pub(crate) fn value(&self) -> Result<V, NoValue> {
        let both = match self {
            Self::Encoded(encoded) => return decode::<V>(encoded.clone()).map_err(NoValue::Undecodable),
            Self::Decoded(None) => return Err(NoValue::NotFound),
            Self::Decoded(Some(both)) => both,
        };
        if let Some(value) = both.decoded.get() {
            return Ok(value.clone());
        }
        let value = decode::<V>(both.encoded.clone()).map_err(NoValue::Undecodable)?;
        // Two readers may decode at once, which is cheaper than a lock on which all readers wait.
        Ok(both.decoded.get_or_init(|| value).clone())
    }
}

/// Drops a value, and catches and logs a panic of its `Drop`.
pub(crate) fn drop_caught<T>(value: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(value))).is_err() {
        tracing::error!("the `Drop` of a value panicked");
    }
}

/// Decodes a value. A panic of the decoder is an error.
pub(crate) fn decode<V: Value>(bytes: Bytes) -> Result<V, DecodeError> {
    catch_unwind(AssertUnwindSafe(|| V::decode(bytes)))
        .unwrap_or_else(|_| Err(DecodeError::new("the decoder panicked")))
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use crate::{
        cache::store::{Entry, Times},
        value::Json,
    };

    /// Value with a `Drop` that panics.
    #[derive(Clone)]
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            // A second panic would end the process.
            assert!(std::thread::panicking(), "a value that panics when it is dropped");
        }
    }

    impl Value for Bomb {
        fn encode(&self, _: &mut bytes::BytesMut) -> Result<(), EncodeError> {
            Ok(())
        }

        fn decode(_: Bytes) -> Result<Self, DecodeError> {
            Ok(Self)
        }

        fn weight(&self) -> usize {
            0
        }
    }

    /// Checks that the last reference can be dropped anywhere, several values in one drop included.
    #[test]
    fn panic_of_a_dropped_value_is_caught() {
        let payload = || Payload::from_handover(Bytes::new()).unwrap();
        let slots: Vec<Slot<Bomb>> =
            (0..3).map(|_| store::Slot::new(Entry::new(payload(), Times::until(0, 1)))).collect();
        drop(slots);
    }

    /// Checks that an entry takes 64 bytes, which with the counter of its `Arc` are the 72 bytes of the accounting.
    #[test]
    fn entry_takes_64_bytes() {
        assert_eq!(size_of::<Entry<Payload<Bytes>>>(), 64);
        assert_eq!(size_of::<Entry<Payload<String>>>(), 64);
        assert_eq!(size_of::<Entry<Payload<Json<[u64; 9]>>>>(), 64);
    }

    /// Checks that a loaded value and one of a hand-over weigh both forms, and a value of a peer its encoded form only.
    #[test]
    fn loaded_and_handed_over_values_weigh_both_forms() {
        let weight = |held: &Payload<Json<String>>| Entry::new(held.share(), Times::until(0, 1)).weight("key");
        let value = Json::new("ada".to_owned());
        let (encoded, decoded) = (value.to_encoded().unwrap(), value.weight() as u64);
        let (loaded, from_handover) = (Payload::of(value).unwrap(), Payload::from_handover(encoded.clone()).unwrap());
        assert_eq!(weight(&loaded), weight(&from_handover));
        assert_eq!(
            weight(&loaded),
            weight(&Payload::received(encoded.clone())) + decoded,
            "a value of a peer is not decoded yet"
        );
        assert_eq!(weight(&loaded) - weight(&Payload::NOTHING), (encoded.len() + 56 + 8) as u64 + decoded);
        assert_eq!((*loaded.value().unwrap()).clone(), "ada");
        assert!(matches!(Payload::<Json<String>>::NOTHING.value(), Err(NoValue::NotFound)));
    }
}
