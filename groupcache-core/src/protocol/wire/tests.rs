use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::protocol::wire::*;
use crate::{
    identity::{Instance, PeerId},
    protocol::{
        chain::LoadChain,
        message::{
            Company, DeadlineOwner, Decline, Encoded, Handed, LogEntry, LogPart, Op, Page, Position, Relayed, Source,
            Strike, Strikes, Suspect, WriteName,
        },
    },
};

/// Writes a frame, checks it against the generated code, and returns the frame that its receiver reads.
fn round_trip(frame: &Outgoing) -> Incoming {
    let (arrived, bytes) = (frame.arrived(), frame.written());
    arrived.assert_is(&proto::Frame::decode(bytes.clone()).unwrap());
    assert!(bytes.len() <= frame.bytes(), "the estimate is {} of {} bytes", frame.bytes(), bytes.len());
    arrived
}

fn request<'a>(op: &'a Op, key: &'a str, chain: &'a LoadChain) -> RequestRef<'a> {
    RequestRef {
        id: 7 << 32,
        op,
        group: 1,
        key,
        wait: Duration::from_millis(20),
        rank: 2,
        chain,
        number: 0,
        known: &[],
        strikes: None,
    }
}

/// Checks that the strikes of a request and those that a node shows arrive as they were sent, and that a suspect without
/// a valid key is skipped.
#[test]
fn strikes_survive_round_trip() {
    let strikes = |trial_age_ms| Strikes {
        epoch: 3,
        strikes: vec![
            Strike { process: writer(), age_ms: 7, count: 1 },
            Strike { process: writer(), age_ms: 0, count: 2 },
        ],
        trial_age_ms,
        changed_age_ms: 5,
    };
    let suspect = |key: &str| Suspect { group: "users".into(), key: key.into(), strikes: strikes(Some(0)) };
    let (struck, op) = (strikes(None), Op::Get);
    let mut frame = Outgoing::new(3);
    frame.suspects(vec![suspect("k"), suspect(""), suspect("another")]);
    frame.request(&RequestRef { strikes: Some(&struck), ..request(&op, "k", &LoadChain::EMPTY) });
    let arrived = round_trip(&frame);
    assert_eq!(arrived.suspects, [suspect("k"), suspect("another")]);
    assert_eq!(arrived.requests[0].strikes, Some(struck));
}

fn writer() -> Instance {
    Instance { id: PeerId::new("writer-0").unwrap(), incarnation: Incarnation(1 << 40) }
}

fn name(number: u64) -> WriteName {
    WriteName { writer: writer(), number }
}

fn position() -> Position {
    Position { writer: writer(), number: 7, base: 3 }
}

/// Checks that what a node shows of its writes arrives as it was sent, in a frame with a pong and an acknowledgement.
#[test]
fn knowledge_survives_round_trip() {
    let company =
        || Company { version: 5, members: vec![writer(), Instance { incarnation: Incarnation(0), ..writer() }] };
    let knowledge = Knowledge {
        company: Some(company()),
        positions: vec![position(), Position { base: 0, ..position() }],
        is_partial: true,
        asked: vec![PeerId::new("a").unwrap()],
        relayed: vec![Relayed { node: writer(), number: 9, company: company() }],
        lists_receiver: true,
    };
    let mut frame = Outgoing::new(3);
    frame.pong(4);
    frame.knowledge(&knowledge);
    frame.acknowledged(u64::MAX);
    let mut arrived = round_trip(&frame);
    assert_eq!((arrived.knowledge(), arrived.knowledge()), (Some(knowledge), None));
    assert_eq!((arrived.pong, arrived.acknowledged), (4, u64::MAX));
}

fn value(bytes: impl Into<Bytes>, remaining_ms: Option<u64>) -> Response {
    let bytes = bytes.into();
    Response::Value(Encoded {
        bytes,
        age_ms: 5,
        as_of_age_ms: remaining_ms,
        remaining_ms,
        borrow_ms: 6,
        is_hot: true,
        source: Source::Loaded,
    })
}

/// Each operation arrives as it was sent, with and without a chain, with short, empty and long keys.
#[test]
fn request_survives_round_trip() {
    let chain = LoadChain::of(2, [u64::MAX, 1]);
    let hold = Duration::from_secs(1);
    for op in [
        Op::Get,
        Op::Peek,
        Op::ReadAsPreviousOwner,
        Op::ReadPage { cursor: u64::MAX },
        Op::Set(Bytes::from_static(b"value")),
        Op::Set(Bytes::from(vec![7; 100_000])),
        Op::Remove { hold },
        Op::Remove { hold: Duration::ZERO },
        Op::Clear,
        Op::ReadLogs(vec![name(4), name(0)]),
        Op::Unknown(77),
    ] {
        for (key, chain) in [("k", &chain), ("", &LoadChain::EMPTY), (&*"ü".repeat(512), &chain)] {
            let mut frame = Outgoing::new(3);
            let known = [name(7), name(u64::MAX)];
            frame.request(&RequestRef { number: 9, known: &known, ..request(&op, key, chain) });
            let arrived = round_trip(&frame).requests.remove(0);
            // On the wire, a peek is a get with a flag.
            let (read, no_load) =
                if op == Op::Peek { (Op::Get, true) } else { (op.clone(), op == Op::ReadAsPreviousOwner) };
            assert_eq!((arrived.op, arrived.no_load, arrived.id), (read, no_load, 7 << 32));
            assert_eq!((&*arrived.key, &arrived.chain), (key.as_bytes(), chain));
            assert_eq!(arrived.wait, Some(Duration::from_millis(20)));
            assert_eq!((arrived.number, &*arrived.known), (9, &known[..]));
        }
    }
}

/// Each response arrives as it was sent, long ones included.
#[test]
fn response_survives_round_trip() {
    let handed = |key: &'static str, remaining_ms| Handed {
        key: key.into(),
        bytes: Bytes::from(vec![9; 300]),
        age_ms: 1,
        as_of_age_ms: remaining_ms,
        remaining_ms,
    };
    let entry = |key: Option<&str>| LogEntry { number: 3, group: "g".into(), key: key.map(Into::into), age_ms: 4 };
    let answers = [
        Response::Held,
        Response::Begun,
        Response::Quarantined { retry_after: Duration::from_secs(600) },
        value("v", Some(0)),
        value("", None),
        value(vec![1; 5000], Some(u64::MAX)),
        Response::NotFound { as_of_age_ms: None },
        Response::NotFound { as_of_age_ms: Some(9) },
        Response::LoadFailed { is_transient: true, text: "t".into() },
        Response::Overloaded { retry_after: Duration::from_millis(7) },
        Response::Declined(Decline::Draining),
        Response::Declined(Decline::Other),
        Response::Referred(PeerId::new("a").unwrap()),
        Response::TooLarge,
        Response::Pending,
        Response::Deadline(DeadlineOwner::Asker),
        Response::Deadline(DeadlineOwner::Load),
        Response::WrongPeer,
        Response::Unsupported,
        Response::Done,
        Response::BadRequest("b".into()),
        Response::Logs(vec![LogPart {
            writer: writer(),
            through: 9,
            base: 2,
            entries: [Some("k"), None].map(entry).into(),
        }]),
        Response::Page(Page {
            entries: vec![handed("a", Some(5)), handed("b", None)],
            next: 7,
            left: 3,
            positions: vec![position()],
        }),
        Response::Page(Page::default()),
    ];
    let mut frame = Outgoing::new(3);
    answers.iter().zip(1..).for_each(|(answer, id)| frame.answer(id, answer.clone()));
    let mut arrived = round_trip(&frame).answers;
    arrived.sort_by_key(|answered| answered.id); // long answers are the last of a frame
    assert!(arrived.iter().zip(1..).all(|(answered, id)| answered.id == id && answered.is_known));
    assert_eq!(arrived.into_iter().map(|answered| answered.answer).collect::<Vec<_>>(), answers);
}

#[test]
fn goodbye_in_parts_is_merged() {
    let frame = |goodbye: &[u8]| [&[0x1a, goodbye.len() as u8], goodbye].concat();
    let of_nine = proto::Goodbye { incarnation: 9 }.encode_to_vec();
    for parts in [vec![frame(&of_nine), frame(&[])], vec![frame(&[]), frame(&of_nine)]] {
        let bytes = Bytes::from(parts.concat());
        let read = Incoming::read(&bytes).unwrap();
        assert_eq!(read.goodbye, Some(Incarnation(9)));
        read.assert_is(&proto::Frame::decode(bytes).unwrap());
    }
}

/// A value of 100 bytes that a caller keeps, or a replica, would otherwise keep up to 256 KiB in memory.
#[test]
fn short_value_does_not_pin_its_frame() {
    for (len, is_held) in [(100, false), (4000, false), (5000, true)] {
        let mut frame = Outgoing::new(3);
        frame.answer(1, value(vec![1; len], None));
        frame.answer(2, value(vec![2; 100_000], None));
        let bytes = frame.written();
        let kept = Incoming::read(&bytes).unwrap().answers.remove(0);
        assert_eq!(bytes.is_unique(), !is_held, "{len}");
        drop(kept);
    }
}

#[test]
fn frame_carries_all_kinds_of_parts() {
    let mut frame = Outgoing::new(u64::MAX);
    frame.goodbye(Incarnation(9));
    [1, 1 << 60].into_iter().for_each(|id| frame.cancel(id));
    frame.ping(5);
    frame.pong(6);
    frame.request(&request(&Op::Get, "k", &LoadChain::EMPTY));
    frame.answer(4, Response::Done);
    let arrived = round_trip(&frame);
    assert_eq!((arrived.fingerprint, arrived.goodbye), (u64::MAX, Some(Incarnation(9))));
    assert_eq!((arrived.cancels, arrived.ping, arrived.pong), (vec![1, 1 << 60], 5, 6));
    assert_eq!((arrived.requests.len(), arrived.answers.len()), (1, 1));
    assert_eq!(round_trip(&Outgoing::default()), Incoming::default());
}

/// Frames of the generated code are read, with fields of a newer version or of another implementation.
#[test]
fn frame_of_other_implementation_is_read() {
    let message = proto::Frame {
        fingerprint: 1,
        requests: vec![
            proto::Request {
                id: 1,
                key: "k".into(),
                chain: (0..40).collect(),
                traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
                if_version: Some(proto::Version { incarnation: 1, seq: 2 }),
                multi_id: 5,
                depth: 300,
                ..proto::Request::default()
            },
            proto::Request::default(),
        ],
        answers: vec![
            proto::Answer { status: 99, value: "v".into(), ..proto::Answer::default() },
            proto::Answer {
                id: 2,
                status: 1,
                parts: 3,
                version: Some(proto::Version::default()),
                ..Default::default()
            },
        ],
        cancels: vec![3, 4],
        ..proto::Frame::default()
    };
    let read = Incoming::read(&message.encode_to_vec().into()).unwrap();
    read.assert_is(&message);
    assert_eq!(read.answers[0].answer, Response::Declined(Decline::Other), "an unknown status");
    assert!(!read.answers[0].is_known && read.answers[1].is_known);
}

/// Returns the error text of a frame that is refused.
fn refused(message: &proto::Frame) -> Option<String> {
    Incoming::read(&message.encode_to_vec().into()).err().map(|malformed| malformed.to_string())
}

/// Frames that are short and would take much memory are refused, and long values are not.
#[test]
fn frame_that_would_take_much_memory_is_refused() {
    let requests = |n| proto::Frame { requests: vec![proto::Request::default(); n], ..Default::default() };
    assert_eq!(refused(&requests(MAX_PARTS)), None);
    assert!(refused(&requests(MAX_PARTS + 1)).unwrap().contains("parts"));
    let cancels = |n| proto::Frame { cancels: vec![1; n], ..Default::default() };
    assert_eq!(refused(&cancels(MAX_PARTS)), None);
    assert!(refused(&cancels(1 << 20)).unwrap().contains("field 6"));
    let hello = proto::Hello { groups: vec![proto::Group::default(); 1 << 20], ..proto::Hello::default() };
    assert!(refused(&proto::Frame { hello: Some(hello), ..Default::default() }).unwrap().contains("field 1"));
    let value = proto::Answer { value: vec![0; 1 << 20].into(), ..proto::Answer::default() };
    assert_eq!(
        refused(&proto::Frame { answers: vec![value], ..Default::default() }),
        None,
        "a value takes no more memory than in the frame"
    );
}

#[test]
fn page_with_too_many_entries_is_not_read() {
    for (entries, is_read) in [(MAX_PARTS, true), (MAX_PARTS + 1, false)] {
        let page =
            proto::Page { entries: vec![proto::Handed::default(); entries], next: 0, left: 0, positions: Vec::new() };
        let answer = proto::Answer { status: 14, value: page.encode_to_vec().into(), ..Default::default() };
        let message = proto::Frame { answers: vec![answer], ..Default::default() };
        let read = Incoming::read(&message.encode_to_vec().into()).unwrap();
        assert_eq!(read.answers[0].is_known, is_read, "{entries}");
    }
}

/// Frames with random faults are read as the generated code reads them, or refused by both.
#[test]
fn mutated_frame_is_read_like_generated_code() {
    let mut frame = Outgoing::new(1);
    let chain = LoadChain::of(1, [5]);
    frame.request(&request(&Op::Set(Bytes::from_static(b"v")), "key", &chain));
    frame.answer(4, value("v", Some(0)));
    frame.cancel(9);
    let whole = frame.written();
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..200_000 {
        let mut bytes = whole.to_vec();
        for _ in 0..rng.usize(0..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        crate::testing::fuzz::wire(&bytes);
    }
}

#[test]
fn long_text_is_cut_between_characters() {
    let mut frame = Outgoing::new(0);
    frame.answer(1, Response::BadRequest("ü".repeat(1000)));
    let Response::BadRequest(text) = round_trip(&frame).answers.remove(0).answer else {
        panic!("a BadRequest arrives as another response")
    };
    assert_eq!(text, "ü".repeat(512));
}

/// The limits of a Hello hold for all parts of a Hello together.
#[test]
fn hello_in_parts_has_limits_of_one() {
    let part = |n: usize| {
        let name = "g".repeat(200);
        let groups = (0..n)
            .map(|index| proto::Group { index: index as u32, name: name.clone(), format: 0, ..proto::Group::default() })
            .collect();
        let hello = proto::Hello {
            min_version: 1,
            max_version: 1,
            cluster: "users".into(),
            id: "a".into(),
            groups,
            ..proto::Hello::default()
        };
        proto::Frame { hello: Some(hello), ..proto::Frame::default() }.encode_to_vec()
    };
    let frame = |parts: [usize; 2]| Bytes::from(parts.map(part).concat());
    let mut read = Incoming::read(&frame([700, 700])).unwrap();
    assert_eq!(read.hello().unwrap().unwrap().groups.len(), crate::limits::MAX_GROUPS, "as many as a node may have");
    assert!(Incoming::read(&frame([900, 900])).is_err(), "200 KB, twice");
}
