//! What a request is answered without waiting: from memory, or by what it is.

use std::sync::Arc;

use crate::{
    identity::PeerId,
    limits::RETRY_AFTER,
    peer::{
        group_service::{GroupService, LoadRequest, Registry, ResponseFuture},
        server::connection::Service,
    },
    protocol::message::{self, Decline, Op, Request, Response},
    runtime::small_bytes,
};

/// What a request names.
#[derive(Clone)]
pub(crate) enum ResolvedGroup {
    Group(Arc<dyn GroupService>),
    /// A group of this name, whose values have another format.
    OtherFormat(Arc<dyn GroupService>),
    Unknown,
}

pub(crate) fn resolve(registry: &Registry, name: &str, format: u32) -> ResolvedGroup {
    match registry.get(name) {
        None => ResolvedGroup::Unknown,
        Some(group) if group.format() != format => ResolvedGroup::OtherFormat(group),
        Some(group) => ResolvedGroup::Group(group),
    }
}

/// The outcome of looking at a request without waiting.
pub(crate) enum Dispatch {
    Response(Response),
    /// What was asked for, too, if it is in memory once it is loaded.
    Wait(ResponseFuture, Option<Retry>),
}

/// A get that can be answered from memory later.
pub(crate) struct Retry {
    group: Arc<dyn GroupService>,
    key: Box<str>,
}

impl Retry {
    pub(crate) fn look(self) -> Response {
        self.group.cached_response(&self.key).unwrap_or(Response::Overloaded { retry_after: RETRY_AFTER })
    }
}

/// Memory, a remove, or, if the asker may have one more (it is asked for only then), the beginning of a load or of a set.
pub(crate) fn dispatch(
    service: &Service,
    named: &ResolvedGroup,
    request: Request,
    asker: Option<&PeerId>,
    may_wait: impl FnOnce() -> bool,
) -> Dispatch {
    let declined = |why| Dispatch::Response(Response::Declined(why));
    if let (Op::Clear, ResolvedGroup::Group(group) | ResolvedGroup::OtherFormat(group)) = (&request.op, named) {
        group.clear();
        return Dispatch::Response(Response::Done);
    }
    if let Op::ReadPage { cursor } = request.op {
        return match (asker, named) {
            (None, _) => Dispatch::Response(Response::Unsupported),
            (_, ResolvedGroup::Unknown) => declined(Decline::UnknownGroup),
            (_, ResolvedGroup::OtherFormat(_)) => declined(Decline::OtherFormat),
            (Some(_), _) if !may_wait() => Dispatch::Response(Response::Overloaded { retry_after: RETRY_AFTER }),
            (Some(asker), ResolvedGroup::Group(group)) => {
                Dispatch::Wait(Arc::clone(group).page(asker.clone(), cursor), None)
            }
        };
    }
    let key = match message::key(&request.key) {
        Ok(key) => key,
        Err(bad) => return Dispatch::Response(Response::BadRequest(bad.text().to_owned())),
    };
    match (request.op, named) {
        (Op::Unknown(_) | Op::ReadPage { .. }, _) => Dispatch::Response(Response::Unsupported),
        (_, ResolvedGroup::Unknown) => declined(Decline::UnknownGroup),
        (Op::Get | Op::Peek | Op::ReadAsPreviousOwner, ResolvedGroup::OtherFormat(_)) => declined(Decline::OtherFormat),
        (Op::ReadAsPreviousOwner, ResolvedGroup::Group(group)) => Dispatch::Response(group.read_as_previous_owner(key)),
        (Op::Get | Op::Peek, ResolvedGroup::Group(group)) => {
            if let Some(answer) = Arc::clone(group).cached_response(key) {
                return Dispatch::Response(answer);
            }
            if request.no_load {
                return declined(Decline::NotCached);
            }
            if !may_wait() {
                return Dispatch::Response(Response::Overloaded { retry_after: RETRY_AFTER });
            }
            let limit = group.longest_wait();
            let wait = request.wait.map_or(limit, |wait| wait.min(limit));
            let again = Retry { group: Arc::clone(group), key: key.into() };
            Dispatch::Wait(Arc::clone(group).load(LoadRequest { key, wait, chain: request.chain }), Some(again))
        }
        // Answered above; here for a group that is not known.
        (Op::Clear, _) => declined(Decline::UnknownGroup),
        (Op::Remove { hold }, ResolvedGroup::Group(group) | ResolvedGroup::OtherFormat(group)) => {
            group.invalidate_and_hold(key, hold);
            Dispatch::Response(Response::Done)
        }
        (Op::Set(_), ResolvedGroup::OtherFormat(group)) => {
            group.invalidate(key);
            declined(Decline::OtherFormat)
        }
        (Op::Set(value), ResolvedGroup::Group(group)) => {
            if value.len() > service.local.limits.max_value_bytes {
                group.invalidate(key);
                return Dispatch::Response(Response::TooLarge);
            }
            // Decoding takes as long as it takes, and the value is held meanwhile.
            if !may_wait() {
                group.invalidate(key);
                return Dispatch::Response(Response::Overloaded { retry_after: RETRY_AFTER });
            }
            // A copy: a slice would hold the whole frame alive for as long as the value is kept.
            Dispatch::Wait(Arc::clone(group).set(key, small_bytes::copy(&value)), None)
        }
    }
}
