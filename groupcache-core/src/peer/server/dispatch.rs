//! What a request is answered without waiting: from memory, or by what it is.

use std::sync::Arc;

use crate::{
    identity::PeerId,
    limits::RETRY_AFTER,
    peer::{
        group_service::{GroupService, LoadRequest, Registry, ResponseFuture},
        server::connection::Service,
    },
    protocol::message::{self, Answer, Decline, Op, Request},
    runtime::small_bytes,
};

/// What a request names.
#[derive(Clone)]
pub(crate) enum Named {
    Group(Arc<dyn GroupService>),
    /// A group of this name, whose values have another format.
    OtherFormat(Arc<dyn GroupService>),
    Unknown,
}

pub(crate) fn resolve(registry: &Registry, name: &str, format: u32) -> Named {
    match registry.get(name) {
        None => Named::Unknown,
        Some(group) if group.format() != format => Named::OtherFormat(group),
        Some(group) => Named::Group(group),
    }
}

/// The outcome of looking at a request without waiting.
pub(crate) enum Looked {
    Answer(Answer),
    /// What was asked for, too, if it is in memory once it is loaded.
    Wait(ResponseFuture, Option<Again>),
}

/// A get that can be answered from memory later.
pub(crate) struct Again {
    group: Arc<dyn GroupService>,
    key: Box<str>,
}

impl Again {
    pub(crate) fn look(self) -> Answer {
        self.group.cached_response(&self.key).unwrap_or(Answer::Overloaded { retry_after: RETRY_AFTER })
    }
}

/// Memory, a remove, or, if the asker may have one more (it is asked for only then), the beginning of a load or of a set.
pub(crate) fn first_look(
    service: &Service,
    named: &Named,
    request: Request,
    asker: Option<&PeerId>,
    may_wait: impl FnOnce() -> bool,
) -> Looked {
    let declined = |why| Looked::Answer(Answer::Declined(why));
    if let (Op::Clear, Named::Group(group) | Named::OtherFormat(group)) = (&request.op, named) {
        group.clear();
        return Looked::Answer(Answer::Done);
    }
    if let Op::ReadPage { cursor } = request.op {
        return match (asker, named) {
            (None, _) => Looked::Answer(Answer::Unsupported),
            (_, Named::Unknown) => declined(Decline::UnknownGroup),
            (_, Named::OtherFormat(_)) => declined(Decline::OtherFormat),
            (Some(_), _) if !may_wait() => Looked::Answer(Answer::Overloaded { retry_after: RETRY_AFTER }),
            (Some(asker), Named::Group(group)) => Looked::Wait(Arc::clone(group).page(asker.clone(), cursor), None),
        };
    }
    let key = match message::key(&request.key) {
        Ok(key) => key,
        Err(bad) => return Looked::Answer(Answer::BadRequest(bad.text().to_owned())),
    };
    match (request.op, named) {
        (Op::Unknown(_) | Op::ReadPage { .. }, _) => Looked::Answer(Answer::Unsupported),
        (_, Named::Unknown) => declined(Decline::UnknownGroup),
        (Op::Get | Op::Peek | Op::ReadAsPreviousOwner, Named::OtherFormat(_)) => declined(Decline::OtherFormat),
        (Op::ReadAsPreviousOwner, Named::Group(group)) => Looked::Answer(group.read_as_previous_owner(key)),
        (Op::Get | Op::Peek, Named::Group(group)) => {
            if let Some(answer) = Arc::clone(group).cached_response(key) {
                return Looked::Answer(answer);
            }
            if request.no_load {
                return declined(Decline::NotCached);
            }
            if !may_wait() {
                return Looked::Answer(Answer::Overloaded { retry_after: RETRY_AFTER });
            }
            let limit = group.longest_wait();
            let wait = request.wait.map_or(limit, |wait| wait.min(limit));
            let again = Again { group: Arc::clone(group), key: key.into() };
            Looked::Wait(Arc::clone(group).load(LoadRequest { key, wait, chain: request.chain }), Some(again))
        }
        // Answered above; here for a group that is not known.
        (Op::Clear, _) => declined(Decline::UnknownGroup),
        (Op::Remove { hold }, Named::Group(group) | Named::OtherFormat(group)) => {
            group.invalidate_and_hold(key, hold);
            Looked::Answer(Answer::Done)
        }
        (Op::Set(_), Named::OtherFormat(group)) => {
            group.invalidate(key);
            declined(Decline::OtherFormat)
        }
        (Op::Set(value), Named::Group(group)) => {
            if value.len() > service.local.limits.max_value_bytes {
                group.invalidate(key);
                return Looked::Answer(Answer::TooLarge);
            }
            // Decoding takes as long as it takes, and the value is held meanwhile.
            if !may_wait() {
                group.invalidate(key);
                return Looked::Answer(Answer::Overloaded { retry_after: RETRY_AFTER });
            }
            // A copy: a slice would hold the whole frame alive for as long as the value is kept.
            Looked::Wait(Arc::clone(group).set(key, small_bytes::copied(&value)), None)
        }
    }
}
