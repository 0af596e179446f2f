//! Reference: comparison of the code that reads and writes by hand with the code generated from the `.proto` file.
#![allow(clippy::expect_used, clippy::allow_attributes, reason = "built for tests and fuzzers only")]

use bytes::{Bytes, BytesMut};

use crate::protocol::wire::{Incoming, Outgoing};
use crate::protocol::{
    chain::LoadChain,
    message::{DeadlineOwner, Op, Response},
    proto,
};

impl Outgoing {
    /// Returns the frame in bytes, as it is sent.
    pub(crate) fn written(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        self.write(&mut bytes);
        bytes.freeze()
    }

    /// Returns the frame as its receiver reads it.
    pub(crate) fn arrived(&self) -> Incoming {
        Incoming::read(&self.written()).expect("a written frame can be read")
    }
}

impl Incoming {
    /// Checks that the frame equals the frame that the generated code has read from the same bytes.
    pub(crate) fn assert_is(&self, frame: &proto::Frame) {
        assert_eq!(self.hello, frame.hello);
        assert_eq!(self.goodbye.map(|incarnation| incarnation.0), frame.goodbye.map(|goodbye| goodbye.incarnation));
        assert_eq!((self.fingerprint, self.ping, self.pong), (frame.fingerprint, frame.ping, frame.pong));
        assert_eq!(self.cancels, frame.cancels);
        assert_eq!((&self.knowledge, self.acknowledged), (&frame.knowledge, frame.acknowledged));
        assert_eq!((self.requests.len(), self.answers.len()), (frame.requests.len(), frame.answers.len()));
        assert!(self.suspects.len() <= frame.suspects.len());
        for (read, other) in self.requests.iter().zip(&frame.requests) {
            assert_eq!((read.id, read.group, &read.key), (other.id, other.group, &other.key));
            assert_eq!(
                (&read.chain, read.no_load),
                (&LoadChain::of(other.depth, other.chain.iter().copied()), other.no_load)
            );
            assert_eq!((read.number, read.known.len()), (other.number, other.known.len()));
            assert_eq!(read.strikes.is_some(), other.strikes.is_some());
            assert_eq!(read.wait.map_or(0, |wait| wait.as_millis()), u128::from(other.deadline_ms));
            match &read.op {
                Op::Get => assert!(other.op == 0 && !(other.role == 1000 && other.no_load)),
                Op::ReadAsPreviousOwner => assert_eq!((other.op, other.role, other.no_load), (0, 1000, true)),
                Op::Set(value) => assert_eq!((1, value), (other.op, &other.value)),
                Op::Remove { hold } => assert_eq!((2, hold.as_millis()), (other.op, u128::from(other.hold_ms))),
                Op::Clear => assert_eq!(other.op, 3),
                Op::ReadPage { cursor } => assert_eq!((4, *cursor), (other.op, other.cursor)),
                Op::ReadLogs(_) => assert_eq!(other.op, 5),
                Op::Unknown(number) => assert!(*number == other.op && *number >= 5),
                Op::Peek => unreachable!("a peek is read as a get with a flag"),
            }
        }
        for (read, other) in self.answers.iter().zip(&frame.answers) {
            assert_eq!(read.id, other.id);
            match &read.answer {
                Response::Value(value) => {
                    assert_eq!((1, &value.bytes), (other.status, &other.value));
                    assert_eq!((value.age_ms, value.remaining_ms), (other.age_ms, other.remaining_ms));
                    assert_eq!((value.borrow_ms, value.is_hot), (other.borrow_for_ms, other.hot_rate > 0));
                }
                Response::LoadFailed { is_transient, text } => {
                    assert_eq!((4, *is_transient), (other.status, other.transient));
                    assert!(other.text.starts_with(text));
                }
                Response::BadRequest(text) => assert!(other.status == 13 && other.text.starts_with(text)),
                Response::Page(page) => {
                    assert_eq!(other.status, 14);
                    let other: proto::Page =
                        prost::Message::decode(other.value.clone()).expect("a page that was read by hand");
                    assert_eq!(
                        (page.next, page.left, page.entries.len()),
                        (other.next, other.left, other.entries.len())
                    );
                    for (read, other) in page.entries.iter().zip(&other.entries) {
                        assert_eq!((&read.key, &read.bytes), (&other.key, &other.value));
                        assert_eq!((read.age_ms, read.remaining_ms), (other.age_ms, other.remaining_ms));
                    }
                }
                Response::Referred(peer) => {
                    assert_eq!((other.status, other.reason), (6, 4));
                    assert_eq!(peer.as_str(), other.former_owner);
                }
                Response::Declined(_) => assert!(other.status == 6 || !read.is_known),
                Response::NotFound { as_of_age_ms } => {
                    assert_eq!((3, *as_of_age_ms), (other.status, other.as_of_age_ms))
                }
                Response::Overloaded { .. } => assert_eq!(other.status, 5),
                Response::TooLarge => assert_eq!(other.status, 7),
                Response::Pending => assert_eq!(other.status, 8),
                Response::Deadline(owner) => {
                    assert_eq!((other.status, other.reason == 1), (9, *owner == DeadlineOwner::Load))
                }
                Response::WrongPeer => assert_eq!(other.status, 10),
                Response::Unsupported => assert_eq!(other.status, 11),
                Response::Done => assert_eq!(other.status, 12),
                Response::Begun => assert_eq!(other.status, 16),
                Response::Held => assert_eq!(other.status, 18),
                Response::Quarantined { .. } => assert_eq!(other.status, 17),
                Response::Logs(logs) => {
                    let answer: proto::LogAnswer =
                        prost::Message::decode(other.value.clone()).expect("logs that were read");
                    assert_eq!((other.status, logs.len()), (15, answer.logs.len()));
                }
            }
        }
    }
}
