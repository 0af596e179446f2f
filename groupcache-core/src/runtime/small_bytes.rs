//! Small bytes: short values in one allocation together with their reference counter.
//!
//! A [`Bytes`] made of a `Vec` allocates its counter at its first clone, which costs 32 bytes and a call of the
//! allocator for each value that is kept or returned. A slice of a received buffer would keep the whole buffer in
//! memory.

use bytes::{Bytes, BytesMut};

/// Length in bytes below which a slice is copied out of its buffer. Copying a page costs less than the memory that a
/// slice could pin.
const COPY_BELOW: usize = 4096;

/// Maximum length in bytes of a value that is stored beside its counter.
const INLINE: usize = 247;

/// Value at the end of an allocation that begins with two words of `Bytes`.
struct Inline<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: u8,
}

impl<const ROOM: usize> AsRef<[u8]> for Inline<ROOM> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

fn inline<const ROOM: usize>(value: &[u8]) -> Bytes {
    let mut bytes = [0; ROOM];
    match bytes.get_mut(..value.len()) {
        Some(place) if ROOM <= INLINE => {
            place.copy_from_slice(value);
            Bytes::from_owner(Inline { bytes, len: value.len() as u8 })
        }
        _ => Bytes::copy_from_slice(value),
    }
}

/// Copies a value, which may be a slice of a larger buffer.
pub(crate) fn copy(value: &[u8]) -> Bytes {
    if value.is_empty() {
        return Bytes::new();
    }
    // With its length and two words, each array fills what an allocator returns for it. The allocators of glibc and
    // musl, jemalloc and mimalloc work in steps of 16 bytes.
    #[expect(clippy::match_overlapping_arm, reason = "an arm takes the lengths above those of the arms before it")]
    match value.len() {
        ..=7 => inline::<7>(value),
        ..=23 => inline::<23>(value),
        ..=39 => inline::<39>(value),
        ..=55 => inline::<55>(value),
        ..=71 => inline::<71>(value),
        ..=87 => inline::<87>(value),
        ..=103 => inline::<103>(value),
        ..=119 => inline::<119>(value),
        ..=135 => inline::<135>(value),
        ..=151 => inline::<151>(value),
        ..=167 => inline::<167>(value),
        ..=183 => inline::<183>(value),
        ..=199 => inline::<199>(value),
        ..=215 => inline::<215>(value),
        ..=231 => inline::<231>(value),
        ..=INLINE => inline::<INLINE>(value),
        _ => Bytes::copy_from_slice(value),
    }
}

/// Copies a short value, so that it does not pin a larger buffer, and returns a long value unchanged.
pub(crate) fn detach(value: &Bytes) -> Bytes {
    if value.len() < COPY_BELOW { copy(value) } else { value.clone() }
}

/// Returns the content of a buffer without its unused capacity. A buffer that grew step by step may have twice the
/// capacity of its content.
pub(crate) fn shrink(written: BytesMut) -> Bytes {
    if written.len() <= INLINE {
        return copy(&written);
    }
    let mut bytes = Vec::from(written);
    bytes.shrink_to_fit();
    bytes.into()
}

/// Returns a part of a received buffer: a copy of a short part, which does not pin the buffer, or a slice of a long
/// part.
pub(crate) fn slice_or_copy(whole: &Bytes, part: &[u8]) -> Bytes {
    if part.len() < COPY_BELOW { copy(part) } else { whole.slice_ref(part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_equals_its_original() {
        let all: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for len in (0..600).chain([COPY_BELOW - 1, COPY_BELOW, 5000]) {
            assert_eq!(copy(&all[..len]), all[..len]);
            assert_eq!(shrink(BytesMut::from(&all[..len])), all[..len]);
        }
    }

    #[test]
    fn short_part_does_not_pin_its_buffer() {
        let whole = Bytes::from(vec![7; 3 * COPY_BELOW]);
        for len in [1, 100, 300, COPY_BELOW - 1] {
            let (part, detached) = (slice_or_copy(&whole, &whole[5..5 + len]), detach(&whole.slice(5..5 + len)));
            assert_eq!((part.len(), detached.len()), (len, len));
            assert!(whole.is_unique(), "{len}");
        }
        let long = slice_or_copy(&whole, &whole[..COPY_BELOW]);
        assert!(!whole.is_unique() && long.as_ptr() == whole.as_ptr());
    }
}
