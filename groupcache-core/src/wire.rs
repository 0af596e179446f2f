//! Protobuf ↔ our own words: the only files that name generated messages.
//!
//! What is unknown never ends a stream: an unknown status is a Declined, an unknown op is passed on as such, and
//! fields that nobody reads are ignored. What is wrong with one request is said of that request.

mod answer;
mod hello;
mod request;

use std::time::Duration;

pub(crate) use self::{
    answer::{answer, answer_bytes, answer_message, handed_bytes},
    hello::{BadHello, hello},
    request::{key, request, request_bytes, request_message, unary},
};
use crate::{
    identity::Incarnation,
    message::{Answer, Hello},
    proto,
};

pub(crate) use crate::proto::{
    Answer as AnswerMessage, Frame, GetRequest, Request as RequestMessage, peer_client, peer_server,
};

/// The one version of the protocol that we speak.
pub(crate) const VERSION: u32 = 1;

/// Feature bits of the Hello. Values in parts and other encodings have their fields and neither a bit nor a behaviour.
pub(crate) mod features {
    /// It answers for keys that it owned before: one at a time, and in pages.
    pub(crate) const HAND_OVER: u64 = 1;
}

/// A frame in the making.
#[derive(Debug, Default)]
pub(crate) struct Outgoing(Frame);

impl Outgoing {
    pub(crate) fn new(fingerprint: u64) -> Self {
        Self(Frame { fingerprint, ..Frame::default() })
    }

    pub(crate) fn hello(&mut self, hello: &Hello, max_in_flight: usize) {
        self.0.hello = Some(hello::write(hello, max_in_flight));
    }

    pub(crate) fn goodbye(&mut self, incarnation: Incarnation) {
        self.0.goodbye = Some(proto::Goodbye { incarnation: incarnation.0 });
    }

    pub(crate) fn request(&mut self, request: RequestMessage) {
        self.0.requests.push(request);
    }

    pub(crate) fn answer(&mut self, id: u64, answer: Answer) {
        self.0.answers.push(answer_message(id, answer));
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        self.0.cancels.push(id);
    }

    pub(crate) fn ping(&mut self, number: u64) {
        self.0.ping = number;
    }

    pub(crate) fn pong(&mut self, number: u64) {
        self.0.pong = number;
    }

    pub(crate) fn requests(&self) -> usize {
        self.0.requests.len()
    }

    pub(crate) fn finish(self) -> Frame {
        self.0
    }
}

/// What a frame says beside its Hello.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) fingerprint: u64,
    pub(crate) goodbye: Option<Incarnation>,
    pub(crate) requests: Vec<RequestMessage>,
    pub(crate) answers: Vec<AnswerMessage>,
    pub(crate) cancels: Vec<u64>,
    pub(crate) ping: u64,
    pub(crate) pong: u64,
}

pub(crate) fn open(frame: Frame) -> Incoming {
    Incoming {
        fingerprint: frame.fingerprint,
        goodbye: frame.goodbye.map(|g| Incarnation(g.incarnation)),
        requests: frame.requests,
        answers: frame.answers,
        cancels: frame.cancels,
        ping: frame.ping,
        pong: frame.pong,
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chain::Chain, message::Op};

    #[test]
    fn what_is_asked_of_a_former_owner_comes_as_it_went() {
        for sent in [Op::Get, Op::Peek, Op::Former, Op::HandOff { cursor: 7 }] {
            let mut frame = Outgoing::new(0);
            frame.request(request_message(1, &sent, 1, "k", Duration::from_millis(20), 0, &Chain::EMPTY));
            let read = request(open(frame.finish()).requests.remove(0));
            // From memory only is a flag of a get.
            let (op, no_load) = if sent == Op::Peek { (Op::Get, true) } else { (sent.clone(), sent == Op::Former) };
            assert_eq!((read.op, read.no_load), (op, no_load));
        }
    }
}
