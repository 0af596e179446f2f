//! Short values, each with its counter in one allocation.
//!
//! A [`Bytes`] made of a `Vec` allocates its counter when it is first cloned: 32 bytes and a call of the allocator for each
//! value that is kept or handed out. And a slice of what was received would hold the whole of it.

use bytes::{Bytes, BytesMut};

/// What is shorter is copied out of the buffer that it is a slice of: a copy of a page costs less than what it could pin.
const COPY_BELOW: usize = 4096;

/// Up to this length a value is kept beside its counter.
const INLINE: usize = 247;

/// A value at the end of an allocation that begins with two words of `Bytes`.
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

/// A copy of what may be a slice of something larger.
pub(crate) fn copy(value: &[u8]) -> Bytes {
    if value.is_empty() {
        return Bytes::new();
    }
    // With its length and two words each fills what the allocators of glibc and musl, jemalloc and mimalloc give for it:
    // they go in steps of 16 bytes.
    #[expect(clippy::match_overlapping_arm, reason = "each is of what is too long for those above")]
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

/// A value that need not keep what it is a slice of: itself where it is long.
pub(crate) fn detach(value: &Bytes) -> Bytes {
    if value.len() < COPY_BELOW { copy(value) } else { value.clone() }
}

/// What was written step by step: its buffer is up to twice as long as what is in it.
pub(crate) fn shrink(written: BytesMut) -> Bytes {
    if written.len() <= INLINE {
        return copy(&written);
    }
    let mut shrink = Vec::from(written);
    shrink.shrink_to_fit();
    shrink.into()
}

/// A part of what was received, which a short one does not hold in memory.
pub(crate) fn slice_or_copy(whole: &Bytes, slice_or_copy: &[u8]) -> Bytes {
    if slice_or_copy.len() < COPY_BELOW { copy(slice_or_copy) } else { whole.slice_ref(slice_or_copy) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_what_it_is_a_copy_of() {
        let all: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for len in (0..600).chain([COPY_BELOW - 1, COPY_BELOW, 5000]) {
            assert_eq!(copy(&all[..len]), all[..len]);
            assert_eq!(shrink(BytesMut::from(&all[..len])), all[..len]);
        }
    }

    #[test]
    fn what_is_short_does_not_hold_what_it_was_a_part_of() {
        let whole = Bytes::from(vec![7; 3 * COPY_BELOW]);
        for len in [1, 100, 300, COPY_BELOW - 1] {
            let (slice_or_copy, detach) = (slice_or_copy(&whole, &whole[5..5 + len]), detach(&whole.slice(5..5 + len)));
            assert_eq!((slice_or_copy.len(), detach.len()), (len, len));
            assert!(whole.is_unique(), "{len}");
        }
        let long = slice_or_copy(&whole, &whole[..COPY_BELOW]);
        assert!(!whole.is_unique() && long.as_ptr() == whole.as_ptr());
    }
}
