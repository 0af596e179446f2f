//! Values: how a group encodes, decodes and weighs them.

mod prost;

use std::{fmt, ops::Deref, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Serialize, Serializer, de::DeserializeOwned};

use crate::{error::BoxError, runtime::small_bytes};

pub use crate::value::prost::Prost;

/// Type of the values of a group.
///
/// Every caller receives a clone, so a clone should be cheap, as of [`Bytes`], of an `Arc`, or of [`Json`], which holds
/// an `Arc`. The encoded form crosses the wire. Memory keeps it beside the decoded form, so that neither a hit nor the
/// request of a peer converts a value.
///
/// A panic in `decode` is an error, like a value that does not decode. A panic in `encode` or `weight` fails the load
/// or the set.
///
/// ```
/// use std::sync::Arc;
/// use groupcache_core::{value::{DecodeError, EncodeError}, Value, bytes::{BufMut, Bytes, BytesMut}};
///
/// #[derive(Clone)]
/// struct Points(Arc<[u32]>);
///
/// impl Value for Points {
///     fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
///         self.0.iter().for_each(|p| out.put_u32_le(*p));
///         Ok(())
///     }
///     fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
///         if bytes.len() % 4 != 0 {
///             return Err(DecodeError::new("a list of points has a multiple of four bytes"));
///         }
///         let point = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
///         Ok(Self(bytes.chunks_exact(4).map(point).collect()))
///     }
///     fn weight(&self) -> usize {
///         size_of::<Self>() + 4 * self.0.len()
///     }
/// }
/// ```
pub trait Value: Clone + Send + Sync + 'static {
    /// Whether decoding costs no more than a clone, so that memory keeps the encoded form only. Default: `false`.
    const DECODES_LIKE_A_CLONE: bool = false;

    /// Appends the encoded form to `out`.
    ///
    /// # Errors
    /// A value that cannot be encoded could not be sent to a peer, so its load or [`set`](crate::Group::set) fails with
    /// [`is_load_failed`](crate::Error::is_load_failed).
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError>;

    /// Returns the value of an encoded form.
    ///
    /// # Errors
    /// A peer's value that a node cannot decode is loaded on that node instead, so that callers get no error.
    fn decode(bytes: Bytes) -> Result<Self, DecodeError>;

    /// Returns the bytes that the decoded form takes, heap included.
    ///
    /// Called once for each value that this node loads, sets, or receives as the owner of its key. Never called for
    /// types with [`DECODES_LIKE_A_CLONE`](Self::DECODES_LIKE_A_CLONE).
    fn weight(&self) -> usize;

    /// Returns the encoded form in a buffer of its own.
    fn to_encoded(&self) -> Result<Bytes, EncodeError> {
        let mut out = BytesMut::new();
        self.encode(&mut out)?;
        Ok(small_bytes::shrink(out))
    }
}

impl Value for Bytes {
    const DECODES_LIKE_A_CLONE: bool = true;

    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_slice(self);
        Ok(())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(bytes)
    }

    fn weight(&self) -> usize {
        0 // the value is the encoded form, which is counted already
    }

    fn to_encoded(&self) -> Result<Bytes, EncodeError> {
        Ok(small_bytes::detach(self))
    }
}

/// Accounted bytes of a decoded value beside its struct and its encoded length: the two counters of its `Arc`, and the
/// overhead of two allocations. Measured as resident memory of 1 million pairs of a string of 92 bytes and a number, on
/// 64-bit Linux with glibc: 8 to 62 % more than accounted. The cause of the differences between runs is unknown.
pub(crate) const SHARED_BYTES: usize = 80;

impl Value for String {
    const DECODES_LIKE_A_CLONE: bool = true;

    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_slice(self.as_bytes());
        Ok(())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Self::from_utf8(bytes.into()).map_err(DecodeError::new)
    }

    fn weight(&self) -> usize {
        0 // the encoded form is the text itself
    }
}

/// Value that is JSON on the wire and a shared `T` in memory.
///
/// The value derefs to `T`, and a clone costs as much as the clone of an `Arc`. A loader of a `Json<T>` group may
/// return a `T`.
///
/// ```
/// use groupcache_core::Json;
/// let user = Json::new(("ada", 36));
/// assert_eq!(user.0, "ada");
/// ```
pub struct Json<T>(Arc<T>);

impl<T> Json<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// Returns the shared value.
    pub fn into_arc(self) -> Arc<T> {
        self.0
    }
}

impl<T> From<T> for Json<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T> Clone for Json<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<T: PartialEq> PartialEq for Json<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Value for Json<T> {
    fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        serde_json::to_writer(out.writer(), &*self.0).map_err(EncodeError::new)
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        serde_json::from_slice(&bytes).map(Self::new).map_err(DecodeError::new)
    }

    /// Returns an estimate: the heap of a `T` is unknown, and the length of its JSON text stands for it.
    fn weight(&self) -> usize {
        let mut count = Count(0);
        // A value that cannot be encoded is refused before this call.
        let _ = serde_json::to_writer(&mut count, &*self.0);
        SHARED_BYTES + size_of::<T>() + count.0
    }
}

/// Counter of the bytes that are written to it.
struct Count(usize);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reason why a value could not be encoded.
#[derive(Debug)]
pub struct EncodeError(BoxError);

/// Reason why a value could not be decoded.
#[derive(Debug)]
pub struct DecodeError(BoxError);

macro_rules! codec_error {
    ($name:ident, $verb:literal) => {
        impl $name {
            /// Wraps the error of the codec, or a sentence.
            pub fn new(cause: impl Into<BoxError>) -> Self {
                Self(cause.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("the value could not be ", $verb))
            }
        }

        impl std::error::Error for $name {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&*self.0)
            }
        }
    };
}

codec_error!(EncodeError, "encoded");
codec_error!(DecodeError, "decoded");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_decodes_to_what_was_encoded() {
        assert_eq!(Bytes::decode(Bytes::from_static(b"ab").to_encoded().unwrap()).unwrap(), "ab");
        assert_eq!(String::decode("ü".to_owned().to_encoded().unwrap()).unwrap(), "ü");
        let json = Json::new(vec![1, 2, 3]);
        assert_eq!(json.to_encoded().unwrap(), "[1,2,3]");
        assert_eq!(Json::<Vec<i32>>::decode(json.to_encoded().unwrap()).unwrap(), json);
    }

    #[test]
    fn invalid_bytes_do_not_decode() {
        assert!(String::decode(Bytes::from_static(&[0xff])).is_err());
        assert!(Json::<u8>::decode(Bytes::from_static(b"300")).is_err());
    }

    /// Checks that a short slice is copied out of its buffer, and that a long one shares it.
    #[test]
    fn short_slice_does_not_pin_its_buffer() {
        let buffer = Bytes::from(vec![7; 8192]);
        let kept = buffer.slice(0..100).to_encoded().unwrap();
        assert!(buffer.is_unique() && kept.len() == 100, "the copy shares nothing");
        assert!(!buffer.slice(0..5000).to_encoded().unwrap().is_unique(), "a long slice is shared");
    }
}
