//! Protobuf fields: reading and writing them one by one.
//!
//! A frame may have thousands of requests and responses. The generated code would copy each of them into a struct of
//! all its fields, and out of that struct once more.

use std::fmt;

use bytes::{Buf, BufMut};
use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint, skip_field},
};

/// Reason for which bytes are not a valid message. The type is one word wide, because every read of a field returns it
/// or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(Box<Fault>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// The bytes are no protobuf.
    Bytes(DecodeError),
    /// The field with this tag has another type than the protocol's.
    Type(u32),
    /// The field with this tag is longer than its message.
    Truncated(u32),
    /// The message exceeds a limit, which the text names.
    TooMuch(String),
}

impl Malformed {
    #[cold]
    pub(crate) fn too_much(text: String) -> Self {
        Self(Box::new(Fault::TooMuch(text)))
    }

    /// Returns whether the message exceeds a limit and may otherwise be well formed.
    pub(crate) fn is_too_much(&self) -> bool {
        matches!(*self.0, Fault::TooMuch(_))
    }

    #[cold]
    fn of(fault: Fault) -> Self {
        Self(Box::new(fault))
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Fault::Bytes(error) => write!(f, "the message is not valid protobuf: {error}"),
            Fault::Type(tag) => write!(f, "field {tag} of the message has the wrong type"),
            Fault::Truncated(tag) => write!(f, "field {tag} is longer than its message"),
            Fault::TooMuch(text) => f.write_str(text),
        }
    }
}

impl From<DecodeError> for Malformed {
    fn from(error: DecodeError) -> Self {
        Self::of(Fault::Bytes(error))
    }
}

/// Tag and wire type of a field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) tag: u32,
    kind: WireType,
}

impl Field {
    #[inline]
    fn is(self, kind: WireType) -> Result<(), Malformed> {
        if self.kind == kind { Ok(()) } else { Err(Malformed::of(Fault::Type(self.tag))) }
    }
}

/// Reader of the fields of a message in their order: [`next`](Self::next) returns a field, and then its content is
/// read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// Returns the next field, of which the content must then be read or skipped.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Field>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (tag, kind) = decode_key(&mut self.0)?;
        Ok(Some(Field { tag, kind }))
    }

    /// Skips the content of a field.
    pub(crate) fn pass_over(&mut self, field: Field) -> Result<(), Malformed> {
        Ok(skip_field(field.kind, field.tag, &mut self.0, DecodeContext::default())?)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match self.0 {
            [byte @ ..0x80, rest @ ..] => {
                self.0 = rest;
                Ok(u64::from(*byte))
            }
            _ => Ok(decode_varint(&mut self.0)?),
        }
    }

    #[inline]
    pub(crate) fn number(&mut self, field: Field) -> Result<u64, Malformed> {
        field.is(WireType::Varint)?;
        self.varint()
    }

    /// Reads a number and cuts it to 32 bits, as protobuf prescribes for a number that is too long for its field.
    #[inline]
    pub(crate) fn number32(&mut self, field: Field) -> Result<u32, Malformed> {
        self.number(field).map(|number| number as u32)
    }

    #[inline]
    pub(crate) fn flag(&mut self, field: Field) -> Result<bool, Malformed> {
        self.number(field).map(|number| number != 0)
    }

    pub(crate) fn fixed64(&mut self, field: Field) -> Result<u64, Malformed> {
        field.is(WireType::SixtyFourBit)?;
        self.0.try_get_u64_le().map_err(|_| Malformed::of(Fault::Truncated(field.tag)))
    }

    #[inline]
    pub(crate) fn bytes(&mut self, field: Field) -> Result<&'a [u8], Malformed> {
        field.is(WireType::LengthDelimited)?;
        let len = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        let Some((bytes, rest)) = self.0.split_at_checked(len) else {
            return Err(Malformed::of(Fault::Truncated(field.tag)));
        };
        self.0 = rest;
        Ok(bytes)
    }

    /// Reads one number of a repeated field, or several that are packed.
    pub(crate) fn fixed64s(&mut self, field: Field, mut take: impl FnMut(u64)) -> Result<(), Malformed> {
        if field.kind != WireType::LengthDelimited {
            take(self.fixed64(field)?);
            return Ok(());
        }
        let mut packed = Self(self.bytes(field)?);
        while !packed.0.is_empty() {
            take(packed.fixed64(Field { kind: WireType::SixtyFourBit, ..field })?);
        }
        Ok(())
    }

    /// Reads like [`fixed64s`](Self::fixed64s), with at most `max_bytes` of packed numbers.
    pub(crate) fn numbers(
        &mut self,
        field: Field,
        max_bytes: usize,
        mut take: impl FnMut(u64),
    ) -> Result<(), Malformed> {
        if field.kind != WireType::LengthDelimited {
            take(self.number(field)?);
            return Ok(());
        }
        let mut packed = Self(self.at_most(field, max_bytes)?);
        while !packed.0.is_empty() {
            take(packed.varint()?);
        }
        Ok(())
    }

    /// Reads bytes, of which there may be at most `max`.
    pub(crate) fn at_most(&mut self, field: Field, max: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, tag) = (self.bytes(field)?, field.tag);
        if bytes.len() > max {
            let len = bytes.len();
            let text = format!("field {tag} of a message has {len} bytes; the maximum is {max}");
            return Err(Malformed::too_much(text));
        }
        Ok(bytes)
    }
}

/// Destination of written fields: a buffer, or a counter of their length.
pub(crate) trait Sink {
    fn varint(&mut self, number: u64);
    fn raw(&mut self, bytes: &[u8]);

    #[inline]
    fn key(&mut self, tag: u32, kind: WireType) {
        self.varint(u64::from(tag << 3 | kind as u32));
    }

    /// Writes a number unless it is 0, which is the value of an absent field.
    #[inline]
    fn number(&mut self, tag: u32, number: u64) {
        if number != 0 {
            self.present(tag, number);
        }
    }

    /// Writes a number even if it is 0.
    #[inline]
    fn present(&mut self, tag: u32, number: u64) {
        self.key(tag, WireType::Varint);
        self.varint(number);
    }

    #[inline]
    fn fixed64(&mut self, tag: u32, number: u64) {
        if number != 0 {
            self.key(tag, WireType::SixtyFourBit);
            self.raw(&number.to_le_bytes());
        }
    }

    #[inline]
    fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.key(tag, WireType::LengthDelimited);
            self.varint(bytes.len() as u64);
            self.raw(bytes);
        }
    }

    fn fixed64s(&mut self, tag: u32, numbers: &[u64]) {
        if !numbers.is_empty() {
            self.key(tag, WireType::LengthDelimited);
            self.varint(8 * numbers.len() as u64);
            numbers.iter().for_each(|number| self.raw(&number.to_le_bytes()));
        }
    }

    /// Writes a message within the message.
    #[inline]
    fn part(&mut self, tag: u32, part: &impl Part)
    where
        Self: Sized,
    {
        self.key(tag, WireType::LengthDelimited);
        self.varint(part.len());
        part.write(self);
    }
}

/// Message that can be written.
pub(crate) trait Part {
    fn write(&self, out: &mut impl Sink);

    #[inline]
    fn len(&self) -> u64 {
        let mut length = Length(0);
        self.write(&mut length);
        length.0
    }
}

struct Length(u64);

impl Sink for Length {
    #[inline]
    fn varint(&mut self, number: u64) {
        self.0 += encoded_len_varint(number) as u64;
    }

    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.0 += bytes.len() as u64;
    }
}

impl Sink for Vec<u8> {
    #[inline]
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.push(number as u8);
    }

    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Buffer of another crate, for fields that are long or occur once in a frame, because each call to the buffer costs
/// time.
pub(crate) struct Buffer<'a, B>(pub(crate) &'a mut B);

impl<B: BufMut> Sink for Buffer<'_, B> {
    fn varint(&mut self, number: u64) {
        encode_varint(number, self.0);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.put_slice(bytes);
    }
}
