//! Responses: reading and writing the answers of a peer.

use std::time::Duration;

use bytes::Bytes;

use crate::protocol::wire::{
    MAX_PARTS,
    field::{Fields, Malformed, Part, Sink},
    knowledge, millis,
};
use crate::{
    identity::PeerId,
    limits::MAX_ERROR_TEXT,
    protocol::message::{DeadlineOwner, Decline, Encoded, Handed, LogEntry, LogPart, Page, Response, Source},
    runtime::small_bytes,
};

/// Returns the approximate size of a response in a frame, in bytes.
pub(crate) fn answer_bytes(answer: &Response) -> usize {
    48 + match answer {
        Response::Value(value) => value.bytes.len(),
        Response::LoadFailed { text, .. } | Response::BadRequest(text) => text.len().min(MAX_ERROR_TEXT),
        Response::Page(page) => page.entries.iter().map(handed_bytes).sum(),
        Response::Logs(logs) => logs.iter().map(log_bytes).sum(),
        _ => 0,
    }
}

/// Returns the approximate size of an entry in a page, in bytes.
pub(crate) fn handed_bytes(handed: &Handed) -> usize {
    24 + handed.key.len() + handed.bytes.len()
}

/// Returns the approximate size of a part of a log, in bytes.
pub(crate) fn log_bytes(part: &LogPart) -> usize {
    64 + part.entries.iter().map(entry_bytes).sum::<usize>()
}

/// Returns the approximate size of an entry of a log, in bytes.
pub(crate) fn entry_bytes(entry: &LogEntry) -> usize {
    24 + entry.group.len() + entry.key.as_ref().map_or(0, |key| key.len())
}

mod status {
    pub(crate) const VALUE: u32 = 1;
    pub(crate) const NOT_FOUND: u32 = 3;
    pub(crate) const LOADER_ERROR: u32 = 4;
    pub(crate) const OVERLOADED: u32 = 5;
    pub(crate) const DECLINED: u32 = 6;
    pub(crate) const TOO_LARGE: u32 = 7;
    pub(crate) const PENDING: u32 = 8;
    pub(crate) const DEADLINE: u32 = 9;
    pub(crate) const WRONG_PEER: u32 = 10;
    pub(crate) const UNSUPPORTED: u32 = 11;
    pub(crate) const DONE: u32 = 12;
    pub(crate) const BAD_REQUEST: u32 = 13;
    pub(crate) const PAGE: u32 = 14;
    pub(crate) const LOGS: u32 = 15;
    pub(crate) const BEGUN: u32 = 16;
    pub(crate) const QUARANTINED: u32 = 17;
    pub(crate) const HELD: u32 = 18;
}

/// Numbers of the fields of an answer.
mod tag {
    pub(crate) const ID: u32 = 1;
    pub(crate) const STATUS: u32 = 2;
    pub(crate) const VALUE: u32 = 3;
    pub(crate) const AGE_MS: u32 = 8;
    pub(crate) const REMAINING_MS: u32 = 9;
    pub(crate) const BORROW_FOR_MS: u32 = 12;
    pub(crate) const HOT_RATE: u32 = 13;
    pub(crate) const SOURCE: u32 = 14;
    pub(crate) const TRANSIENT: u32 = 15;
    pub(crate) const TEXT: u32 = 16;
    pub(crate) const REASON: u32 = 17;
    pub(crate) const RETRY_AFTER_MS: u32 = 18;
    pub(crate) const FORMER_OWNER: u32 = 19;
    pub(crate) const AS_OF_AGE_MS: u32 = 20;
}

/// Numbers of the fields of a page.
mod page_tag {
    pub(crate) const ENTRIES: u32 = 1;
    pub(crate) const NEXT: u32 = 2;
    pub(crate) const LEFT: u32 = 3;
    pub(crate) const POSITIONS: u32 = 4;
}

/// Numbers of the fields of an entry of a page.
mod handed_tag {
    pub(crate) const KEY: u32 = 1;
    pub(crate) const VALUE: u32 = 2;
    pub(crate) const AGE_MS: u32 = 3;
    pub(crate) const REMAINING_MS: u32 = 4;
    pub(crate) const AS_OF_AGE_MS: u32 = 5;
}

/// Response that is to be written, with the id of its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseRef<'a>(pub(crate) u64, pub(crate) &'a Response);

impl Part for ResponseRef<'_> {
    fn write(&self, out: &mut impl Sink) {
        let Self(id, answer) = *self;
        out.number(tag::ID, id);
        out.number(tag::STATUS, u64::from(status_of(answer)));
        match answer {
            Response::Value(value) => {
                out.bytes(tag::VALUE, &value.bytes);
                out.number(tag::AGE_MS, value.age_ms);
                if let Some(remaining_ms) = value.remaining_ms {
                    out.present(tag::REMAINING_MS, remaining_ms);
                }
                out.number(tag::BORROW_FOR_MS, value.borrow_ms);
                out.number(tag::HOT_RATE, u64::from(value.is_hot));
                out.number(tag::SOURCE, u64::from(value.source == Source::Loaded));
                if let Some(age_ms) = value.as_of_age_ms {
                    out.present(tag::AS_OF_AGE_MS, age_ms);
                }
            }
            Response::NotFound { as_of_age_ms } => {
                if let Some(age_ms) = as_of_age_ms {
                    out.present(tag::AS_OF_AGE_MS, *age_ms);
                }
            }
            Response::LoadFailed { is_transient, text } => {
                out.number(tag::TRANSIENT, u64::from(*is_transient));
                out.bytes(tag::TEXT, shortened(text).as_bytes());
            }
            Response::BadRequest(text) => out.bytes(tag::TEXT, shortened(text).as_bytes()),
            Response::Declined(why) => out.number(tag::REASON, u64::from(decline_number(*why))),
            Response::Referred(peer) => {
                out.number(tag::REASON, u64::from(decline_number(Decline::NotCached)));
                out.bytes(tag::FORMER_OWNER, peer.as_str().as_bytes());
            }
            Response::Deadline(owner) => out.number(tag::REASON, u64::from(*owner == DeadlineOwner::Load)),
            Response::Overloaded { retry_after } | Response::Quarantined { retry_after } => {
                out.number(tag::RETRY_AFTER_MS, u64::from(millis(*retry_after)));
            }
            Response::Page(page) => out.part(tag::VALUE, page),
            Response::Logs(logs) => out.bytes(tag::VALUE, &knowledge::write_logs(logs)),
            Response::TooLarge
            | Response::Pending
            | Response::Held
            | Response::Begun
            | Response::WrongPeer
            | Response::Unsupported
            | Response::Done => {}
        }
    }
}

fn status_of(answer: &Response) -> u32 {
    match answer {
        Response::Value(_) => status::VALUE,
        Response::NotFound { .. } => status::NOT_FOUND,
        Response::LoadFailed { .. } => status::LOADER_ERROR,
        Response::Overloaded { .. } => status::OVERLOADED,
        Response::Declined(_) | Response::Referred(_) => status::DECLINED,
        Response::TooLarge => status::TOO_LARGE,
        Response::Pending => status::PENDING,
        Response::Deadline(_) => status::DEADLINE,
        Response::WrongPeer => status::WRONG_PEER,
        Response::Unsupported => status::UNSUPPORTED,
        Response::Done => status::DONE,
        Response::BadRequest(_) => status::BAD_REQUEST,
        Response::Page(_) => status::PAGE,
        Response::Logs(_) => status::LOGS,
        Response::Held => status::HELD,
        Response::Begun => status::BEGUN,
        Response::Quarantined { .. } => status::QUARANTINED,
    }
}

impl Part for Page {
    fn write(&self, out: &mut impl Sink) {
        self.entries.iter().for_each(|handed| out.part(page_tag::ENTRIES, handed));
        out.number(page_tag::NEXT, self.next);
        out.number(page_tag::LEFT, self.left);
        self.positions.iter().for_each(|position| out.part(page_tag::POSITIONS, position));
    }
}

impl Part for Handed {
    fn write(&self, out: &mut impl Sink) {
        out.bytes(handed_tag::KEY, &self.key);
        out.bytes(handed_tag::VALUE, &self.bytes);
        out.number(handed_tag::AGE_MS, self.age_ms);
        if let Some(remaining_ms) = self.remaining_ms {
            out.present(handed_tag::REMAINING_MS, remaining_ms);
        }
        if let Some(age_ms) = self.as_of_age_ms {
            out.present(handed_tag::AS_OF_AGE_MS, age_ms);
        }
    }
}

/// Response as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answered {
    pub(crate) id: u64,
    pub(crate) answer: Response,
    /// Whether this node knows the status and can read the page of the response.
    pub(crate) is_known: bool,
}

/// Reads a response, which is a part of `frame`, and skips unused fields.
pub(crate) fn read(frame: &Bytes, mut fields: Fields<'_>) -> Result<Answered, Malformed> {
    let (mut id, mut status, mut age_ms, mut remaining_ms, mut borrow_ms) = (0, 0, 0, None, 0);
    let (mut hot_rate, mut source, mut is_transient, mut reason, mut retry_after_ms) = (0, 0, false, 0, 0);
    let mut as_of_age_ms = None;
    let (mut value, mut text, mut previous_owner): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
    while let Some(field) = fields.next()? {
        match field.tag {
            tag::ID => id = fields.number(field)?,
            tag::STATUS => status = fields.number32(field)?,
            tag::VALUE => value = fields.bytes(field)?,
            tag::AGE_MS => age_ms = fields.number(field)?,
            tag::REMAINING_MS => remaining_ms = Some(fields.number(field)?),
            tag::BORROW_FOR_MS => borrow_ms = fields.number(field)?,
            tag::HOT_RATE => hot_rate = fields.number32(field)?,
            tag::SOURCE => source = fields.number32(field)?,
            tag::TRANSIENT => is_transient = fields.flag(field)?,
            tag::TEXT => text = fields.bytes(field)?,
            tag::REASON => reason = fields.number32(field)?,
            tag::RETRY_AFTER_MS => retry_after_ms = fields.number(field)?,
            tag::FORMER_OWNER => previous_owner = fields.bytes(field)?,
            tag::AS_OF_AGE_MS => as_of_age_ms = Some(fields.number(field)?),
            _ => fields.pass_over(field)?,
        }
    }
    let text = || shortened(&String::from_utf8_lossy(text.get(..MAX_ERROR_TEXT).unwrap_or(text))).to_owned();
    let retry_after = || Duration::from_millis(retry_after_ms.min(u64::from(u32::MAX)));
    let answer = match status {
        status::VALUE => Response::Value(Encoded {
            bytes: small_bytes::slice_or_copy(frame, value),
            age_ms,
            as_of_age_ms,
            remaining_ms,
            borrow_ms,
            is_hot: hot_rate > 0,
            source: if source == 1 { Source::Loaded } else { Source::Memory },
        }),
        status::NOT_FOUND => Response::NotFound { as_of_age_ms },
        status::LOADER_ERROR => Response::LoadFailed { is_transient, text: text() },
        status::OVERLOADED => Response::Overloaded { retry_after: retry_after() },
        status::QUARANTINED => Response::Quarantined { retry_after: retry_after() },
        status::BEGUN => Response::Begun,
        status::HELD => Response::Held,
        status::DECLINED => declined(reason, previous_owner),
        status::TOO_LARGE => Response::TooLarge,
        status::PENDING => Response::Pending,
        status::DEADLINE => Response::Deadline(if reason == 1 { DeadlineOwner::Load } else { DeadlineOwner::Asker }),
        status::WRONG_PEER => Response::WrongPeer,
        status::UNSUPPORTED => Response::Unsupported,
        status::DONE => Response::Done,
        status::BAD_REQUEST => Response::BadRequest(text()),
        status::PAGE => match read_page(frame, Fields(value)) {
            Ok(page) => Response::Page(page),
            Err(_) => return Ok(Answered { id, answer: Response::Declined(Decline::Other), is_known: false }),
        },
        status::LOGS => match knowledge::read_logs(value) {
            Ok(logs) => Response::Logs(logs),
            Err(_) => return Ok(Answered { id, answer: Response::Declined(Decline::Other), is_known: false }),
        },
        _ => return Ok(Answered { id, answer: Response::Declined(Decline::Other), is_known: false }),
    };
    Ok(Answered { id, answer, is_known: true })
}

fn read_page(frame: &Bytes, mut fields: Fields<'_>) -> Result<Page, Malformed> {
    let mut page = Page::default();
    while let Some(field) = fields.next()? {
        match field.tag {
            page_tag::ENTRIES if page.entries.len() == MAX_PARTS => {
                return Err(Malformed::too_much(format!("a page has more than {MAX_PARTS} entries; split it")));
            }
            page_tag::ENTRIES => page.entries.push(read_handed(frame, Fields(fields.bytes(field)?))?),
            page_tag::NEXT => page.next = fields.number(field)?,
            page_tag::LEFT => page.left = fields.number(field)?,
            page_tag::POSITIONS if page.positions.len() == MAX_PARTS => {
                return Err(Malformed::too_much(format!("a page has more than {MAX_PARTS} positions")));
            }
            page_tag::POSITIONS => {
                page.positions.extend(knowledge::read_position(Fields(fields.bytes(field)?))?);
            }
            _ => fields.pass_over(field)?,
        }
    }
    Ok(page)
}

fn read_handed(frame: &Bytes, mut fields: Fields<'_>) -> Result<Handed, Malformed> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    let (mut age_ms, mut as_of_age_ms, mut remaining_ms) = (0, None, None);
    while let Some(field) = fields.next()? {
        match field.tag {
            handed_tag::KEY => key = fields.bytes(field)?,
            handed_tag::VALUE => value = fields.bytes(field)?,
            handed_tag::AGE_MS => age_ms = fields.number(field)?,
            handed_tag::REMAINING_MS => remaining_ms = Some(fields.number(field)?),
            handed_tag::AS_OF_AGE_MS => as_of_age_ms = Some(fields.number(field)?),
            _ => fields.pass_over(field)?,
        }
    }
    let (key, bytes) = (frame.slice_ref(key), frame.slice_ref(value));
    Ok(Handed { key, bytes, age_ms, as_of_age_ms, remaining_ms })
}

fn declined(reason: u32, previous_owner: &[u8]) -> Response {
    let why = read_decline(reason);
    let peer = std::str::from_utf8(previous_owner).ok().and_then(|id| PeerId::new(id).ok());
    match peer.filter(|_| why == Decline::NotCached) {
        Some(peer) => Response::Referred(peer),
        None => Response::Declined(why),
    }
}

fn decline_number(why: Decline) -> u32 {
    match why {
        Decline::Other => 0,
        Decline::UnknownGroup => 1,
        Decline::Draining => 2,
        Decline::OtherFormat => 3,
        Decline::NotCached => 4,
        Decline::Closing => 5,
    }
}

fn read_decline(number: u32) -> Decline {
    match number {
        1 => Decline::UnknownGroup,
        2 => Decline::Draining,
        3 => Decline::OtherFormat,
        4 => Decline::NotCached,
        5 => Decline::Closing,
        _ => Decline::Other,
    }
}

/// Cuts a text between characters to at most [`MAX_ERROR_TEXT`] bytes.
fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MAX_ERROR_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
