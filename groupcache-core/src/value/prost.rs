//! Protobuf messages as values.

use std::{fmt, mem::size_of, ops::Deref, sync::Arc};

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::value::{DecodeError, EncodeError, SHARED_BYTES, Value};

/// Value that is a protobuf message on the wire and a shared `T` in memory.
///
/// The value derefs to `T`, and a clone costs as much as the clone of an `Arc`. A loader of a `Prost<T>` group may
/// return a `T`. `T` is any message that `prost` generates. Unknown fields are lost when a node encodes a message,
/// which happens to values that the node loads, sets, or receives from a set as the owner of their key.
///
/// ```
/// use groupcache_core::Prost;
/// # #[derive(Clone, PartialEq, prost::Message)]
/// # struct User { #[prost(string, tag = "1")] name: String }
/// let user = Prost::new(User { name: "Ada".into() });
/// assert_eq!(user.name, "Ada");
/// ```
pub struct Prost<T>(Arc<T>);

impl<T> Prost<T> {
    /// Wraps a message.
    pub fn new(message: T) -> Self {
        Self(Arc::new(message))
    }

    /// Returns the shared message.
    pub fn into_arc(self) -> Arc<T> {
        self.0
    }
}

impl<T> From<T> for Prost<T> {
    fn from(message: T) -> Self {
        Self::new(message)
    }
}

impl<T> Clone for Prost<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Prost<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Prost<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Prost<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: Message + Default + 'static> Value for Prost<T> {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.0.encode(out).map_err(EncodeError::new)
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        T::decode(bytes).map(Self::new).map_err(DecodeError::new)
    }

    /// Returns an estimate: the heap of a message is unknown, and its encoded length stands for it.
    fn weight(&self) -> usize {
        SHARED_BYTES + size_of::<T>() + self.0.encoded_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct User {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(uint32, tag = "2")]
        age: u32,
    }

    #[test]
    fn message_decodes_to_what_was_encoded() {
        let user = Prost::new(User { name: "Ada".into(), age: 36 });
        let bytes = user.to_encoded().unwrap();
        assert_eq!(Prost::<User>::decode(bytes).unwrap(), user);
        assert!(Prost::<User>::decode(Bytes::from_static(&[0x0a, 0xff])).is_err());
        assert!(user.weight() >= size_of::<User>() + 7);
    }
}
