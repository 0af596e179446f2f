//! Protobuf ↔ our own words: the only files that know how messages are written.
//!
//! What is unknown never ends a stream: an unknown status is a Declined, an unknown op is passed on as such, and
//! fields that nobody reads are not looked at. What is wrong with one request is said of that request.
//!
//! The messages are those of `proto/groupcache/v1/peer.proto`. A Hello is read and written by the code that is generated
//! of it. Requests and answers are written into the frame and read out of it by hand, field by field; the tests read with
//! the generated code what was written so, and the other way round.

mod answer;
mod field;
mod hello;
mod request;

use std::time::Duration;

use bytes::{BufMut, Bytes};
use prost::{Message, encoding::message};

use crate::protocol::wire::{
    answer::ResponseRef,
    field::{Buffer, Fields, Part as _, Sink as _},
};
use crate::{
    identity::Incarnation,
    limits::MAX_REQUESTS_PER_FRAME,
    protocol::{
        message::{Hello, Request, Response},
        proto,
    },
};

pub(crate) use crate::protocol::proto::{
    GetRequest,
    service::{peer_client, peer_server},
};
pub(crate) use crate::protocol::wire::{
    answer::{Answered, answer_bytes, handed_bytes},
    field::Malformed,
    hello::BadHello,
    request::{RequestRef, unary},
};

/// The one version of the protocol that we speak.
pub(crate) const VERSION: u32 = 1;

/// Feature bits of the Hello. Values in parts and other encodings have their fields and neither a bit nor a behaviour.
pub(crate) mod features {
    /// It answers for keys that it owned before: one at a time, and in pages.
    pub(crate) const HANDOVER: u64 = 1;
}

/// Parts of one message. A frame holds up to 1,024 requests, or as many answers as make 256 KiB: an empty request takes
/// two bytes of a frame and a hundred of memory, so that what a frame may become is bounded by more than its size.
const MAX_PARTS: usize = 16_384;

/// A Hello with as many groups as a node may have, all of the longest name.
const MAX_HELLO_BYTES: usize = 320 << 10;

/// The ids of as many cancels as a message may have parts.
const MAX_CANCEL_BYTES: usize = 10 * MAX_PARTS;

/// From so many bytes on, to copy an answer twice costs more than to keep it until its frame is sent.
const LONG: usize = 4096;

/// What a get takes in a frame, with a key of 30 bytes; for so many room is made at once.
const USUAL_PART_BYTES: usize = 56;

/// Numbers of the fields of a frame.
mod tag {
    pub(crate) const HELLO: u32 = 1;
    pub(crate) const FINGERPRINT: u32 = 2;
    pub(crate) const GOODBYE: u32 = 3;
    pub(crate) const REQUESTS: u32 = 4;
    pub(crate) const ANSWERS: u32 = 5;
    pub(crate) const CANCELS: u32 = 6;
    pub(crate) const PING: u32 = 7;
    pub(crate) const PONG: u32 = 8;
}

/// A frame in the making.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    hello: Option<proto::Hello>,
    goodbye: Option<proto::Goodbye>,
    fingerprint: u64,
    ping: u64,
    pong: u64,
    /// Requests and short answers, written as the parts of a frame that they will be.
    parts: Vec<u8>,
    requests: usize,
    /// Written when the frame is sent: their values are not copied twice.
    long_answers: Vec<(u64, Response)>,
    cancels: Vec<u64>,
}

impl Outgoing {
    pub(crate) fn new(fingerprint: u64) -> Self {
        Self { fingerprint, ..Self::default() }
    }

    pub(crate) fn hello(&mut self, hello: &Hello, max_in_flight: usize) {
        self.hello = Some(hello::write(hello, max_in_flight));
    }

    pub(crate) fn goodbye(&mut self, incarnation: Incarnation) {
        self.goodbye = Some(proto::Goodbye { incarnation: incarnation.0 });
    }

    /// Makes room for so many usual requests: a buffer that doubles would copy them as often again.
    pub(crate) fn reserve_requests(&mut self, requests: usize) {
        self.parts.reserve(requests * USUAL_PART_BYTES);
    }

    pub(crate) fn request(&mut self, request: &RequestRef<'_>) {
        self.parts.part(tag::REQUESTS, request);
        self.requests += 1;
    }

    pub(crate) fn answer(&mut self, id: u64, answer: Response) {
        match answer_bytes(&answer) {
            ..LONG => self.parts.part(tag::ANSWERS, &ResponseRef(id, &answer)),
            _ => self.long_answers.push((id, answer)),
        }
    }

    pub(crate) fn answers(&mut self, answers: Vec<(u64, Response)>) {
        let short = answers.iter().map(|(_, answer)| answer_bytes(answer)).filter(|bytes| *bytes < LONG);
        self.parts.reserve(short.sum());
        answers.into_iter().for_each(|(id, answer)| self.answer(id, answer));
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        self.cancels.push(id);
    }

    pub(crate) fn ping(&mut self, number: u64) {
        self.ping = number;
    }

    pub(crate) fn pong(&mut self, number: u64) {
        self.pong = number;
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    pub(crate) fn cancels(&self) -> usize {
        self.cancels.len()
    }

    /// Bytes that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let hello = self.hello.as_ref().map_or(0, |hello| 16 + hello.encoded_len());
        let long: usize = self.long_answers.iter().map(|(_, answer)| answer_bytes(answer)).sum();
        64 + hello + self.parts.len() + long + 11 * self.cancels.len()
    }

    pub(crate) fn write(&self, out: &mut impl BufMut) {
        if let Some(hello) = &self.hello {
            message::encode(tag::HELLO, hello, out);
        }
        Buffer(out).fixed64(tag::FINGERPRINT, self.fingerprint);
        if let Some(goodbye) = &self.goodbye {
            message::encode(tag::GOODBYE, goodbye, out);
        }
        out.put_slice(&self.parts);
        let mut out = Buffer(out);
        self.long_answers.iter().for_each(|(id, answer)| out.part(tag::ANSWERS, &ResponseRef(*id, answer)));
        self.cancels.iter().for_each(|id| out.present(tag::CANCELS, *id));
        out.number(tag::PING, self.ping);
        out.number(tag::PONG, self.pong);
    }
}

/// A frame that was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Incoming {
    hello: Option<proto::Hello>,
    pub(crate) goodbye: Option<Incarnation>,
    pub(crate) fingerprint: u64,
    pub(crate) requests: Vec<Request>,
    pub(crate) answers: Vec<Answered>,
    pub(crate) cancels: Vec<u64>,
    pub(crate) ping: u64,
    pub(crate) pong: u64,
}

impl Incoming {
    /// Reads a frame. What it becomes is bounded: a frame of more parts than a message may have is refused.
    pub(crate) fn read(frame: &Bytes) -> Result<Self, Malformed> {
        let mut read = Self::default();
        let (mut fields, mut parts, mut hello_bytes) = (Fields(frame), 0, 0);
        while let Some(field) = fields.next()? {
            parts += 1;
            if parts > MAX_PARTS {
                return Err(Malformed::too_much(format!("a message has more than {MAX_PARTS} parts")));
            }
            match field.tag {
                tag::HELLO => {
                    // It may come in parts, as any message may, and all of them are one.
                    let part = fields.at_most(field, MAX_HELLO_BYTES - hello_bytes)?;
                    hello_bytes += part.len();
                    read.hello.get_or_insert_default().merge(part)?;
                }
                tag::FINGERPRINT => read.fingerprint = fields.fixed64(field)?,
                tag::GOODBYE => {
                    // In parts as well: one that says nothing takes nothing back.
                    let mut goodbye = proto::Goodbye { incarnation: read.goodbye.map_or(0, |before| before.0) };
                    goodbye.merge(fields.bytes(field)?)?;
                    read.goodbye = Some(Incarnation(goodbye.incarnation));
                }
                tag::REQUESTS => {
                    let request = request::read(frame, Fields(fields.bytes(field)?))?;
                    push(&mut read.requests, request, fields.0);
                }
                tag::ANSWERS => {
                    let answer = answer::read(frame, Fields(fields.bytes(field)?))?;
                    push(&mut read.answers, answer, fields.0);
                }
                tag::CANCELS => fields.numbers(field, MAX_CANCEL_BYTES, |id| read.cancels.push(id))?,
                tag::PING => read.ping = fields.number(field)?,
                tag::PONG => read.pong = fields.number(field)?,
                _ => fields.pass_over(field)?,
            }
        }
        Ok(read)
    }

    /// The Hello, if it carries one that was not taken yet.
    pub(crate) fn hello(&mut self) -> Option<Result<Hello, BadHello>> {
        self.hello.take().map(hello::read)
    }
}

/// Adds one of the parts of a frame, and makes room for as many more as the rest of the frame may have.
fn push<T>(parts: &mut Vec<T>, part: T, rest: &[u8]) {
    if parts.is_empty() {
        parts.reserve(1 + (rest.len() / USUAL_PART_BYTES).min(MAX_REQUESTS_PER_FRAME));
    }
    parts.push(part);
}

/// A get of the unary service; it is read by the generated code.
pub(crate) fn read_get(message: &Bytes) -> Result<GetRequest, Malformed> {
    Ok(GetRequest::decode(message.clone())?)
}

/// The answer to a get of the unary service.
#[derive(Debug)]
pub(crate) struct UnaryAnswer(pub(crate) Response);

impl UnaryAnswer {
    /// Bytes that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        answer_bytes(&self.0)
    }

    pub(crate) fn write(&self, out: &mut impl BufMut) {
        ResponseRef(0, &self.0).write(&mut Buffer(out));
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(any(test, fuzzing))]
mod reference;
#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
