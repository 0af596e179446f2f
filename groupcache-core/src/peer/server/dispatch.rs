//! Dispatch of a request: the response, if it is known without waiting, or else the beginning of a load or a set.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    identity::Instance,
    limits::RETRY_AFTER,
    peer::{
        group_service::{GroupService, LoadRequest, Notice, Registry, ResponseFuture, ValueRoom},
        server::{
            response_queue::ResponseQueue,
            service::{LogReaders, LogRequest, Service},
        },
    },
    protocol::message::{self, Decline, Op, Request, Response, WriteName},
    runtime::{byte_budget::ByteBudget, small_bytes},
    write::log::Entry,
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

/// Peer on whose connection a request arrived.
pub(crate) struct Asker<'a> {
    pub(crate) peer: &'a Instance,
    /// Name of the request's group, as the Hello of the peer lists it.
    pub(crate) group: Option<&'a Arc<str>>,
    /// Queue of the responses to the peer.
    pub(crate) queue: &'a Arc<ResponseQueue>,
    /// Bytes of the values in sets of the peer that wait to be decoded.
    pub(crate) values: &'a Arc<ByteBudget>,
    /// Whether the peer understands notices of loads.
    pub(crate) is_witness: bool,
}

impl Asker<'_> {
    /// Returns the notice of a load for a request of the peer.
    fn notice(&self, id: u64) -> Notice {
        let queue = Arc::clone(self.queue);
        Box::new(move |notice| queue.push(std::iter::once((id, notice))))
    }

    /// Announces the write of a request in the log of the peer. Returns `None` if the write is applied already.
    fn begin(&self, service: &Service, number: u64, key: Option<&str>) -> Option<Begun> {
        let now_ms = service.local.clock.read_ms();
        let Some(group) = self.group.filter(|_| number > 0) else { return Some(Begun(None)) };
        let entry = Entry { number, group: Arc::clone(group), key: key.map(Into::into), written_ms: now_ms };
        service.local.writes.begin(self.peer, entry, now_ms).map(|entry| Begun(Some(entry)))
    }

    /// Records a write that was applied.
    fn commit(&self, service: &Service, begun: Begun) {
        if let Some(entry) = begun.0 {
            service.local.writes.commit(self.peer, entry, service.local.clock.read_ms());
        }
    }
}

/// Write that is announced; `None` for a write that is in no log.
struct Begun(Option<Entry>);

/// Applies a remove or a clear, and records it in the log of the peer. `was_known` says whether this node had the group
/// when it read the Hello of the peer, so that `drop` drops its values.
fn apply(
    service: &Service,
    asker: Option<&Asker<'_>>,
    request: &Request,
    key: Option<&str>,
    was_known: bool,
    drop: impl FnOnce(),
) {
    match asker {
        Some(asker) => {
            if let Some(begun) = asker.begin(service, request.number, key) {
                drop();
                // The group may have been built after the Hello of the peer was read.
                if let Some(group) = asker.group.and_then(|name| service.registry.get(name)) {
                    match key {
                        Some(key) if !was_known => group.invalidate(key),
                        None if !was_known => group.clear(),
                        _ => {}
                    }
                }
                asker.commit(service, begun);
            }
        }
        None => drop(),
    }
}

/// Returns the entries of logs after the given ones, for a peer.
async fn read_logs(logs: LogReaders, after: Vec<WriteName>) -> Response {
    let (answer, parts) = oneshot::channel();
    let _ = logs.send(LogRequest { after, answer }).await; // fails only when the node has ended
    parts.await.map_or(Response::Declined(Decline::Closing), Response::Logs)
}

/// Answers a request from memory, carries out a remove or a clear, or begins a load, a set or a page.
///
/// `asker` is `None` for a unary get. `may_wait` is called only for a
/// request that has to wait, and takes the slot for it. Without a slot the request is answered `overloaded`.
pub(crate) fn dispatch(
    service: &Service,
    resolved: &ResolvedGroup,
    request: Request,
    asker: Option<&Asker<'_>>,
    may_wait: impl FnOnce() -> bool,
) -> Dispatch {
    let declined = |why| Dispatch::Response(Response::Declined(why));
    if let Op::ReadLogs(after) = &request.op {
        return match asker {
            Some(_) if may_wait() => Dispatch::Wait(Box::pin(read_logs(service.logs.clone(), after.clone())), None),
            Some(_) => Dispatch::Response(Response::Overloaded { retry_after: RETRY_AFTER }),
            None => Dispatch::Response(Response::Unsupported),
        };
    }
    let is_logged = request.number > 0;
    if request.op == Op::Clear {
        return match resolved {
            ResolvedGroup::Group(group) | ResolvedGroup::OtherFormat(group) => {
                apply(service, asker, &request, None, true, || group.clear());
                Dispatch::Response(Response::Done)
            }
            ResolvedGroup::Unknown if is_logged => {
                apply(service, asker, &request, None, false, || ());
                Dispatch::Response(Response::Done)
            }
            ResolvedGroup::Unknown => declined(Decline::UnknownGroup),
        };
    }
    if let Op::ReadPage { cursor } = request.op {
        return match (asker, resolved) {
            (None, _) => Dispatch::Response(Response::Unsupported),
            (_, ResolvedGroup::Unknown) => declined(Decline::UnknownGroup),
            (_, ResolvedGroup::OtherFormat(_)) => declined(Decline::OtherFormat),
            (Some(_), _) if !may_wait() => Dispatch::Response(Response::Overloaded { retry_after: RETRY_AFTER }),
            (Some(asker), ResolvedGroup::Group(group)) => {
                Dispatch::Wait(Arc::clone(group).page(asker.peer.id.clone(), cursor), None)
            }
        };
    }
    let key = match message::key(&request.key) {
        Ok(key) => key,
        Err(bad) => return Dispatch::Response(Response::BadRequest(bad.text().to_owned())),
    };
    if let (Some(name), ResolvedGroup::Group(group)) = (asker.and_then(|asker| asker.group), resolved)
        && service.local.writes.remember(name, key, &request.known, service.local.clock.read_ms())
    {
        group.invalidate(key); // the value may lack a write that the peer has heard of
        service.local.writes.dropped(name, key, &request.known);
    }
    match (&request.op, resolved) {
        (Op::Unknown(_) | Op::ReadPage { .. } | Op::ReadLogs(_), _) => Dispatch::Response(Response::Unsupported),
        (Op::Remove { .. } | Op::Set(_), ResolvedGroup::Unknown) if is_logged => {
            apply(service, asker, &request, Some(key), false, || ());
            match request.op {
                Op::Set(_) => declined(Decline::UnknownGroup),
                _ => Dispatch::Response(Response::Done),
            }
        }
        (_, ResolvedGroup::Unknown) => declined(Decline::UnknownGroup),
        (Op::Get | Op::Peek | Op::ReadAsPreviousOwner, ResolvedGroup::OtherFormat(_)) => declined(Decline::OtherFormat),
        (Op::ReadAsPreviousOwner, ResolvedGroup::Group(group)) => Dispatch::Response(group.read_as_previous_owner(key)),
        (Op::Get | Op::Peek, ResolvedGroup::Group(group)) => {
            if request.no_load {
                return group.peeked_response(key).map_or_else(|| declined(Decline::NotCached), Dispatch::Response);
            }
            if let Some(answer) = Arc::clone(group).cached_response(key) {
                return Dispatch::Response(answer);
            }
            if !may_wait() {
                return Dispatch::Response(Response::Overloaded { retry_after: RETRY_AFTER });
            }
            let limit = group.longest_wait();
            let wait = request.wait.map_or(limit, |wait| wait.min(limit));
            let retry = Retry { group: Arc::clone(group), key: key.into() };
            let (chain, strikes) = (request.chain.clone(), request.strikes.clone());
            let is_noticed = strikes.is_some() || service.local.quarantine.has_records();
            let witness = asker.filter(|asker| is_noticed && asker.is_witness);
            let notice = witness.map(|asker| asker.notice(request.id));
            let load = LoadRequest { key, wait, chain, strikes, notice };
            Dispatch::Wait(Arc::clone(group).load(load), Some(retry))
        }
        (Op::Clear, _) => declined(Decline::UnknownGroup), // answered above
        (Op::Remove { hold }, ResolvedGroup::Group(group) | ResolvedGroup::OtherFormat(group)) => {
            apply(service, asker, &request, Some(key), true, || group.invalidate_and_hold(key, *hold));
            Dispatch::Response(Response::Done)
        }
        (Op::Set(_), ResolvedGroup::OtherFormat(group)) => {
            apply(service, asker, &request, Some(key), true, || group.invalidate(key));
            declined(Decline::OtherFormat)
        }
        (Op::Set(value), ResolvedGroup::Group(group)) => match room(service, asker, value, may_wait) {
            Ok(room) => set(service, asker, &request, group, key, Received { value, room }),
            Err(refusal) => {
                apply(service, asker, &request, Some(key), true, || group.invalidate(key));
                Dispatch::Response(refusal)
            }
        },
    }
}

/// Value of a set with its bytes in the budgets.
struct Received<'a> {
    value: &'a Bytes,
    room: Option<ValueRoom>,
}

/// Takes a slot and the bytes of a value, because decoding may take long and the value stays in memory meanwhile. Returns
/// the refusal if there is no room.
fn room(
    service: &Service,
    asker: Option<&Asker<'_>>,
    value: &Bytes,
    may_wait: impl FnOnce() -> bool,
) -> Result<Option<ValueRoom>, Response> {
    if value.len() > service.local.limits.max_value_bytes {
        return Err(Response::TooLarge);
    }
    let overloaded = Response::Overloaded { retry_after: RETRY_AFTER };
    if !may_wait() {
        return Err(overloaded);
    }
    let Some(asker) = asker else { return Ok(None) }; // a unary request is no set
    asker.values.take_share(&service.values, value.len()).map(Some).ok_or_else(|| {
        service.local.counters.sets_without_room.up();
        overloaded
    })
}

/// Begins to store a value, unless the write is applied already: a later write may have followed.
fn set(
    service: &Service,
    asker: Option<&Asker<'_>>,
    request: &Request,
    group: &Arc<dyn GroupService>,
    key: &str,
    Received { value, room }: Received<'_>,
) -> Dispatch {
    let writer = asker.map(|asker| asker.peer).filter(|_| request.number > 0);
    let known = writer.map(|writer| (writer, &*request.known));
    // Copied, because a slice would keep the whole frame in memory as long as the value.
    let store = || Arc::clone(group).set(key, small_bytes::copy(value), room, known);
    let Some(asker) = asker else { return Dispatch::Wait(store(), None) };
    let Some(begun) = asker.begin(service, request.number, Some(key)) else {
        return Dispatch::Response(Response::Done);
    };
    let stored = store(); // drops the present value at once
    asker.commit(service, begun);
    Dispatch::Wait(stored, None)
}

#[cfg(test)]
#[cfg(not(any(shuttle, simulation)))]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::{
        Node, Value,
        limits::VALUES_TO_DECODE_PER_PEER,
        peer::server::Server,
        protocol::chain::LoadChain,
        testing::unit::hello,
        value::{DecodeError, EncodeError},
    };

    /// Value that is decoded in a task.
    #[derive(Clone)]
    struct Decoded;

    impl Value for Decoded {
        fn encode(&self, _: &mut BytesMut) -> Result<(), EncodeError> {
            Ok(())
        }

        fn decode(_: Bytes) -> Result<Self, DecodeError> {
            Ok(Self)
        }

        fn weight(&self) -> usize {
            1
        }
    }

    fn set(id: u64, value: &Bytes) -> Request {
        Request {
            id,
            op: Op::Set(value.clone()),
            group: 1,
            key: format!("key-{id}").into(),
            wait: None,
            chain: LoadChain::EMPTY,
            no_load: false,
            number: 0,
            known: Vec::new(),
            strikes: None,
        }
    }

    /// Checks that values of sets which wait to be decoded are bounded for one peer and for all, that further sets are
    /// refused and counted, and that the end of the waits gives the room back.
    #[tokio::test]
    async fn values_that_wait_to_be_decoded_are_bounded() {
        let node = Node::builder().start().await.unwrap();
        let load = async |_: &str| Ok::<_, std::io::Error>(Decoded);
        let _group = node.group::<Decoded>("data").capacity_bytes(1 << 20).loader(load).build().unwrap();
        let server: &Server = node.server();
        let service = &server.0.service;
        let resolved = resolve(&service.registry, "data", 0);
        let value = Bytes::from(vec![0; 1 << 20]);
        let (mut waiting, mut taken) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            let values = ByteBudget::new(VALUES_TO_DECODE_PER_PEER);
            let queue = Arc::new(ResponseQueue::new(Arc::clone(&service.local), &hello("b")));
            let peer = hello("b").instance();
            let asker = Asker { peer: &peer, group: None, queue: &queue, values: &values, is_witness: false };
            let before = waiting.len();
            for id in 0..40 {
                match dispatch(service, &resolved, set(id, &value), Some(&asker), || true) {
                    Dispatch::Wait(response, _) => waiting.push(response),
                    Dispatch::Response(refusal) => {
                        assert_eq!(refusal, Response::Overloaded { retry_after: RETRY_AFTER });
                    }
                }
            }
            taken.push(waiting.len() - before);
        }
        assert_eq!(taken, [32, 32, 32, 16, 8, 4, 2, 1, 1, 0], "MiB of each peer");
        assert_eq!(service.local.counters.sets_without_room.get(), 400 - 128);
        for response in waiting.drain(..100) {
            assert_eq!(response.await, Response::Done);
        }
        assert_eq!(service.values.used(), 28 << 20);
        drop(waiting);
        assert_eq!(service.values.used(), 0, "an abandoned set gives its room back");
    }
}
