//! The codec of the generated service: protobuf, looked over before it is decoded.
//!
//! An empty request takes two bytes of a message and two hundred of memory. So the parts of a message are counted first:
//! what a message may become is bounded by its size, not by a hundred times that.

use std::any::TypeId;

use bytes::Buf;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tonic::{
    Status,
    codec::{Codec as TonicCodec, DecodeBuf, Decoder},
};
use tonic_prost::ProstCodec;

use crate::wire::Frame;

/// Parts of one message. A frame holds up to 1,024 requests, or as many answers as make 256 KiB.
const MAX_PARTS: usize = 16_384;

/// A Hello with as many groups as a node may have, all of the longest name.
pub(crate) const MAX_HELLO_BYTES: u64 = 320 << 10;

/// The ids of as many cancels as a message may have parts.
const MAX_CANCEL_BYTES: u64 = 10 * MAX_PARTS as u64;

/// Numbers of fields of a frame.
const HELLO: u32 = 1;
const CANCELS: u32 = 6;

/// Named by the generated code.
#[derive(Debug)]
pub(crate) struct Codec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> TonicCodec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as TonicCodec>::Encoder;
    type Decoder = LookedOver<<ProstCodec<T, U> as TonicCodec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        LookedOver { decoder: self.0.decoder(), is_frame: TypeId::of::<U>() == TypeId::of::<Frame>() }
    }
}

/// A decoder that refuses what would become too much.
#[derive(Debug)]
pub(crate) struct LookedOver<D> {
    decoder: D,
    is_frame: bool,
}

impl<D: Decoder<Error = Status>> Decoder for LookedOver<D> {
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<D::Item>, Status> {
        // One message is one piece of memory, or it is not all here.
        if buf.chunk().len() == buf.remaining() {
            look_over(buf.chunk(), self.is_frame)?;
        }
        self.decoder.decode(buf)
    }
}

pub(crate) fn look_over(mut message: &[u8], is_frame: bool) -> Result<(), Status> {
    let malformed = |e: prost::DecodeError| Status::internal(format!("the message is no protobuf: {e}"));
    let mut parts = 0;
    while message.has_remaining() {
        let (field, kind) = decode_key(&mut message).map_err(malformed)?;
        parts += 1;
        if parts > MAX_PARTS {
            return Err(Status::out_of_range(format!("a message has more than {MAX_PARTS} parts")));
        }
        if kind != WireType::LengthDelimited {
            skip_field(kind, field, &mut message, DecodeContext::default()).map_err(malformed)?;
            continue;
        }
        let len = decode_varint(&mut message).map_err(malformed)?;
        let max = match field {
            HELLO if is_frame => MAX_HELLO_BYTES,
            CANCELS if is_frame => MAX_CANCEL_BYTES,
            _ => u64::MAX,
        };
        if len > max {
            return Err(Status::out_of_range(format!(
                "part {field} of a message has {len} bytes, and {max} are allowed"
            )));
        }
        let rest = usize::try_from(len).ok().and_then(|len| message.get(len..));
        message = rest.ok_or_else(|| Status::internal("the message ends in the middle of a part"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    fn refused(frame: &Frame) -> Option<String> {
        look_over(&frame.encode_to_vec(), true).err().map(|status| status.message().to_owned())
    }

    #[test]
    fn what_is_small_and_would_become_large_is_refused() {
        let requests = |n| Frame { requests: vec![proto::Request::default(); n], ..Frame::default() };
        assert_eq!(refused(&requests(MAX_PARTS)), None);
        assert!(refused(&requests(MAX_PARTS + 1)).unwrap().contains("parts"));
        let cancels = |n| Frame { cancels: vec![1; n], ..Frame::default() };
        assert_eq!(refused(&cancels(MAX_PARTS)), None);
        assert!(refused(&cancels(1 << 20)).unwrap().contains("part 6"));
        let hello = proto::Hello { groups: vec![proto::Group::default(); 1 << 20], ..proto::Hello::default() };
        assert!(refused(&Frame { hello: Some(hello), ..Frame::default() }).unwrap().contains("part 1"));
        let value = proto::Answer { value: vec![0; 1 << 20].into(), ..proto::Answer::default() };
        assert_eq!(refused(&Frame { answers: vec![value], ..Frame::default() }), None, "a value is what it is");
    }

    #[test]
    fn no_bytes_make_it_fail_otherwise_than_by_saying_so() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..rng.usize(0..64)).map(|_| rng.u8(..)).collect();
            let looked = look_over(&bytes, true);
            assert!(
                looked.is_ok() || Frame::decode(&*bytes).is_err(),
                "what decodes and is small is let through: {bytes:?}"
            );
        }
    }
}
