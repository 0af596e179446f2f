//! Protobuf ↔ our own words: the only file that names generated messages.
//!
//! What is unknown never ends a stream: an unknown status is a Declined, an unknown op is passed on as such, and
//! fields that nobody reads are ignored. What is wrong with one request is said of that request.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;

use crate::{
    chain::Chain,
    config::{MAX_ERROR_TEXT, MAX_KEY_BYTES},
    identity::{Address, Incarnation, MAX_ADDRESSES, MAX_WEIGHT, NodeState, PeerId, check_name},
    message::{Answer, BadKey, Decline, Encoded, GroupName, Handed, Hello, Op, Page, Request, Source},
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

/// The role of a former owner, who is asked by the next one.
const ROLE_PEEK: u32 = 1000;
/// The role of a former owner that hands pages over.
const ROLE_HAND_OFF: u32 = 1001;

/// A frame in the making.
#[derive(Debug, Default)]
pub(crate) struct Outgoing(Frame);

impl Outgoing {
    pub(crate) fn new(fingerprint: u64) -> Self {
        Self(Frame { fingerprint, ..Frame::default() })
    }

    pub(crate) fn hello(&mut self, hello: &Hello, max_in_flight: usize) {
        self.0.hello = Some(proto::Hello {
            min_version: VERSION,
            max_version: VERSION,
            features: hello.features,
            cluster: hello.cluster.clone(),
            id: hello.id.to_string(),
            expected_id: hello.expected.as_ref().map(ToString::to_string).unwrap_or_default(),
            incarnation: hello.incarnation.0,
            state: state_number(hello.state),
            weight: u32::from(hello.weight),
            zone: hello.zone.to_string(),
            addresses: hello.addresses.iter().map(ToString::to_string).collect(),
            ring_algorithm: hello.ring_algorithm,
            fingerprint: hello.fingerprint,
            limits: Some(proto::Limits {
                max_frame_bytes: hello.max_value_bytes.saturating_add(crate::config::FRAME_SLACK_BYTES) as u64,
                max_requests_per_frame: hello.max_requests_per_frame as u32,
                max_value_bytes: hello.max_value_bytes as u64,
                max_key_bytes: MAX_KEY_BYTES as u32,
                max_in_flight: max_in_flight as u32,
            }),
            groups: hello
                .groups
                .iter()
                .map(|g| proto::Group { index: g.index, name: g.name.to_string(), format: g.format })
                .collect(),
            pending_invalidations: 0,
            had_dropped_you: false,
        });
    }

    pub(crate) fn goodbye(&mut self, incarnation: Incarnation) {
        self.0.goodbye = Some(proto::Goodbye { incarnation: incarnation.0 });
    }

    #[expect(clippy::too_many_arguments, reason = "these are the parts of a request")]
    pub(crate) fn request(
        &mut self,
        id: u64,
        op: &Op,
        group: u32,
        key: &str,
        wait: Duration,
        rank: usize,
        chain: &Chain,
    ) {
        let no_load = matches!(op, Op::Peek | Op::Former);
        let cursor = if let Op::HandOff { cursor } = op { *cursor } else { 0 };
        let role = match op {
            Op::Former => ROLE_PEEK,
            Op::HandOff { .. } => ROLE_HAND_OFF,
            _ => rank.min(999) as u32,
        };
        let hold_ms = if let Op::Remove { hold } = op { millis(*hold) } else { 0 };
        let (op, value) = match op {
            Op::Get => (0, Bytes::new()),
            Op::Set(value) => (1, value.clone()),
            Op::Remove { .. } => (2, Bytes::new()),
            Op::Clear => (3, Bytes::new()),
            Op::Peek | Op::Former => (0, Bytes::new()),
            Op::HandOff { .. } => (4, Bytes::new()),
            Op::Unknown(n) => (*n, Bytes::new()),
        };
        self.0.requests.push(proto::Request {
            id,
            op,
            group,
            key: Bytes::copy_from_slice(key.as_bytes()),
            deadline_ms: millis(wait).max(1),
            role,
            chain: chain.as_slice().to_vec(),
            depth: chain.depth() as u32,
            value,
            no_load,
            hold_ms,
            cursor,
            ..proto::Request::default()
        });
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

/// Bytes that a request takes in a frame, about.
pub(crate) fn request_bytes(op: &Op, key: &str) -> usize {
    64 + key.len() + if let Op::Set(value) = op { value.len() } else { 0 }
}

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

/// Why a Hello cannot be understood or agreed with; the text is sent to the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadHello(pub(crate) String);

/// The Hello of a frame, if it carries one.
pub(crate) fn hello(frame: &mut Frame) -> Option<Result<Hello, BadHello>> {
    frame.hello.take().map(read_hello)
}

fn read_hello(hello: proto::Hello) -> Result<Hello, BadHello> {
    if hello.min_version > VERSION || hello.max_version < VERSION {
        return Err(BadHello(format!(
            "versions {} to {} of the protocol are spoken there and {VERSION} here; run releases that share one",
            hello.min_version, hello.max_version
        )));
    }
    let bad = |e: crate::Error| BadHello(e.to_string());
    if !hello.zone.is_empty() {
        check_name("zone", &hello.zone).map_err(bad)?;
    }
    check_name("cluster name", &hello.cluster).map_err(bad)?;
    let limits = hello.limits.unwrap_or_default();
    Ok(Hello {
        id: PeerId::new(&hello.id).map_err(bad)?,
        expected: match hello.expected_id.as_str() {
            "" => None,
            id => Some(PeerId::new(id).map_err(bad)?),
        },
        cluster: hello.cluster,
        incarnation: Incarnation(hello.incarnation),
        // A state of a newer version is none that owns keys as we understand it.
        state: read_state(hello.state).unwrap_or(NodeState::Joining),
        weight: u8::try_from(hello.weight).unwrap_or(u8::MAX).min(MAX_WEIGHT),
        zone: hello.zone.into(),
        addresses: hello.addresses.iter().take(MAX_ADDRESSES).filter_map(|a| Address::new(a).ok()).collect(),
        ring_algorithm: hello.ring_algorithm,
        fingerprint: hello.fingerprint,
        max_requests_per_frame: limits.max_requests_per_frame.max(1) as usize,
        // Unsaid is without limit.
        max_value_bytes: match limits.max_value_bytes {
            0 => usize::MAX,
            max => usize::try_from(max).unwrap_or(usize::MAX),
        },
        groups: hello
            .groups
            .into_iter()
            .map(|g| GroupName { index: g.index, name: g.name.into(), format: g.format })
            .collect(),
        features: hello.features,
    })
}

/// What a frame says beside its Hello.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) fingerprint: u64,
    pub(crate) goodbye: Option<Incarnation>,
    pub(crate) requests: Vec<proto::Request>,
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

pub(crate) fn request(request: proto::Request) -> Request {
    Request {
        id: request.id,
        op: match request.op {
            0 if request.no_load && request.role == ROLE_PEEK => Op::Former,
            0 => Op::Get,
            1 => Op::Set(request.value),
            2 => Op::Remove { hold: Duration::from_millis(u64::from(request.hold_ms)) },
            3 => Op::Clear,
            4 => Op::HandOff { cursor: request.cursor },
            other => Op::Unknown(other),
        },
        group: request.group,
        key: key(&request.key),
        wait: (request.deadline_ms > 0).then(|| Duration::from_millis(u64::from(request.deadline_ms))),
        chain: Chain::of(request.depth, request.chain),
        no_load: request.no_load,
    }
}

/// Checks the bytes of a key.
pub(crate) fn key(bytes: &[u8]) -> Result<String, BadKey> {
    match bytes.len() {
        0 => Err(BadKey::Empty),
        n if n > MAX_KEY_BYTES => Err(BadKey::TooLong),
        _ => std::str::from_utf8(bytes).map(ToOwned::to_owned).map_err(|_| BadKey::NotUtf8),
    }
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

fn state_number(state: NodeState) -> u32 {
    match state {
        NodeState::Joining => 1,
        NodeState::Ready => 2,
        NodeState::Draining => 3,
    }
}

fn read_state(number: u32) -> Option<NodeState> {
    match number {
        1 => Some(NodeState::Joining),
        2 => Some(NodeState::Ready),
        3 => Some(NodeState::Draining),
        _ => None,
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
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

/// A get of the unary service, as a request.
pub(crate) fn unary(get: GetRequest) -> (String, Arc<str>, u32, Request) {
    let request = Request {
        id: 0,
        op: Op::Get,
        group: 0,
        key: key(&get.key),
        wait: (get.deadline_ms > 0).then(|| Duration::from_millis(u64::from(get.deadline_ms))),
        chain: Chain::EMPTY,
        no_load: get.no_load,
    };
    (get.cluster, get.group.into(), get.format, request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello_of(change: impl FnOnce(&mut proto::Hello)) -> Result<Hello, BadHello> {
        let mut message = proto::Hello {
            min_version: 1,
            max_version: 3,
            cluster: "users".into(),
            id: "a".into(),
            state: 2,
            weight: 1,
            ..proto::Hello::default()
        };
        change(&mut message);
        let mut frame = Frame { hello: Some(message), ..Frame::default() };
        super::hello(&mut frame).expect("there is one")
    }

    #[test]
    fn a_hello_of_a_newer_node_is_understood() {
        let hello = hello_of(|h| {
            h.state = 9;
            h.weight = 70_000;
            h.features = u64::MAX;
            h.addresses = vec!["10.0.0.7:1".into(), "no address".into()];
        })
        .unwrap();
        assert_eq!((hello.state, hello.weight), (NodeState::Joining, MAX_WEIGHT));
        assert_eq!(hello.addresses.len(), 1);
    }

    #[test]
    fn a_hello_that_cannot_be_agreed_with_says_why() {
        assert!(hello_of(|h| h.min_version = 2).unwrap_err().0.contains("versions 2 to 3"));
        assert!(hello_of(|h| h.id.clear()).is_err());
        assert!(hello_of(|h| h.zone = "a b".into()).is_err());
    }

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
    fn what_is_asked_of_a_former_owner_comes_as_it_went() {
        for sent in [Op::Get, Op::Peek, Op::Former, Op::HandOff { cursor: 7 }] {
            let mut frame = Outgoing::new(0);
            frame.request(1, &sent, 1, "k", Duration::from_millis(20), 0, &Chain::EMPTY);
            let read = request(open(frame.finish()).requests.remove(0));
            // From memory only is a flag of a get.
            let (op, no_load) = if sent == Op::Peek { (Op::Get, true) } else { (sent.clone(), sent == Op::Former) };
            assert_eq!((read.op, read.no_load), (op, no_load));
        }
    }

    #[test]
    fn an_unknown_status_is_a_decline() {
        let message = AnswerMessage { status: 99, ..AnswerMessage::default() };
        assert_eq!(answer(message), (Answer::Declined(Decline::Other), false));
    }

    #[test]
    fn keys_are_checked() {
        assert_eq!(key(b""), Err(BadKey::Empty));
        assert_eq!(key(&[b'k'; 1025]), Err(BadKey::TooLong));
        assert_eq!(key(&[0xff]), Err(BadKey::NotUtf8));
        assert_eq!(key(&[b'k'; 1024]).unwrap().len(), 1024);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = shortened("ü".repeat(1000));
        assert!(text.len() <= MAX_ERROR_TEXT && text.len() > MAX_ERROR_TEXT - 2);
    }
}
