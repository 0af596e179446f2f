//! Strikes: reading and writing the processes that ended while they loaded a key.

use crate::protocol::wire::{
    field::{Fields, Malformed, Part, Sink},
    knowledge::read_instance,
};
use crate::{
    identity::Instance,
    protocol::message::{self, Strike, Strikes, Suspect},
};

/// Maximum number of strikes that are read of one key; more than a node keeps.
const MAX_STRIKES: usize = 16;

/// Maximum bytes of the name of a group, which no name of a group exceeds.
const MAX_GROUP_BYTES: usize = 255;

/// Numbers of the fields of a suspect.
mod suspect_tag {
    pub(crate) const GROUP: u32 = 1;
    pub(crate) const KEY: u32 = 2;
    pub(crate) const STRIKES: u32 = 3;
}

/// Numbers of the fields of strikes, and of one strike.
mod tag {
    pub(crate) const EPOCH: u32 = 1;
    pub(crate) const STRIKES: u32 = 2;
    pub(crate) const TRIAL_AGE_MS: u32 = 3;
    pub(crate) const CHANGED_AGE_MS: u32 = 4;
    pub(crate) const PROCESS: u32 = 1;
    pub(crate) const AGE_MS: u32 = 2;
    pub(crate) const COUNT: u32 = 3;
}

/// Returns the approximate size of a strike in bytes.
pub(crate) fn strike_bytes(strike: &Strike) -> usize {
    32 + strike.process.id.as_str().len()
}

/// Returns the approximate size of a suspect in bytes.
pub(crate) fn suspect_bytes(suspect: &Suspect) -> usize {
    40 + suspect.group.len() + suspect.key.len() + suspect.strikes.strikes.iter().map(strike_bytes).sum::<usize>()
}

impl Part for Suspect {
    fn write(&self, out: &mut impl Sink) {
        out.bytes(suspect_tag::GROUP, self.group.as_bytes());
        out.bytes(suspect_tag::KEY, self.key.as_bytes());
        out.part(suspect_tag::STRIKES, &self.strikes);
    }
}

impl Part for Strikes {
    fn write(&self, out: &mut impl Sink) {
        out.number(tag::EPOCH, u64::from(self.epoch));
        self.strikes.iter().for_each(|strike| out.part(tag::STRIKES, strike));
        if let Some(age_ms) = self.trial_age_ms {
            out.present(tag::TRIAL_AGE_MS, age_ms);
        }
        out.number(tag::CHANGED_AGE_MS, self.changed_age_ms);
    }
}

impl Part for Strike {
    fn write(&self, out: &mut impl Sink) {
        out.part(tag::PROCESS, &self.process);
        out.number(tag::AGE_MS, self.age_ms);
        out.number(tag::COUNT, u64::from(self.count));
    }
}

/// Reads a suspect. Returns `None` for a bad key.
pub(crate) fn read_suspect(mut fields: Fields<'_>) -> Result<Option<Suspect>, Malformed> {
    let (mut group, mut key, mut strikes): (&[u8], &[u8], _) = (&[], &[], Strikes::default());
    while let Some(field) = fields.next()? {
        match field.tag {
            suspect_tag::GROUP => group = fields.bytes(field)?,
            suspect_tag::KEY => key = fields.bytes(field)?,
            suspect_tag::STRIKES => strikes = read(Fields(fields.bytes(field)?))?,
            _ => fields.pass_over(field)?,
        }
    }
    let group = std::str::from_utf8(group).ok().filter(|group| group.len() <= MAX_GROUP_BYTES);
    let (Some(group), Ok(key)) = (group, message::key(key)) else { return Ok(None) };
    Ok(Some(Suspect { group: group.into(), key: key.into(), strikes }))
}

/// Reads the strikes of a key. Strikes beyond the maximum, or with a bad id, are left out.
pub(crate) fn read(mut fields: Fields<'_>) -> Result<Strikes, Malformed> {
    let mut strikes = Strikes::default();
    while let Some(field) = fields.next()? {
        match field.tag {
            tag::EPOCH => strikes.epoch = fields.number32(field)?,
            tag::STRIKES => {
                let strike = read_strike(Fields(fields.bytes(field)?))?;
                strikes.strikes.extend(strike.filter(|_| strikes.strikes.len() < MAX_STRIKES));
            }
            tag::TRIAL_AGE_MS => strikes.trial_age_ms = Some(fields.number(field)?),
            tag::CHANGED_AGE_MS => strikes.changed_age_ms = fields.number(field)?,
            _ => fields.pass_over(field)?,
        }
    }
    Ok(strikes)
}

fn read_strike(mut fields: Fields<'_>) -> Result<Option<Strike>, Malformed> {
    let (mut process, mut age_ms, mut count): (Option<Instance>, _, _) = (None, 0, 0);
    while let Some(field) = fields.next()? {
        match field.tag {
            tag::PROCESS => process = read_instance(Fields(fields.bytes(field)?))?,
            tag::AGE_MS => age_ms = fields.number(field)?,
            tag::COUNT => count = fields.number32(field)?,
            _ => fields.pass_over(field)?,
        }
    }
    Ok(process.map(|process| Strike { process, age_ms, count }))
}
