//! What is asked of a peer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{GetRequest, RequestMessage, millis};
use crate::{
    chain::Chain,
    config::MAX_KEY_BYTES,
    message::{BadKey, Op, Request},
};

/// The role of a former owner, who is asked by the next one.
const ROLE_PEEK: u32 = 1000;
/// The role of a former owner that hands pages over.
const ROLE_HAND_OFF: u32 = 1001;

#[inline] // it is built where it goes, and not copied
pub(crate) fn request_message(
    id: u64,
    op: &Op,
    group: u32,
    key: &str,
    wait: Duration,
    rank: usize,
    chain: &Chain,
) -> RequestMessage {
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
    RequestMessage {
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
        ..RequestMessage::default()
    }
}

/// Bytes that a request takes in a frame, about.
pub(crate) fn request_bytes(op: &Op, key: &str) -> usize {
    64 + key.len() + if let Op::Set(value) = op { value.len() } else { 0 }
}

pub(crate) fn request(request: RequestMessage) -> Request {
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

    #[test]
    fn keys_are_checked() {
        assert_eq!(key(b""), Err(BadKey::Empty));
        assert_eq!(key(&[b'k'; 1025]), Err(BadKey::TooLong));
        assert_eq!(key(&[0xff]), Err(BadKey::NotUtf8));
        assert_eq!(key(&[b'k'; 1024]).unwrap().len(), 1024);
    }
}
