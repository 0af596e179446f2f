//! The request table of one peer: requests in flight, the send queue, and the watch over silence.
//!
//! The table is pure bookkeeping under one lock, driven by the client.

use std::{sync::Arc, task::Waker, time::Duration};

use crate::{
    identity::Instance,
    limits::{BATCH_BYTES, VALUES_IN_FLIGHT_PER_PEER},
    peer::client::{
        breaker::{Breaker, End},
        call::{Call, Ended, NotSent, Outcome},
        deadlines::Deadlines,
        in_flight::InFlight,
        receiver::Receiver,
        send_queue::{Queued, SendQueue},
        silence::SilenceWatch,
        slots::Slots,
    },
    protocol::{
        message::Op,
        wire::{Outgoing, RequestRef},
    },
    runtime::byte_budget::{ByteBudget, ByteShare},
    write::knowledge::SentKnowledge,
};

/// Number of frames that a burst of requests is split into, so that both sides work in parallel: the peer answers one
/// frame while this node sends the next.
const SHARES: usize = 4;

/// Smallest number of requests of such a frame; a smaller one costs more than it saves.
const SMALLEST_SHARE: usize = 16;

/// Bookkeeping of the requests to one peer.
pub(crate) struct RequestTable {
    pub(crate) breaker: Breaker,
    slots: Slots,
    max_in_flight: usize,
    /// Bytes of values in flight to this peer, and to all peers.
    bytes: [Arc<ByteBudget>; 2],
    queue: SendQueue,
    deadlines: Deadlines,
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
    /// Makes the table of a link. `values` are the bytes of values in flight to all peers.
    pub(crate) fn new(max_in_flight: usize, values: Arc<ByteBudget>) -> Self {
        Self {
            breaker: Breaker::Connecting,
            slots: Slots::default(),
            max_in_flight,
            bytes: [ByteBudget::new(VALUES_IN_FLIGHT_PER_PEER), values],
            queue: SendQueue::default(),
            deadlines: Deadlines::default(),
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
        let bytes = match self.admit(&call.op) {
            Ok(bytes) => bytes,
            Err(refused) => {
                call.reply.discard(); // the caller deals with the refusal
                return Err(refused);
            }
        };
        let deadline_ms = call.deadline_ms;
        let id = self.slots.add(InFlight::new(call, bytes));
        self.deadlines.add(deadline_ms, id, self.slots.in_flight(), |id| self.slots.has(id));
        self.queue.request(id);
        Ok(())
    }

    /// Takes the bytes of a value from the budgets. Other requests are small, and bounded by their number.
    fn admit(&self, op: &Op) -> Result<Option<[ByteShare; 2]>, NotSent> {
        if !self.breaker.admits() {
            return Err(NotSent::Open);
        }
        if self.slots.in_flight() >= self.max_in_flight {
            return Err(NotSent::Full);
        }
        let Op::Set(value) = op else { return Ok(None) };
        let [of_peer, of_all] = &self.bytes;
        of_peer.take_share(of_all, value.len()).map(Some).ok_or(NotSent::Full)
    }

    /// Returns whether a frame would carry anything now.
    pub(crate) fn has_due(&self) -> bool {
        !self.queue.is_empty() || self.watch.is_due() || self.pong_due != 0 || self.goodbye_due
    }

    /// Fills a frame with what is due, up to `max_requests` and [`BATCH_BYTES`].
    pub(crate) fn fill(&mut self, frame: &mut Outgoing, max_requests: usize, now_ms: u64) {
        let share = (self.slots.in_flight() / SHARES).max(SMALLEST_SHARE);
        let max_requests = if self.is_whole { max_requests } else { max_requests.min(share) };
        let mut bytes = 0;
        frame.reserve_requests(self.queue.len().min(max_requests));
        // Cancels count as requests do, because a peer limits all parts of a frame together.
        while frame.requests() + frame.cancels() < max_requests && bytes < BATCH_BYTES {
            match self.queue.next() {
                Some(Queued::Cancel(id)) => frame.cancel(id),
                Some(Queued::Request(id)) => {
                    if let Some(in_flight) = self.slots.get_mut(id) {
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

    /// Records that the peer begins the load of a key with strikes.
    pub(crate) fn begun(&mut self, id: u64) {
        self.slots.get_mut(id).into_iter().for_each(InFlight::begun);
    }

    /// Records that the load of a key with strikes waits for its turn at the peer.
    pub(crate) fn held(&mut self, id: u64) {
        self.slots.get_mut(id).into_iter().for_each(InFlight::held);
    }

    fn take_unreached(&mut self, id: u64) -> Option<(Receiver, Outcome)> {
        let outcome = self.slots.get_mut(id)?.unreached(self.peer.as_ref());
        Some((self.take(id)?.reply, outcome))
    }

    fn take(&mut self, id: u64) -> Option<Call> {
        let in_flight = self.slots.take(id)?;
        if !in_flight.is_at_peer() {
            self.queue.ended_unsent(|id| self.slots.has(id));
        }
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
    pub(crate) fn answered(&mut self, id: u64, now_ms: u64) -> Option<Receiver> {
        let call = self.take(id)?;
        self.watch.answered(now_ms);
        Some(call.reply)
    }

    /// Ends calls at their deadlines and watches over silence; called every 10 ms. With `we_stood_still`, this process
    /// was paused, and the silence meanwhile does not count.
    pub(crate) fn sweep(&mut self, now_ms: u64, we_stood_still: bool) -> SweepResult {
        let mut ended = Ended::new();
        while let Some(id) = self.deadlines.next_passed(now_ms) {
            let is_at_peer = self.slots.get_mut(id).is_some_and(|in_flight| in_flight.is_at_peer());
            ended.extend(self.take(id).map(|call| (call.reply, Outcome::Expired)));
            if is_at_peer {
                self.queue.cancel(id);
            }
        }
        let mut may_be_silent = self.breaker == Breaker::Closed;
        may_be_silent &= self.watch.sweep(now_ms, self.slots.in_flight() > 0, we_stood_still);
        if self.breaker == Breaker::Closed && self.watch.owes_pong(now_ms) {
            // Set here, because a peer that talks keeps the reader from asking for a verdict.
            self.verdict.get_or_insert(End::Silent);
            may_be_silent = true;
        }
        SweepResult { ended, may_be_silent }
    }

    /// Records that a new connection to a process is established; waiting requests are sent on it.
    pub(crate) fn connected(&mut self, peer: Instance, now_ms: u64) {
        self.slots.calls_mut().for_each(InFlight::is_alive);
        self.peer = Some(peer);
        self.breaker = self.breaker.connected();
        self.watch.connected(now_ms);
    }

    /// Records that the connection ended, and returns the calls that must not wait for another one. `has_left` says that
    /// the peer has announced its end.
    pub(crate) fn ended(&mut self, end: End, has_left: bool, now_ms: u64) -> Ended {
        let may_have_died = matches!(end, End::Broken | End::Flapping) && !has_left;
        self.slots.calls_mut().for_each(|call| call.cut(may_have_died));
        self.breaker = self.breaker.ended(end, now_ms);
        self.watch.ended();
        self.queue.clear();
        if !self.breaker.admits() {
            return self.drain();
        }
        let mut ended = Ended::new();
        for id in self.slots.ids() {
            match self.slots.get_mut(id).map(|in_flight| in_flight.may_repeat(end == End::Renewed)) {
                Some(true) => self.queue.request(id),
                Some(false) => ended.extend(self.take_unreached(id)),
                None => {}
            }
        }
        ended
    }

    /// Records that a newer process is at the address of the peer, and returns the calls that the process before it had.
    /// `has_left` says that the peer has announced its end.
    pub(crate) fn succeeded(&mut self, newer: &Instance, has_left: bool) -> Ended {
        if has_left || self.peer.as_ref().is_none_or(|peer| peer.incarnation >= newer.incarnation) {
            return Ended::new();
        }
        if self.breaker == Breaker::Closed {
            self.verdict.get_or_insert(End::Broken);
        }
        self.slots.calls_mut().for_each(|call| call.cut(true));
        let mut cut = self.slots.ids();
        cut.retain(|id| self.slots.get_mut(*id).is_some_and(|call| call.is_cut()));
        cut.into_iter().filter_map(|id| self.take_unreached(id)).collect()
    }

    /// Records that an attempt to connect failed, and returns all calls. `is_alive` says that a process has answered at the
    /// address and refused, so that the peer need not have ended.
    pub(crate) fn failed(&mut self, is_alive: bool, now_ms: u64) -> Ended {
        if is_alive {
            self.slots.calls_mut().for_each(InFlight::is_alive);
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
        self.slots.ids().into_iter().filter_map(|id| self.take_unreached(id)).collect()
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
        self.slots.in_flight()
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }
}

impl std::fmt::Debug for RequestTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("breaker", &self.breaker)
            .field("in_flight", &self.slots.in_flight())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
