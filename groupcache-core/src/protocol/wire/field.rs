//! Fields of protobuf, read and written one by one.
//!
//! Requests and answers are said thousands of times in a frame. As messages of the generated code each of them would be
//! copied into a struct of all its fields, and once more out of it.

use std::fmt;

use bytes::{Buf, BufMut};
use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint, skip_field},
};

/// Why bytes are not the message that they should be. One word, since every read of a field returns it or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(Box<Why>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// They are no protobuf.
    Bytes(DecodeError),
    /// A field is of another type than it should be.
    Type(u32),
    /// A part is longer than what it is a part of.
    Cut(u32),
    /// They would become too much, and the sentence that says what.
    TooMuch(String),
}

impl Malformed {
    #[cold]
    pub(crate) fn too_much(text: String) -> Self {
        Self(Box::new(Why::TooMuch(text)))
    }

    /// They are well-formed, and would become more than is allowed.
    pub(crate) fn is_too_much(&self) -> bool {
        matches!(*self.0, Why::TooMuch(_))
    }

    #[cold]
    fn of(why: Why) -> Self {
        Self(Box::new(why))
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Why::Bytes(error) => write!(f, "the message is no protobuf: {error}"),
            Why::Type(tag) => write!(f, "part {tag} of the message is of another type than it should be"),
            Why::Cut(tag) => write!(f, "part {tag} of the message is longer than what it is a part of"),
            Why::TooMuch(text) => f.write_str(text),
        }
    }
}

impl From<DecodeError> for Malformed {
    fn from(error: DecodeError) -> Self {
        Self::of(Why::Bytes(error))
    }
}

/// Which field comes next, and how it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) tag: u32,
    kind: WireType,
}

impl Field {
    #[inline]
    fn is(self, kind: WireType) -> Result<(), Malformed> {
        if self.kind == kind { Ok(()) } else { Err(Malformed::of(Why::Type(self.tag))) }
    }
}

/// The fields of a message, in the order in which they were written: first which one it is, then what it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next field. What it has must be read, or passed over.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Field>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (tag, kind) = decode_key(&mut self.0)?;
        Ok(Some(Field { tag, kind }))
    }

    /// What nobody here knows.
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

    /// As protobuf reads a number that is too long for its field.
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
        self.0.try_get_u64_le().map_err(|_| Malformed::of(Why::Cut(field.tag)))
    }

    #[inline]
    pub(crate) fn bytes(&mut self, field: Field) -> Result<&'a [u8], Malformed> {
        field.is(WireType::LengthDelimited)?;
        let len = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        let Some((bytes, rest)) = self.0.split_at_checked(len) else { return Err(Malformed::of(Why::Cut(field.tag))) };
        self.0 = rest;
        Ok(bytes)
    }

    /// Of a field that repeats: one of its numbers, or several in one piece.
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

    /// See [`fixed64s`](Self::fixed64s); of `max_bytes` at the most.
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

    /// Bytes of which there may be so many.
    pub(crate) fn at_most(&mut self, field: Field, max: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, tag) = (self.bytes(field)?, field.tag);
        if bytes.len() > max {
            let len = bytes.len();
            let text = format!("part {tag} of a message has {len} bytes, and {max} are allowed");
            return Err(Malformed::too_much(text));
        }
        Ok(bytes)
    }
}

/// Where fields are written: into a buffer, or nowhere, to know how long they are.
pub(crate) trait Sink {
    fn varint(&mut self, number: u64);
    fn raw(&mut self, bytes: &[u8]);

    #[inline]
    fn key(&mut self, tag: u32, kind: WireType) {
        self.varint(u64::from(tag << 3 | kind as u32));
    }

    /// A number; 0 is what it is where it is not written.
    #[inline]
    fn number(&mut self, tag: u32, number: u64) {
        if number != 0 {
            self.present(tag, number);
        }
    }

    /// A number that is written even if it is 0.
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

    /// A message within the message.
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

/// What is written as a message.
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

/// A buffer of somebody else's, to which each call costs: for what is long, or said once in a frame.
pub(crate) struct Buffer<'a, B>(pub(crate) &'a mut B);

impl<B: BufMut> Sink for Buffer<'_, B> {
    fn varint(&mut self, number: u64) {
        encode_varint(number, self.0);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.put_slice(bytes);
    }
}
