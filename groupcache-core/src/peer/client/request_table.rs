//! The request table of one peer: requests in flight, the send queue, and the watch over silence.
//!
//! The table is pure bookkeeping under one lock, driven by the client. An id holds a slot and its generation, so that a
//! late response to a slot which was given away is recognised.

use std::{collections::VecDeque, sync::Arc, task::Waker, time::Duration};

use crate::{
    identity::Instance,
    limits::BATCH_BYTES,
    peer::client::{
        breaker::{Breaker, End},
        in_flight::InFlight,
        receiver::Receiver,
        silence::SilenceWatch,
    },
    protocol::{
        chain::LoadChain,
        message::{Op, Response, Strikes, WriteName},
        wire::{Outgoing, RequestRef},
    },
    write::shared::SentKnowledge,
};

/// Number of frames that a burst of requests is split into, so that both sides work in parallel: the peer answers one
/// frame while this node sends the next.
const SHARES: usize = 4;

/// Smallest number of requests of such a frame; a smaller one costs more than it saves.
const SMALLEST_SHARE: usize = 16;

/// A request to a peer, until it is answered.
pub(crate) struct Call {
    pub(crate) op: Op,
    /// Index of the group in this node's Hello.
    pub(crate) group: u32,
    pub(crate) key: Arc<str>,
    /// Deadline in coarse time.
    pub(crate) deadline_ms: u64,
    /// Rank at which the peer is asked: 0 as the owner, n as the n-th successor.
    pub(crate) rank: usize,
    pub(crate) chain: LoadChain,
    /// Number of the write in this node's log; 0 = the request is no write, or the write is in no log.
    pub(crate) number: u64,
    /// Writes of the key that this node has heard of; see [`RequestRef::known`].
    pub(crate) known: Vec<WriteName>,
    /// Strikes against the key of a get.
    pub(crate) strikes: Option<Box<Strikes>>,
    pub(crate) reply: Receiver,
}

/// End of a call.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered(Response),
    /// The peer is unreachable; a successor may be asked.
    Unreachable,
    /// The peer is unreachable, and its process has ended while it had the request.
    Died {
        process: Instance,
        /// Whether a load of the key may have run. The load of a key with strikes runs only after a notice.
        has_run: bool,
    },
    /// The deadline passed while the peer was alive; no other peer is asked.
    Expired,
}

/// Reason why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// The breaker is open.
    Open,
    /// The maximum number of calls waits for this peer.
    Full,
}

/// Ended calls with their receivers, which are called outside of the lock.
pub(crate) type Ended = Vec<(Receiver, Outcome)>;

struct Slot {
    generation: u32,
    call: Option<InFlight>,
}

/// An item of the send queue.
enum Queued {
    Request(u64),
    Cancel(u64),
}

pub(crate) struct RequestTable {
    pub(crate) breaker: Breaker,
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
    max_in_flight: usize,
    queue: VecDeque<Queued>,
    /// Whether many calls were queued at once, which leave in one frame.
    is_whole: bool,
    /// Waker of the stream of frames while it has nothing to send.
    pub(crate) waker: Option<Waker>,
    /// Number of the current connection; streams of earlier ones end.
    connection: u64,
    /// Reason for which the reader is to end the current connection.
    verdict: Option<End>,
    /// Version of the Hello that was sent last on the current connection.
    pub(crate) hello_sent: u64,
    pub(crate) goodbye_due: bool,
    pub(crate) pong_due: u64,
    /// Knowledge of writes that this node has shown on the current connection.
    pub(crate) knowledge_sent: SentKnowledge,
    /// Number of the change of strikes up to which this node has shown them on the current connection.
    pub(crate) strikes_sent: u64,
    /// Process at the other end of the current connection, or of the last one.
    peer: Option<Instance>,
    watch: SilenceWatch,
}

/// Result of a sweep.
pub(crate) struct SweepResult {
    pub(crate) ended: Ended,
    /// Whether the peer may be silent, so that the reader should check.
    pub(crate) may_be_silent: bool,
}

impl RequestTable {
    pub(crate) fn new(max_in_flight: usize) -> Self {
        Self {
            breaker: Breaker::Connecting,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            max_in_flight,
            queue: VecDeque::new(),
            is_whole: false,
            waker: None,
            connection: 0,
            verdict: None,
            hello_sent: 0,
            goodbye_due: false,
            pong_due: 0,
            knowledge_sent: SentKnowledge::default(),
            strikes_sent: 0,
            peer: None,
            watch: SilenceWatch::default(),
        }
    }

    /// Begins a new connection. The stream of the connection before it ends once the returned waker wakes it.
    pub(crate) fn begin_connection(&mut self) -> (u64, Option<Waker>) {
        self.connection += 1;
        self.hello_sent = 0;
        self.knowledge_sent = SentKnowledge::default();
        self.strikes_sent = 0;
        self.verdict = None;
        (self.connection, self.waker.take())
    }

    /// Returns whether the stream of this connection is still in use.
    pub(crate) fn is_current(&self, connection: u64) -> bool {
        self.connection == connection && self.breaker != Breaker::Removed
    }

    /// Ends the current connection as soon as its reader checks.
    pub(crate) fn dismiss(&mut self) {
        self.verdict = Some(End::ClosedLocally);
    }

    /// Replaces the current connection by a new one, on which waiting requests are sent again.
    pub(crate) fn renew(&mut self) {
        self.verdict.get_or_insert(End::Renewed);
    }

    /// Returns why the reader, having read everything, must end the connection, if it must. The reader judges silence,
    /// because only a read that found nothing proves it.
    pub(crate) fn verdict(&mut self, now_ms: u64) -> Option<End> {
        self.dismissal().or_else(|| self.watch.is_silent(now_ms).then_some(End::Silent))
    }

    /// Returns why the current connection must end whatever arrives on it.
    pub(crate) fn dismissal(&self) -> Option<End> {
        if self.breaker == Breaker::Removed { Some(End::ClosedLocally) } else { self.verdict }
    }

    /// Queues a call for the next frame.
    pub(crate) fn push(&mut self, call: Call) -> Result<Option<Waker>, NotSent> {
        self.enqueue(call)?;
        Ok(self.waker.take())
    }

    /// Queues many calls, which leave together in the next frame. Returns how many were taken, from the first on, and
    /// why the rest was refused.
    pub(crate) fn push_all(&mut self, calls: impl Iterator<Item = Call>) -> (usize, Option<NotSent>, Option<Waker>) {
        let (mut taken, mut refused) = (0, None);
        for mut call in calls {
            if refused.is_some() {
                call.reply.discard();
                continue;
            }
            refused = self.enqueue(call).err();
            taken += usize::from(refused.is_none());
        }
        self.is_whole |= taken > 0;
        (taken, refused, self.waker.take())
    }

    fn enqueue(&mut self, mut call: Call) -> Result<(), NotSent> {
        let refused = match self.breaker.admits() {
            false => Some(NotSent::Open),
            true => (self.in_flight >= self.max_in_flight).then_some(NotSent::Full),
        };
        if let Some(refused) = refused {
            call.reply.discard(); // the caller deals with the refusal
            return Err(refused);
        }
        let id = self.allocate(InFlight::new(call));
        self.queue.push_back(Queued::Request(id));
        Ok(())
    }

    fn allocate(&mut self, in_flight: InFlight) -> u64 {
        self.in_flight += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, call: None });
            self.slots.len() as u32 - 1
        });
        match self.slots.get_mut(at as usize) {
            Some(slot) => {
                slot.generation = slot.generation.wrapping_add(1);
                slot.call = Some(in_flight);
                u64::from(slot.generation) << 32 | u64::from(at)
            }
            None => 0, // not reached: the slot was made or freed before
        }
    }

    /// Returns whether a frame would carry anything now.
    pub(crate) fn has_due(&self) -> bool {
        !self.queue.is_empty() || self.watch.is_due() || self.pong_due != 0 || self.goodbye_due
    }

    /// Fills a frame with what is due, up to `max_requests` and [`BATCH_BYTES`].
    pub(crate) fn fill(&mut self, frame: &mut Outgoing, max_requests: usize, now_ms: u64) {
        let share = (self.in_flight / SHARES).max(SMALLEST_SHARE);
        let max_requests = if self.is_whole { max_requests } else { max_requests.min(share) };
        let mut bytes = 0;
        frame.reserve_requests(self.queue.len().min(max_requests));
        // Cancels count as requests do, because a peer limits all parts of a frame together.
        while frame.requests() + frame.cancels() < max_requests && bytes < BATCH_BYTES {
            match self.queue.pop_front() {
                Some(Queued::Cancel(id)) => frame.cancel(id),
                Some(Queued::Request(id)) => {
                    if let Some(in_flight) = self.slot(id) {
                        in_flight.sent();
                        let call = &in_flight.call;
                        let wait = Duration::from_millis(call.deadline_ms.saturating_sub(now_ms));
                        let Call { op, group, key, rank, chain, number, known, strikes, .. } = call;
                        let (group, rank, number, strikes) = (*group, *rank, *number, strikes.as_deref());
                        let asked = RequestRef { id, op, group, key, wait, rank, chain, number, known, strikes };
                        bytes += asked.bytes();
                        frame.request(&asked);
                    }
                }
                None => break,
            }
        }
        self.is_whole &= !self.queue.is_empty();
        if let Some(ping) = self.watch.take_ping(frame.requests() > 0, now_ms) {
            frame.ping(ping);
        }
        frame.pong(std::mem::take(&mut self.pong_due));
    }

    fn slot(&mut self, id: u64) -> Option<&mut InFlight> {
        let slot = self.slots.get_mut((id & 0xffff_ffff) as usize)?;
        slot.call.as_mut().filter(|_| u64::from(slot.generation) == id >> 32)
    }

    /// Records that the peer begins the load of a key with strikes.
    pub(crate) fn begun(&mut self, id: u64) {
        self.slot(id).into_iter().for_each(InFlight::begun);
    }

    /// Records that the load of a key with strikes waits for its turn at the peer.
    pub(crate) fn held(&mut self, id: u64) {
        self.slot(id).into_iter().for_each(InFlight::held);
    }

    fn take_unreached(&mut self, id: u64) -> Option<(Receiver, Outcome)> {
        let peer = self.peer.take();
        let outcome = self.slot(id).map(|in_flight| in_flight.unreached(peer.as_ref()));
        self.peer = peer;
        Some((self.take(id)?.reply, outcome?))
    }

    fn take(&mut self, id: u64) -> Option<Call> {
        let at = (id & 0xffff_ffff) as usize;
        let slot = self.slots.get_mut(at).filter(|slot| u64::from(slot.generation) == id >> 32)?;
        let in_flight = slot.call.take()?;
        self.in_flight -= 1;
        self.free.push(at as u32);
        Some(in_flight.call)
    }

    /// Records that a frame was read. If the frame answers a ping, returns the time at which the ping left, and whether
    /// this is the first pong of the connection.
    pub(crate) fn read(&mut self, now_ms: u64, pong: u64) -> Option<(u64, bool)> {
        self.watch.read(now_ms, pong)
    }

    /// Records that bytes arrived, even if they are not a whole frame yet.
    pub(crate) fn heard(&mut self, now_ms: u64) {
        self.watch.heard(now_ms);
    }

    /// Takes the call of a response and returns its receiver, if the call still waits.
    pub(crate) fn answered(&mut self, id: u64) -> Option<Receiver> {
        self.take(id).map(|call| call.reply)
    }

    /// Ends calls at their deadlines and watches over silence; called every 10 ms. With `we_stood_still`, this process
    /// was paused, and the silence meanwhile does not count.
    pub(crate) fn sweep(&mut self, now_ms: u64, we_stood_still: bool) -> SweepResult {
        let mut ended = Ended::new();
        if self.in_flight > 0 {
            let expired = |(at, slot): (usize, &Slot)| {
                let call = slot.call.as_ref()?;
                (call.call.deadline_ms <= now_ms).then_some(u64::from(slot.generation) << 32 | at as u64)
            };
            let ids: Vec<u64> = self.slots.iter().enumerate().filter_map(expired).collect();
            for id in ids {
                ended.extend(self.take(id).map(|call| (call.reply, Outcome::Expired)));
                self.queue.push_back(Queued::Cancel(id));
            }
        }
        SweepResult {
            ended,
            may_be_silent: self.breaker == Breaker::Closed
                && self.watch.sweep(now_ms, self.in_flight > 0, we_stood_still),
        }
    }

    /// Records that a new connection to a process is established; waiting requests are sent on it.
    pub(crate) fn connected(&mut self, peer: Instance, now_ms: u64) {
        self.slots.iter_mut().filter_map(|slot| slot.call.as_mut()).for_each(InFlight::is_alive);
        self.peer = Some(peer);
        self.breaker = self.breaker.connected();
        self.watch.connected(now_ms);
    }

    /// Records that the connection ended, and returns the calls that must not wait for another one. `has_left` says that
    /// the peer has announced its end.
    pub(crate) fn ended(&mut self, end: End, has_left: bool, now_ms: u64) -> Ended {
        let may_have_died = matches!(end, End::Broken | End::Flapping) && !has_left;
        self.slots.iter_mut().filter_map(|slot| slot.call.as_mut()).for_each(|call| call.cut(may_have_died));
        self.breaker = self.breaker.ended(end, now_ms);
        self.watch.ended();
        self.queue.clear();
        if !self.breaker.admits() {
            return self.drain();
        }
        let mut ended = Ended::new();
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at) else { continue };
            let id = u64::from(slot.generation) << 32 | at as u64;
            match slot.call.as_mut().map(|in_flight| in_flight.may_repeat(end == End::Renewed)) {
                Some(true) => self.queue.push_back(Queued::Request(id)),
                Some(false) => ended.extend(self.take_unreached(id)),
                None => {}
            }
        }
        ended
    }

    /// Records that an attempt to connect failed, and returns all calls. `is_alive` says that a process has answered at the
    /// address and refused, so that the peer need not have ended.
    pub(crate) fn failed(&mut self, is_alive: bool, now_ms: u64) -> Ended {
        if is_alive {
            self.slots.iter_mut().filter_map(|slot| slot.call.as_mut()).for_each(InFlight::is_alive);
        }
        self.breaker = self.breaker.failed(now_ms);
        self.drain()
    }

    /// Returns all calls, because another process has come in the place of the peer.
    pub(crate) fn end_all(&mut self) -> Ended {
        self.drain()
    }

    /// Records that the peer was removed, and returns all calls.
    pub(crate) fn gone(&mut self) -> Ended {
        self.breaker = Breaker::Removed;
        self.drain()
    }

    fn drain(&mut self) -> Ended {
        self.queue.clear();
        let ids: Vec<u64> = (0..self.slots.len() as u64)
            .filter_map(|at| self.slots.get(at as usize).map(|slot| u64::from(slot.generation) << 32 | at))
            .collect();
        ids.into_iter().filter_map(|id| self.take_unreached(id)).collect()
    }

    /// Sends a ping with the next frame.
    pub(crate) fn ask_for_ping(&mut self) {
        self.watch.ask();
    }

    /// Returns how often a frame was read.
    pub(crate) fn reads(&self) -> u64 {
        self.watch.reads()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl std::fmt::Debug for RequestTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("breaker", &self.breaker)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        identity::{Incarnation, PeerId},
        peer::client::receiver::Reply,
    };

    /// A receiver that nobody waits for.
    struct Nobody;

    impl Reply for Nobody {
        fn reply(self: Arc<Self>, _: Outcome, _: Instant) {}
    }

    fn peer() -> Instance {
        Instance { id: PeerId::new("peer").unwrap(), incarnation: Incarnation(1) }
    }

    fn connected(now_ms: u64) -> RequestTable {
        let mut table = RequestTable::new(8);
        table.connected(peer(), now_ms);
        let call = Call {
            op: Op::Get,
            group: 1,
            key: "key".into(),
            deadline_ms: u64::MAX,
            rank: 0,
            chain: LoadChain::EMPTY,
            number: 0,
            known: Vec::new(),
            strikes: None,
            reply: Receiver::new(Arc::new(Nobody)),
        };
        table.push(call).expect("room");
        table
    }

    /// Sweeps from one time to another, and returns whether the peer was silent at some of them.
    fn is_silent_between(table: &mut RequestTable, from_ms: u64, to_ms: u64) -> bool {
        let silent = |now_ms| table.sweep(now_ms, false).may_be_silent && table.verdict(now_ms) == Some(End::Silent);
        (from_ms..to_ms).step_by(10).any(silent)
    }

    #[test]
    fn unsent_ping_times_out_like_a_sent_one() {
        // No frame is filled any more, with or without the ping, as with a full window of HTTP/2.
        let mut table = connected(0);
        assert!(!is_silent_between(&mut table, 0, 1_050));
        assert!(is_silent_between(&mut table, 1_050, 1_150), "a second after the ping was due");
    }

    #[test]
    fn bytes_of_an_incomplete_frame_end_the_silence() {
        let mut table = connected(0);
        for now_ms in (0..5_000).step_by(500) {
            table.heard(now_ms);
            assert!(!is_silent_between(&mut table, now_ms, now_ms + 500));
        }
        assert!(is_silent_between(&mut table, 5_000, 6_000), "silence ends the connection");
    }

    #[test]
    fn pause_of_this_process_is_no_silence() {
        let mut table = connected(0);
        assert!(!is_silent_between(&mut table, 0, 200));
        assert!(!table.sweep(3_000, true).may_be_silent);
        assert_eq!(table.verdict(3_000), None, "the pause is no silence");
        assert!(!is_silent_between(&mut table, 3_010, 3_900), "its second begins anew");
        assert!(is_silent_between(&mut table, 3_900, 4_100));
    }

    #[test]
    fn many_cancels_leave_in_many_frames() {
        let mut table = RequestTable::new(20_000);
        table.connected(peer(), 0);
        let call = |_| Call {
            op: Op::Get,
            group: 1,
            key: "key".into(),
            deadline_ms: 10,
            rank: 0,
            chain: LoadChain::EMPTY,
            number: 0,
            known: Vec::new(),
            strikes: None,
            reply: Receiver::new(Arc::new(Nobody)),
        };
        assert_eq!(table.push_all((0..20_000).map(call)).0, 20_000);
        let sent = |table: &mut RequestTable| {
            let (mut requests, mut cancels) = (0, 0);
            while table.has_due() {
                let mut frame = Outgoing::new(0);
                table.fill(&mut frame, 1024, 10);
                assert!(frame.requests() + frame.cancels() <= 1024);
                requests += frame.requests();
                cancels += frame.cancels();
            }
            (requests, cancels)
        };
        assert_eq!(sent(&mut table), (20_000, 0));
        assert_eq!(table.sweep(10, false).ended.len(), 20_000);
        assert_eq!(sent(&mut table), (0, 20_000));
    }

    #[test]
    fn new_connection_ends_the_earlier_stream_and_verdict() {
        let mut table = connected(0);
        let (first, _) = table.begin_connection();
        table.waker = Some(Waker::noop().clone());
        table.dismiss();
        assert_eq!(table.verdict(0), Some(End::ClosedLocally));
        let (second, waker) = table.begin_connection();
        assert!(waker.is_some(), "the sleeping stream must be woken to end");
        assert!(!table.is_current(first) && table.is_current(second));
        assert_eq!(table.verdict(0), None);
    }
}
