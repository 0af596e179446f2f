//! Requests: reading and writing the questions to a peer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::protocol::wire::{
    GetRequest,
    field::{Fields, Malformed, Part, Sink},
    knowledge, millis, strikes,
};
use crate::protocol::{
    chain::{LoadChain, MAX_HASHES},
    message::{Op, Request, Strikes, WriteName},
};

/// Role of a previous owner that answers a read of the next one.
const ROLE_PREVIOUS_OWNER: u32 = 1000;
/// Role of a previous owner that sends pages.
const ROLE_READ_PAGE: u32 = 1001;

/// Numbers of the fields of a request.
mod tag {
    pub(crate) const ID: u32 = 1;
    pub(crate) const OP: u32 = 2;
    pub(crate) const GROUP: u32 = 3;
    pub(crate) const KEY: u32 = 4;
    pub(crate) const DEADLINE_MS: u32 = 5;
    pub(crate) const ROLE: u32 = 6;
    pub(crate) const CHAIN: u32 = 7;
    pub(crate) const NO_LOAD: u32 = 12;
    pub(crate) const VALUE: u32 = 13;
    pub(crate) const DEPTH: u32 = 14;
    pub(crate) const HOLD_MS: u32 = 15;
    pub(crate) const CURSOR: u32 = 16;
    pub(crate) const NUMBER: u32 = 17;
    pub(crate) const KNOWN: u32 = 18;
    pub(crate) const STRIKES: u32 = 19;
}

/// Maximum number of names of writes in a request: as many as a cluster may have writers.
const MAX_KNOWN: usize = 2_000;

/// Request that is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestRef<'a> {
    pub(crate) id: u64,
    pub(crate) op: &'a Op,
    /// Index in this node's Hello.
    pub(crate) group: u32,
    pub(crate) key: &'a str,
    /// Time that this node waits from now on.
    pub(crate) wait: Duration,
    /// Rank of the receiver among the candidates: 0 = the owner, n = the n-th successor.
    pub(crate) rank: usize,
    pub(crate) chain: &'a LoadChain,
    /// Number of the write in this node's log; 0 = the request is no write, or the write is in no log.
    pub(crate) number: u64,
    /// Of a set: the writes of the key that this node knew of. Of a get: those that the receiver has not said to have.
    pub(crate) known: &'a [WriteName],
    /// Strikes against the key of a get.
    pub(crate) strikes: Option<&'a Strikes>,
}

impl RequestRef<'_> {
    /// Returns the approximate size of the request in a frame, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let named: usize = self.known.iter().map(|name| 24 + name.writer.id.as_str().len()).sum();
        let struck: usize = self.strikes.iter().flat_map(|s| &s.strikes).map(strikes::strike_bytes).sum();
        64 + self.key.len() + named + struck + if let Op::Set(value) = self.op { value.len() } else { 0 }
    }
}

impl Part for RequestRef<'_> {
    fn write(&self, out: &mut impl Sink) {
        let op = match self.op {
            Op::Get | Op::Peek | Op::ReadAsPreviousOwner => 0,
            Op::Set(_) => 1,
            Op::Remove { .. } => 2,
            Op::Clear => 3,
            Op::ReadPage { .. } => 4,
            Op::ReadLogs(_) => 5,
            Op::Unknown(number) => *number,
        };
        let role = match self.op {
            Op::ReadAsPreviousOwner => ROLE_PREVIOUS_OWNER,
            Op::ReadPage { .. } => ROLE_READ_PAGE,
            _ => self.rank.min(999) as u32,
        };
        out.number(tag::ID, self.id);
        out.number(tag::OP, u64::from(op));
        out.number(tag::GROUP, u64::from(self.group));
        out.bytes(tag::KEY, self.key.as_bytes());
        out.number(tag::DEADLINE_MS, u64::from(millis(self.wait).max(1)));
        out.number(tag::ROLE, u64::from(role));
        out.fixed64s(tag::CHAIN, self.chain.as_slice());
        match self.op {
            Op::Peek | Op::ReadAsPreviousOwner => out.number(tag::NO_LOAD, 1),
            Op::Set(value) => out.bytes(tag::VALUE, value),
            Op::Remove { hold } => out.number(tag::HOLD_MS, u64::from(millis(*hold))),
            Op::ReadPage { cursor } => out.number(tag::CURSOR, *cursor),
            Op::ReadLogs(after) => out.bytes(tag::VALUE, &knowledge::write_log_request(after)),
            Op::Get | Op::Clear | Op::Unknown(_) => {}
        }
        out.number(tag::DEPTH, self.chain.depth() as u64);
        out.number(tag::NUMBER, self.number);
        self.known.iter().take(MAX_KNOWN).for_each(|name| out.part(tag::KNOWN, name));
        self.strikes.iter().for_each(|strikes| out.part(tag::STRIKES, *strikes));
    }
}

/// Reads a request, which is a part of `frame`, and skips unused fields.
pub(crate) fn read(frame: &Bytes, mut fields: Fields<'_>) -> Result<Request, Malformed> {
    let (mut op, mut role, mut deadline_ms, mut depth, mut hold_ms, mut cursor) = (0, 0, 0, 0, 0, 0);
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    let (mut hashes, mut hash_count) = ([0; MAX_HASHES], 0);
    let (mut id, mut group, mut no_load, mut number, mut known) = (0, 0, false, 0, Vec::new());
    let mut struck = None;
    while let Some(field) = fields.next()? {
        match field.tag {
            tag::ID => id = fields.number(field)?,
            tag::OP => op = fields.number32(field)?,
            tag::GROUP => group = fields.number32(field)?,
            tag::KEY => key = fields.bytes(field)?,
            tag::DEADLINE_MS => deadline_ms = fields.number32(field)?,
            tag::ROLE => role = fields.number32(field)?,
            tag::CHAIN => fields.fixed64s(field, |hash| {
                if let Some(place) = hashes.get_mut(hash_count) {
                    *place = hash;
                    hash_count += 1;
                }
            })?,
            tag::NO_LOAD => no_load = fields.flag(field)?,
            tag::VALUE => value = fields.bytes(field)?,
            tag::DEPTH => depth = fields.number32(field)?,
            tag::HOLD_MS => hold_ms = fields.number32(field)?,
            tag::CURSOR => cursor = fields.number(field)?,
            tag::NUMBER => number = fields.number(field)?,
            tag::KNOWN if known.len() == MAX_KNOWN => {
                return Err(Malformed::too_much(format!("a request names more than {MAX_KNOWN} writes")));
            }
            tag::KNOWN => {
                let name = knowledge::read_position(Fields(fields.bytes(field)?))?;
                known.extend(name.map(|name| WriteName { writer: name.writer, number: name.number }));
            }
            tag::STRIKES => struck = Some(strikes::read(Fields(fields.bytes(field)?))?),
            _ => fields.pass_over(field)?,
        }
    }
    let op = match op {
        0 if no_load && role == ROLE_PREVIOUS_OWNER => Op::ReadAsPreviousOwner,
        0 => Op::Get,
        1 => Op::Set(frame.slice_ref(value)),
        2 => Op::Remove { hold: Duration::from_millis(u64::from(hold_ms)) },
        3 => Op::Clear,
        4 => Op::ReadPage { cursor },
        // An error in one request is the response to that request, and does not end the stream.
        5 => knowledge::read_log_request(value).map_or(Op::Unknown(5), Op::ReadLogs),
        other => Op::Unknown(other),
    };
    Ok(Request {
        id,
        op,
        group,
        key: frame.slice_ref(key),
        wait: wait(deadline_ms),
        chain: if hash_count == 0 && depth == 0 {
            LoadChain::EMPTY
        } else {
            LoadChain::of(depth, hashes.into_iter().take(hash_count))
        },
        no_load,
        number,
        known,
        strikes: struck,
    })
}

fn wait(deadline_ms: u32) -> Option<Duration> {
    (deadline_ms > 0).then(|| Duration::from_millis(u64::from(deadline_ms)))
}

/// Converts a get of the unary service into its cluster, group and format, and a request.
pub(crate) fn unary(get: GetRequest) -> (String, Arc<str>, u32, Request) {
    let request = Request {
        id: 0,
        op: Op::Get,
        group: 0,
        key: get.key,
        wait: wait(get.deadline_ms),
        chain: LoadChain::EMPTY,
        no_load: get.no_load,
        number: 0,
        known: Vec::new(),
        strikes: None,
    };
    (get.cluster, get.group.into(), get.format, request)
}
