//! Knowledge of writes: reading and writing companies, positions, names of writes and parts of logs.

use bytes::Bytes;
use prost::Message;

use crate::protocol::wire::{
    MAX_PARTS,
    field::{Fields, Malformed, Part, Sink},
    proto,
};
use crate::{
    identity::{Incarnation, Instance, PeerId},
    protocol::message::{Company, Knowledge, LogEntry, LogPart, Position, Relayed, WriteName, key},
};

/// Numbers of the fields of an instance, of a name and of a position.
mod tag {
    pub(crate) const ID: u32 = 1;
    pub(crate) const INCARNATION: u32 = 2;
    pub(crate) const WRITER: u32 = 1;
    pub(crate) const NUMBER: u32 = 2;
    pub(crate) const BASE: u32 = 3;
}

impl Part for Instance {
    fn write(&self, out: &mut impl Sink) {
        out.bytes(tag::ID, self.id.as_str().as_bytes());
        out.fixed64(tag::INCARNATION, self.incarnation.0);
    }
}

impl Part for WriteName {
    fn write(&self, out: &mut impl Sink) {
        out.part(tag::WRITER, &self.writer);
        out.number(tag::NUMBER, self.number);
    }
}

impl Part for Position {
    fn write(&self, out: &mut impl Sink) {
        out.part(tag::WRITER, &self.writer);
        out.number(tag::NUMBER, self.number);
        out.number(tag::BASE, self.base);
    }
}

/// Reads a position, or a name of a write, which is a position without a base. Returns `None` for a bad id.
pub(crate) fn read_position(mut fields: Fields<'_>) -> Result<Option<Position>, Malformed> {
    let (mut writer, mut number, mut base): (&[u8], _, _) = (&[], 0, 0);
    while let Some(field) = fields.next()? {
        match field.tag {
            tag::WRITER => writer = fields.bytes(field)?,
            tag::NUMBER => number = fields.number(field)?,
            tag::BASE => base = fields.number(field)?,
            _ => fields.pass_over(field)?,
        }
    }
    Ok(read_instance(Fields(writer))?.map(|writer| Position { writer, number, base }))
}

pub(crate) fn read_instance(mut fields: Fields<'_>) -> Result<Option<Instance>, Malformed> {
    let (mut id, mut incarnation): (&[u8], _) = (&[], 0);
    while let Some(field) = fields.next()? {
        match field.tag {
            tag::ID => id = fields.bytes(field)?,
            tag::INCARNATION => incarnation = fields.fixed64(field)?,
            _ => fields.pass_over(field)?,
        }
    }
    let id = std::str::from_utf8(id).ok().and_then(|id| PeerId::new(id).ok());
    Ok(id.map(|id| Instance { id, incarnation: Incarnation(incarnation) }))
}

fn instance(instance: &Instance) -> proto::Instance {
    proto::Instance { id: instance.id.to_string(), incarnation: instance.incarnation.0 }
}

fn company(company: &Company) -> proto::Company {
    proto::Company { version: company.version, members: company.members.iter().map(instance).collect() }
}

pub(crate) fn write(knowledge: &Knowledge) -> proto::Knowledge {
    let position = |p: &Position| proto::Position { writer: Some(instance(&p.writer)), number: p.number, base: p.base };
    let relayed = |relayed: &Relayed| proto::Relayed {
        node: Some(instance(&relayed.node)),
        number: relayed.number,
        company: Some(company(&relayed.company)),
    };
    proto::Knowledge {
        company: knowledge.company.as_ref().map(company),
        positions: knowledge.positions.iter().map(position).collect(),
        is_partial: knowledge.is_partial,
        asked: knowledge.asked.iter().map(ToString::to_string).collect(),
        relayed: knowledge.relayed.iter().map(relayed).collect(),
        lists_receiver: knowledge.lists_receiver,
    }
}

/// Returns an instance, unless its id is none.
fn of_instance(instance: Option<proto::Instance>) -> Option<Instance> {
    let proto::Instance { id, incarnation } = instance?;
    Some(Instance { id: PeerId::new(&id).ok()?, incarnation: Incarnation(incarnation) })
}

fn of_company(company: proto::Company) -> Company {
    let members = company.members.into_iter().filter_map(|member| of_instance(Some(member))).collect();
    Company { version: company.version, members }
}

/// Returns the knowledge of a message, without the parts with a bad id.
pub(crate) fn read(knowledge: proto::Knowledge) -> Knowledge {
    let position = |p: proto::Position| {
        Some(Position { writer: of_instance(p.writer)?, number: p.number, base: p.base.min(p.number) })
    };
    let relayed = |relayed: proto::Relayed| {
        let company = of_company(relayed.company?);
        Some(Relayed { node: of_instance(relayed.node)?, number: relayed.number, company })
    };
    Knowledge {
        company: knowledge.company.map(of_company),
        positions: knowledge.positions.into_iter().filter_map(position).collect(),
        is_partial: knowledge.is_partial,
        asked: knowledge.asked.iter().filter_map(|id| PeerId::new(id).ok()).collect(),
        relayed: knowledge.relayed.into_iter().filter_map(relayed).collect(),
        lists_receiver: knowledge.lists_receiver,
    }
}

/// Encodes a request for writes.
pub(crate) fn write_log_request(after: &[WriteName]) -> Vec<u8> {
    let name = |name: &WriteName| proto::WriteName { writer: Some(instance(&name.writer)), number: name.number };
    proto::LogRequest { after: after.iter().map(name).collect() }.encode_to_vec()
}

pub(crate) fn read_log_request(message: &[u8]) -> Result<Vec<WriteName>, Malformed> {
    let names = proto::LogRequest::decode(message)?.after.into_iter();
    let names = names.filter_map(|name| Some(WriteName { writer: of_instance(name.writer)?, number: name.number }));
    Ok(names.take(MAX_PARTS).collect())
}

/// Encodes parts of logs.
pub(crate) fn write_logs(logs: &[LogPart]) -> Vec<u8> {
    let entry = |entry: &LogEntry| proto::LogEntry {
        number: entry.number,
        group: entry.group.to_string(),
        key: entry.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes())),
        age_ms: entry.age_ms,
    };
    let part = |part: &LogPart| proto::LogPart {
        writer: Some(instance(&part.writer)),
        through: part.through,
        base: part.base,
        entries: part.entries.iter().map(entry).collect(),
    };
    proto::LogAnswer { logs: logs.iter().map(part).collect() }.encode_to_vec()
}

/// Reads parts of logs. An entry with a bad key is a write of all keys of its group, so that no write is lost.
pub(crate) fn read_logs(message: &[u8]) -> Result<Vec<LogPart>, Malformed> {
    let entry = |entry: proto::LogEntry| LogEntry {
        number: entry.number,
        group: entry.group.into(),
        key: entry.key.and_then(|bytes| key(&bytes).ok().map(Into::into)),
        age_ms: entry.age_ms,
    };
    let part = |part: proto::LogPart| {
        let entries = part.entries.into_iter().map(entry).collect();
        Some(LogPart { writer: of_instance(part.writer)?, through: part.through, base: part.base, entries })
    };
    Ok(proto::LogAnswer::decode(message)?.logs.into_iter().filter_map(part).collect())
}
