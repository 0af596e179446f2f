//! What a peer answers.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::{AnswerMessage, millis, proto};
use crate::{
    config::MAX_ERROR_TEXT,
    message::{Answer, Decline, Encoded, Handed, Page, Source},
};

/// Bytes that an answer takes in a frame, about.
pub(crate) fn answer_bytes(answer: &Answer) -> usize {
    48 + match answer {
        Answer::Value(value) => value.bytes.len(),
        Answer::LoadFailed { text, .. } | Answer::BadRequest(text) => text.len().min(MAX_ERROR_TEXT),
        Answer::Page(page) => page.entries.iter().map(handed_bytes).sum(),
        _ => 0,
    }
}

/// Bytes that a value takes in a page, about.
pub(crate) fn handed_bytes(handed: &Handed) -> usize {
    24 + handed.key.len() + handed.bytes.len()
}

mod status {
    pub(super) const VALUE: u32 = 1;
    pub(super) const NOT_FOUND: u32 = 3;
    pub(super) const LOADER_ERROR: u32 = 4;
    pub(super) const OVERLOADED: u32 = 5;
    pub(super) const DECLINED: u32 = 6;
    pub(super) const TOO_LARGE: u32 = 7;
    pub(super) const PENDING: u32 = 8;
    pub(super) const DEADLINE: u32 = 9;
    pub(super) const WRONG_PEER: u32 = 10;
    pub(super) const UNSUPPORTED: u32 = 11;
    pub(super) const DONE: u32 = 12;
    pub(super) const BAD_REQUEST: u32 = 13;
    pub(super) const PAGE: u32 = 14;
}

pub(crate) fn answer_message(id: u64, answer: Answer) -> AnswerMessage {
    let mut out = AnswerMessage { id, ..AnswerMessage::default() };
    out.status = match answer {
        Answer::Value(value) => {
            out.value = value.bytes;
            out.age_ms = value.age_ms;
            out.remaining_ms = value.remaining_ms;
            out.borrow_for_ms = value.borrow_ms;
            out.hot_rate = u32::from(value.is_hot);
            out.source = u32::from(value.source == Source::Loaded);
            status::VALUE
        }
        Answer::NotFound => status::NOT_FOUND,
        Answer::LoadFailed { is_transient, text } => {
            out.transient = is_transient;
            out.text = shortened(text);
            status::LOADER_ERROR
        }
        Answer::Overloaded { retry_after } => {
            out.retry_after_ms = u64::from(millis(retry_after));
            status::OVERLOADED
        }
        Answer::Declined(why) => {
            out.reason = decline_number(why);
            status::DECLINED
        }
        Answer::TooLarge => status::TOO_LARGE,
        Answer::Pending => status::PENDING,
        Answer::Deadline => status::DEADLINE,
        Answer::WrongPeer => status::WRONG_PEER,
        Answer::Unsupported => status::UNSUPPORTED,
        Answer::Done => status::DONE,
        Answer::BadRequest(text) => {
            out.text = shortened(text);
            status::BAD_REQUEST
        }
        Answer::Page(page) => {
            out.value = write_page(page);
            status::PAGE
        }
    };
    out
}

/// Reads an answer; the flag says whether its status is one that we know.
pub(crate) fn answer(message: AnswerMessage) -> (Answer, bool) {
    let answer = match message.status {
        status::VALUE => Answer::Value(Encoded {
            bytes: message.value,
            age_ms: message.age_ms,
            remaining_ms: message.remaining_ms,
            borrow_ms: message.borrow_for_ms,
            is_hot: message.hot_rate > 0,
            source: if message.source == 1 { Source::Loaded } else { Source::Memory },
        }),
        status::NOT_FOUND => Answer::NotFound,
        status::LOADER_ERROR => Answer::LoadFailed { is_transient: message.transient, text: message.text },
        status::OVERLOADED => Answer::Overloaded { retry_after: Duration::from_millis(message.retry_after_ms) },
        status::DECLINED => Answer::Declined(read_decline(message.reason)),
        status::TOO_LARGE => Answer::TooLarge,
        status::PENDING => Answer::Pending,
        status::DEADLINE => Answer::Deadline,
        status::WRONG_PEER => Answer::WrongPeer,
        status::UNSUPPORTED => Answer::Unsupported,
        status::DONE => Answer::Done,
        status::BAD_REQUEST => Answer::BadRequest(message.text),
        status::PAGE => match read_page(message.value) {
            Some(page) => Answer::Page(page),
            None => return (Answer::Declined(Decline::Other), false),
        },
        _ => return (Answer::Declined(Decline::Other), false),
    };
    (answer, true)
}

fn write_page(page: Page) -> Bytes {
    let entry = |handed: Handed| proto::Handed {
        key: handed.key,
        value: handed.bytes,
        age_ms: handed.age_ms,
        remaining_ms: handed.remaining_ms,
    };
    let entries = page.entries.into_iter().map(entry).collect();
    proto::Page { entries, next: page.next, left: page.left }.encode_to_vec().into()
}

/// `None` when it is none, or has more parts than a message may have.
fn read_page(bytes: Bytes) -> Option<Page> {
    crate::codec::look_over(&bytes, false).ok()?;
    let page = proto::Page::decode(bytes).ok()?;
    let entry = |handed: proto::Handed| Handed {
        key: handed.key,
        bytes: handed.value,
        age_ms: handed.age_ms,
        remaining_ms: handed.remaining_ms,
    };
    Some(Page { entries: page.entries.into_iter().map(entry).collect(), next: page.next, left: page.left })
}

fn decline_number(why: Decline) -> u32 {
    match why {
        Decline::Other => 0,
        Decline::UnknownGroup => 1,
        Decline::Draining => 2,
        Decline::OtherFormat => 3,
        Decline::NotHeld => 4,
        Decline::Closing => 5,
    }
}

fn read_decline(number: u32) -> Decline {
    match number {
        1 => Decline::UnknownGroup,
        2 => Decline::Draining,
        3 => Decline::OtherFormat,
        4 => Decline::NotHeld,
        5 => Decline::Closing,
        _ => Decline::Other,
    }
}

/// At most [`MAX_ERROR_TEXT`] bytes, cut between characters.
fn shortened(mut text: String) -> String {
    let mut end = text.len().min(MAX_ERROR_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_comes_back_as_it_went() {
        let value = Encoded {
            bytes: "v".into(),
            age_ms: 3,
            remaining_ms: Some(0),
            borrow_ms: 7,
            is_hot: true,
            source: Source::Loaded,
        };
        let handed = |remaining_ms| Handed { key: "k".into(), bytes: "v".into(), age_ms: 3, remaining_ms };
        let page = Page { entries: vec![handed(None), handed(Some(0))], next: 5, left: 7 };
        for sent in [
            Answer::Value(value),
            Answer::NotFound,
            Answer::LoadFailed { is_transient: true, text: "t".into() },
            Answer::Overloaded { retry_after: Duration::from_millis(7) },
            Answer::Declined(Decline::Draining),
            Answer::TooLarge,
            Answer::Pending,
            Answer::Deadline,
            Answer::WrongPeer,
            Answer::Unsupported,
            Answer::Done,
            Answer::BadRequest("b".into()),
            Answer::Page(page),
        ] {
            let bytes = answer_message(1, sent.clone()).encode_to_vec();
            let (read, known) = answer(AnswerMessage::decode(&*bytes).unwrap());
            assert_eq!(read, sent);
            assert!(known);
        }
    }

    #[test]
    fn a_page_with_more_parts_than_a_message_may_have_is_not_read() {
        let page = |entries| proto::Page { entries: vec![proto::Handed::default(); entries], next: 0, left: 0 };
        for (entries, is_read) in [(16_384, true), (16_385, false)] {
            let value = page(entries).encode_to_vec().into();
            let message = AnswerMessage { status: status::PAGE, value, ..AnswerMessage::default() };
            assert_eq!(matches!(answer(message), (Answer::Page(_), true)), is_read, "{entries}");
        }
    }

    #[test]
    fn an_unknown_status_is_a_decline() {
        let message = AnswerMessage { status: 99, ..AnswerMessage::default() };
        assert_eq!(answer(message), (Answer::Declined(Decline::Other), false));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = shortened("ü".repeat(1000));
        assert!(text.len() <= MAX_ERROR_TEXT && text.len() > MAX_ERROR_TEXT - 2);
    }
}
