//! Dispatch of a request: the response, if it is known without waiting, or else the beginning of a load or a set.

use std::sync::Arc;

use crate::{
    identity::PeerId,
    limits::RETRY_AFTER,
    peer::{
        group_service::{GroupService, LoadRequest, Registry, ResponseFuture},
        server::service::Service,
    },
    protocol::message::{self, Decline, Op, Request, Response},
    runtime::small_bytes,
};

/// Group that a request names, as the local registry knows it.
#[derive(Clone)]
pub(crate) enum ResolvedGroup {
    Group(Arc<dyn GroupService>),
    /// Group of this name with another format of values.
    OtherFormat(Arc<dyn GroupService>),
    Unknown,
}

/// Returns the group with a name, if its format is the given one.
pub(crate) fn resolve(registry: &Registry, name: &str, format: u32) -> ResolvedGroup {
    match registry.get(name) {
        None => ResolvedGroup::Unknown,
        Some(group) if group.format() != format => ResolvedGroup::OtherFormat(group),
        Some(group) => ResolvedGroup::Group(group),
    }
}

/// Outcome of dispatching a request.
pub(crate) enum Dispatch {
    Response(Response),
    /// Response to wait for. A get comes with its [`Retry`], which finds the loaded value in memory afterwards.
    Wait(ResponseFuture, Option<Retry>),
}

/// Get that can be answered from memory later.
pub(crate) struct Retry {
    group: Arc<dyn GroupService>,
    key: Box<str>,
}

impl Retry {
    /// Returns the response to the get from memory; `overloaded` if memory does not hold the value any more.
    pub(crate) fn lookup(self) -> Response {
        self.group.cached_response(&self.key).unwrap_or(Response::Overloaded { retry_after: RETRY_AFTER })
    }
}

/// Answers a request from memory, carries out a remove or a clear, or begins a load, a set or a page.
///
/// `asker` is the peer on whose connection the request arrived; `None` for a unary get. `may_wait` is called only for a
/// request that has to wait, and takes the slot for it. Without a slot the request is answered `overloaded`.
pub(crate) fn dispatch(
    service: &Service,
    resolved: &ResolvedGroup,
    request: Request,
    asker: Option<&PeerId>,
    may_wait: impl FnOnce() -> bool,
) -> Dispatch {
    let declined = |why| Dispatch::Response(Response::Declined(why));
    if let (Op::Clear, ResolvedGroup::Group(group) | ResolvedGroup::OtherFormat(group)) = (&request.op, resolved) {
        group.clear();
        return Dispatch::Response(Response::Done);
    }
    if let Op::ReadPage { cursor } = request.op {
        return match (asker, resolved) {
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
    match (request.op, resolved) {
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
            let retry = Retry { group: Arc::clone(group), key: key.into() };
            Dispatch::Wait(Arc::clone(group).load(LoadRequest { key, wait, chain: request.chain }), Some(retry))
        }
        // A clear of a known group is answered above, so this arm is for an unknown group.
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
            // A slot is needed, because decoding may take long and the value stays in memory meanwhile.
            if !may_wait() {
                group.invalidate(key);
                return Dispatch::Response(Response::Overloaded { retry_after: RETRY_AFTER });
            }
            // Copied, because a slice would keep the whole frame in memory as long as the value.
            Dispatch::Wait(Arc::clone(group).set(key, small_bytes::copy(&value)), None)
        }
    }
}
