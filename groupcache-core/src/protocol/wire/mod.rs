//! Wire: the conversion between protobuf and the messages of this crate. No other module knows how messages are
//! encoded.
//!
//! An unknown number or field never ends a stream: an unknown status is read as Declined, an unknown op is passed on
//! with its number, and unknown fields are skipped. An error in one request is the response to that request.
//!
//! The messages are those of `proto/groupcache/v1/peer.proto`. The code generated from that file reads and writes the
//! Hello and the goodbye. Requests and responses are read and written by hand, field by field. The tests read with the
//! generated code what was written by hand, and the reverse.

mod answer;
mod field;
mod hello;
mod knowledge;
mod request;
mod strikes;

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
        message::{Hello, Knowledge, Request, Response, Suspect},
        proto,
    },
};

pub(crate) use crate::protocol::proto::{
    GetRequest,
    service::{peer_client, peer_server},
};
pub(crate) use crate::protocol::wire::{
    answer::{Answered, answer_bytes, entry_bytes, handed_bytes},
    field::Malformed,
    hello::BadHello,
    request::{RequestRef, unary},
    strikes::suspect_bytes,
};

/// The version of the protocol that this node speaks; no other one.
pub(crate) const VERSION: u32 = 1;

/// Feature bits of the Hello. Values in parts and other encodings have fields in the protocol, but no bit and no
/// behaviour.
pub(crate) mod features {
    /// The sender answers for keys that it owned before: one at a time, and in pages.
    pub(crate) const HANDOVER: u64 = 1;
    /// The sender keeps logs of writes, shows its positions in them, and answers requests for their entries.
    pub(crate) const WRITE_LOG: u64 = 2;
    /// The sender answers `Held` while the load of a key with strikes waits for its turn and `Begun` before the load runs,
    /// and does not load a key in quarantine.
    pub(crate) const QUARANTINE: u64 = 4;
}

/// Maximum number of parts of one message. A frame of this crate has at most 1,024 requests, or 256 KiB of answers. The
/// size of a frame alone would not bound its memory, because an empty request takes 2 bytes of a frame and 100 bytes of
/// memory.
const MAX_PARTS: usize = 16_384;

/// Maximum size of a Hello in bytes: as many groups as a node may have, all with the longest name.
const MAX_HELLO_BYTES: usize = 320 << 10;

/// Maximum size of a Knowledge in bytes: the company and the positions of the largest cluster, with ids of 60 bytes.
const MAX_KNOWLEDGE_BYTES: usize = 448 << 10;

/// Maximum size of packed cancels in bytes: as many ids as a message may have parts.
const MAX_CANCEL_BYTES: usize = 10 * MAX_PARTS;

/// Size in bytes from which an answer is kept until its frame is sent, because that costs less than a second copy.
const LONG: usize = 4096;

/// Size of a get with a key of 30 bytes in a frame; buffers reserve room for requests in units of this size.
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
    pub(crate) const KNOWLEDGE: u32 = 9;
    pub(crate) const ACKNOWLEDGED: u32 = 10;
    pub(crate) const SUSPECTS: u32 = 11;
}

/// Frame that is being built.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    hello: Option<proto::Hello>,
    goodbye: Option<proto::Goodbye>,
    fingerprint: u64,
    ping: u64,
    pong: u64,
    knowledge: Option<proto::Knowledge>,
    acknowledged: u64,
    suspects: Vec<Suspect>,
    /// Requests and short answers, already encoded as parts of the frame.
    parts: Vec<u8>,
    requests: usize,
    /// Long answers, encoded when the frame is sent, so that their values are copied once.
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

    /// Reserves room for requests of the usual size. A buffer that grows by doubling would copy the requests
    /// repeatedly.
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

    /// Returns whether the frame has a ping.
    pub(crate) fn has_ping(&self) -> bool {
        self.ping != 0
    }

    pub(crate) fn knowledge(&mut self, knowledge: &Knowledge) {
        self.knowledge = Some(knowledge::write(knowledge));
    }

    pub(crate) fn acknowledged(&mut self, number: u64) {
        self.acknowledged = number;
    }

    pub(crate) fn suspects(&mut self, suspects: Vec<Suspect>) {
        self.suspects = suspects;
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    pub(crate) fn cancels(&self) -> usize {
        self.cancels.len()
    }

    /// Returns the approximate size of the frame in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let hello = self.hello.as_ref().map_or(0, |hello| 16 + hello.encoded_len());
        let knowledge = self.knowledge.as_ref().map_or(0, |knowledge| 16 + knowledge.encoded_len());
        let long: usize = self.long_answers.iter().map(|(_, answer)| answer_bytes(answer)).sum();
        let suspects: usize = self.suspects.iter().map(strikes::suspect_bytes).sum();
        64 + hello + knowledge + suspects + self.parts.len() + long + 11 * self.cancels.len()
    }

    pub(crate) fn write(&self, out: &mut impl BufMut) {
        if let Some(hello) = &self.hello {
            message::encode(tag::HELLO, hello, out);
        }
        Buffer(out).fixed64(tag::FINGERPRINT, self.fingerprint);
        if let Some(goodbye) = &self.goodbye {
            message::encode(tag::GOODBYE, goodbye, out);
        }
        if let Some(knowledge) = &self.knowledge {
            message::encode(tag::KNOWLEDGE, knowledge, out);
        }
        out.put_slice(&self.parts);
        let mut out = Buffer(out);
        self.suspects.iter().for_each(|suspect| out.part(tag::SUSPECTS, suspect));
        self.long_answers.iter().for_each(|(id, answer)| out.part(tag::ANSWERS, &ResponseRef(*id, answer)));
        self.cancels.iter().for_each(|id| out.present(tag::CANCELS, *id));
        out.number(tag::PING, self.ping);
        out.number(tag::PONG, self.pong);
        out.number(tag::ACKNOWLEDGED, self.acknowledged);
    }
}

/// Frame that was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Incoming {
    /// Length of the frame in bytes.
    pub(crate) bytes: usize,
    hello: Option<proto::Hello>,
    pub(crate) goodbye: Option<Incarnation>,
    pub(crate) fingerprint: u64,
    pub(crate) requests: Vec<Request>,
    pub(crate) answers: Vec<Answered>,
    pub(crate) cancels: Vec<u64>,
    pub(crate) ping: u64,
    pub(crate) pong: u64,
    knowledge: Option<proto::Knowledge>,
    /// Position of the sender in the log of this node; 0 = not shown.
    pub(crate) acknowledged: u64,
    pub(crate) suspects: Vec<Suspect>,
}

impl Incoming {
    /// Reads a frame. A frame of more than [`MAX_PARTS`] parts is refused, so that the memory of a frame is bounded.
    pub(crate) fn read(frame: &Bytes) -> Result<Self, Malformed> {
        let mut read = Self { bytes: frame.len(), ..Self::default() };
        let (mut fields, mut parts, mut hello_bytes, mut knowledge_bytes) = (Fields(frame), 0, 0, 0);
        while let Some(field) = fields.next()? {
            parts += 1;
            if parts > MAX_PARTS {
                return Err(Malformed::too_much(format!("a message has more than {MAX_PARTS} parts; split it")));
            }
            match field.tag {
                tag::HELLO => {
                    // A Hello may arrive in parts, like any message; all of them together are one Hello.
                    let part = fields.at_most(field, MAX_HELLO_BYTES - hello_bytes)?;
                    hello_bytes += part.len();
                    read.hello.get_or_insert_default().merge(part)?;
                }
                tag::FINGERPRINT => read.fingerprint = fields.fixed64(field)?,
                tag::GOODBYE => {
                    // A goodbye may arrive in parts too, and an empty part does not reset the incarnation.
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
                tag::KNOWLEDGE => {
                    let part = fields.at_most(field, MAX_KNOWLEDGE_BYTES - knowledge_bytes)?;
                    knowledge_bytes += part.len();
                    read.knowledge.get_or_insert_default().merge(part)?;
                }
                tag::ACKNOWLEDGED => read.acknowledged = fields.number(field)?,
                tag::SUSPECTS => {
                    read.suspects.extend(strikes::read_suspect(Fields(fields.bytes(field)?))?);
                }
                _ => fields.pass_over(field)?,
            }
        }
        Ok(read)
    }

    /// Takes the Hello out of the frame and returns it, if there is one.
    pub(crate) fn hello(&mut self) -> Option<Result<Hello, BadHello>> {
        self.hello.take().map(hello::read)
    }

    /// Takes the Knowledge out of the frame and returns it, if there is one.
    pub(crate) fn knowledge(&mut self) -> Option<Knowledge> {
        self.knowledge.take().map(knowledge::read)
    }
}

/// Adds a part of a frame, and reserves room for the number of parts that the rest of the frame may have.
fn push<T>(parts: &mut Vec<T>, part: T, rest: &[u8]) {
    if parts.is_empty() {
        parts.reserve(1 + (rest.len() / USUAL_PART_BYTES).min(MAX_REQUESTS_PER_FRAME));
    }
    parts.push(part);
}

/// Reads a get of the unary service with the generated code.
pub(crate) fn read_get(message: &Bytes) -> Result<GetRequest, Malformed> {
    Ok(GetRequest::decode(message.clone())?)
}

/// Response to a get of the unary service.
#[derive(Debug)]
pub(crate) struct UnaryAnswer(pub(crate) Response);

impl UnaryAnswer {
    /// Returns the approximate size of the response in bytes.
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
