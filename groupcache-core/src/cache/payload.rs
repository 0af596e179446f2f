//! What the store holds: the encoded value, and the decoded one once it was needed.

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

/// An entry as flights and the store share it.
pub(crate) type Slot<V> = store::Slot<Payload<V>>;

/// What is known of a key.
#[derive(Debug)]
pub(crate) enum Payload<V> {
    /// The encoded form of a value whose decoding is a clone: there is no other.
    Encoded(Bytes),
    /// A value in both its forms, behind a pointer, for which those above have room; `None`: the loader found nothing.
    Decoded(Option<Box<DecodedPayload<V>>>),
}

/// A value in both its forms.
#[derive(Debug)]
pub(crate) struct DecodedPayload<V> {
    encoded: Bytes,
    decoded: OnceLock<V>,
    heap_bytes: u64,
}

impl<V> HeapSize for Payload<V> {
    fn heap_bytes(&self) -> u64 {
        match self {
            Self::Encoded(encoded) => encoded.len() as u64,
            Self::Decoded(both) => both.as_ref().map_or(0, |both| both.heap_bytes),
        }
    }
}

/// Why there is no value to hand out.
#[derive(Debug)]
pub(crate) enum NoValue {
    NotFound,
    Undecodable(DecodeError),
}

impl<V: Value> Payload<V> {
    /// The loader found nothing.
    pub(crate) const NOTHING: Self = Self::Decoded(None);

    /// Of a value that was loaded or set here.
    pub(crate) fn of(value: V) -> Result<Self, EncodeError> {
        let encoded = value.to_encoded()?;
        if V::DECODES_LIKE_A_CLONE {
            return Ok(Self::Encoded(encoded));
        }
        let weight = value.weight();
        Ok(Self::both(encoded, OnceLock::from(value), weight))
    }

    /// What a value has outside of its entry beside both its forms: what is behind the pointer, and what the allocator adds.
    pub(crate) const BESIDE_BYTES: usize = if V::DECODES_LIKE_A_CLONE { 0 } else { size_of::<DecodedPayload<V>>() + 8 };

    fn both(encoded: Bytes, decoded: OnceLock<V>, weight: usize) -> Self {
        let heap_bytes = (encoded.len() + Self::BESIDE_BYTES).saturating_add(weight) as u64;
        Self::Decoded(Some(Box::new(DecodedPayload { encoded, decoded, heap_bytes })))
    }

    /// Of a value that came from a peer; it is decoded by the first who needs it.
    pub(crate) fn received(encoded: Bytes) -> Self {
        if V::DECODES_LIKE_A_CLONE { Self::Encoded(encoded) } else { Self::both(encoded, OnceLock::new(), 0) }
    }

    /// Of a value that was another node's own, and that is weighed as if it had been loaded here.
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

    /// What is held, for another entry.
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Encoded(encoded) => Self::Encoded(encoded.clone()),
            Self::Decoded(both) => Self::Decoded(both.as_ref().map(|both| {
                let (encoded, decoded) = (both.encoded.clone(), both.decoded.clone());
                Box::new(DecodedPayload { encoded, decoded, heap_bytes: both.heap_bytes })
            })),
        }
    }

    /// The encoded form of a value.
    pub(crate) fn encoded(&self) -> Option<&Bytes> {
        match self {
            Self::Encoded(encoded) => Some(encoded),
            Self::Decoded(both) => both.as_ref().map(|both| &both.encoded),
        }
    }

    /// What the log shows of a value at TRACE.
    pub(crate) fn preview(&self) -> Cow<'_, str> {
        const SHOWN_BYTES: usize = 64;
        String::from_utf8_lossy(self.encoded().map_or(&[][..], |bytes| bytes.get(..SHOWN_BYTES).unwrap_or(bytes)))
    }

    /// A clone of the value, decoded if it has not been.
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
        // Two may decode at once; that is cheaper than to let everyone wait under a lock.
        Ok(both.decoded.get_or_init(|| value).clone())
    }
}

/// Lets go of what may hold the last of a value. Its `Drop` is the user's code: a panic of it must not end what happens to
/// let go of it, such as the reader of a connection.
pub(crate) fn drop_caught<T>(values: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(values))).is_err() {
        tracing::error!("the `Drop` of a value panicked");
    }
}

/// The same for many, one by one: two that panic as they are dropped together would end the process.
pub(crate) fn drop_all_caught<T>(values: impl IntoIterator<Item = T>) {
    values.into_iter().for_each(drop_caught);
}

/// Decodes; a decoder that panics is one that cannot.
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

    #[test]
    fn an_entry_and_its_counter_fit_into_what_the_allocator_gives_for_72_bytes() {
        assert_eq!(size_of::<Entry<Payload<Bytes>>>(), 64);
        assert_eq!(size_of::<Entry<Payload<String>>>(), 64);
        assert_eq!(size_of::<Entry<Payload<Json<[u64; 9]>>>>(), 64);
    }

    #[test]
    fn both_forms_are_weighed_whoever_had_the_value_first() {
        let weight = |held: &Payload<Json<String>>| Entry::new(held.share(), Times::until(0, 1)).weight("key");
        let value = Json::new("ada".to_owned());
        let (encoded, decoded) = (value.to_encoded().unwrap(), value.weight() as u64);
        let (loaded, from_handover) = (Payload::of(value).unwrap(), Payload::from_handover(encoded.clone()).unwrap());
        assert_eq!(weight(&loaded), weight(&from_handover));
        assert_eq!(
            weight(&loaded),
            weight(&Payload::received(encoded.clone())) + decoded,
            "what a peer sends is not decoded"
        );
        assert_eq!(weight(&loaded) - weight(&Payload::NOTHING), (encoded.len() + 56 + 8) as u64 + decoded);
        assert_eq!((*loaded.value().unwrap()).clone(), "ada");
        assert!(matches!(Payload::<Json<String>>::NOTHING.value(), Err(NoValue::NotFound)));
    }
}
