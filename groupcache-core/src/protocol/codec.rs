//! Codec of the generated service: `wire` reads and writes its messages.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use tonic::{
    Status,
    codec::{Codec as TonicCodec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::protocol::wire::{self, GetRequest, Incoming, Malformed, Outgoing, UnaryAnswer};

/// A message that can be written.
pub(crate) trait Encode: Send + 'static {
    fn encode(&self, out: &mut EncodeBuf<'_>);
}

/// A message that can be read.
pub(crate) trait Decode: Sized + Send + 'static {
    fn decode(message: &Bytes) -> Result<Self, Malformed>;
}

impl Encode for Outgoing {
    fn encode(&self, out: &mut EncodeBuf<'_>) {
        out.reserve(self.bytes());
        self.write(out);
    }
}

impl Encode for UnaryAnswer {
    fn encode(&self, out: &mut EncodeBuf<'_>) {
        out.reserve(self.bytes());
        self.write(out);
    }
}

impl Decode for Incoming {
    fn decode(message: &Bytes) -> Result<Self, Malformed> {
        Self::read(message)
    }
}

impl Decode for GetRequest {
    fn decode(message: &Bytes) -> Result<Self, Malformed> {
        wire::read_get(message)
    }
}

/// Codec that the generated code names.
#[derive(Debug)]
pub(crate) struct Codec<T, U>(PhantomData<fn(T) -> U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Encode, U: Decode> TonicCodec for Codec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<T: Encode, U: Decode> Encoder for Codec<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(out);
        Ok(())
    }
}

impl<T: Encode, U: Decode> Decoder for Codec<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A received message lies in one buffer, so that this does not copy.
        let message = message.copy_to_bytes(message.remaining());
        U::decode(&message).map(Some).map_err(|malformed| match malformed.is_too_much() {
            true => Status::out_of_range(malformed.to_string()),
            false => Status::internal(malformed.to_string()),
        })
    }
}
