//! Bytes that connections have received and nobody has taken: what HTTP/2 keeps for its streams, messages that are not
//! complete, and the message that is handled.
//!
//! All connections share one budget. In its last quarter, connections with the frames of a peer are read one at a time:
//! the one with the turn completes its message, which makes room for the next. When the budget is spent, or when a
//! connection waits for its turn too long, the party with most of these bytes loses the connections with most of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::codegen::http::HeaderMap;

use crate::{
    limits::{Limits, MEMORY_PARTS},
    runtime::{memory_limit, sync::Mutex},
    transport::session::Session,
};

/// Least budget without a memory limit: 32 values of the default size, an eighth of a pod of 256 MiB, because the allocator keeps some of what
/// closed connections have held.
const MIN_BUDGET: usize = 32 << 20;

/// Least budget in largest messages, so that a few peers send one each at a time.
const LARGEST_MESSAGES: usize = 8;

/// Bytes of the prefix of a gRPC message.
const PREFIX: usize = 5;

/// Bytes that one header of a request takes beside its name and value: about 100 in the map of the crate `http`, and
/// three times the 32 bytes of HPACK (RFC 7541, section 4.1).
const HEADER_ENTRY: usize = 104;

/// Longest turn of a connection: a message of 4 MiB from a peer with 40 MiB/s. Afterwards the next one has its turn, so
/// that a peer that stands still in its message delays nobody for long.
const TURN: Duration = Duration::from_millis(100);

/// Time after its turn for which a connection leaves the next one to others that wait, each of which asks once per step.
const PAUSE: Duration = Duration::from_millis(10);

/// Length of the header of an HTTP/2 frame, and of the preface of a connection.
const HEADER: usize = 9;
const PREFACE: usize = 24;

/// Type of the frame that carries the bytes of a stream.
const DATA: u8 = 0;

/// Maximum payload of any other frame, which HTTP/2 keeps until it is complete and which is counted nowhere: the largest
/// that a peer may send without a setting of this node, and as much as the headers of a request may have.
const MAX_OTHER_PAYLOAD: usize = 16 << 10;

/// Budget of a node.
#[derive(Debug)]
pub(crate) struct ReceivedBytes {
    used: AtomicUsize,
    max: usize,
    /// Bytes of the largest message.
    largest: usize,
    /// Number of the connection that has the turn or had it last; 0 before the first turn.
    holder: AtomicU64,
    turn: Mutex<Turn>,
}

/// Turn of the one connection that is read while little of the budget is left.
#[derive(Debug)]
struct Turn {
    is_over: bool,
    /// Whether another connection has asked for the turn.
    is_wanted: bool,
    /// End of the turn or, once it is over, of the pause of its connection.
    ends: Instant,
}

impl ReceivedBytes {
    /// Returns the budget of a node with these limits.
    pub(crate) fn of(limits: &Limits) -> Self {
        let largest = limits.max_message_bytes();
        Self {
            largest,
            ..Self::new(memory_limit::part(MEMORY_PARTS, MIN_BUDGET).max(largest.saturating_mul(LARGEST_MESSAGES)))
        }
    }

    pub(super) fn new(max: usize) -> Self {
        let turn = Mutex::new(Turn { is_over: true, is_wanted: false, ends: Instant::now() });
        let largest = max / LARGEST_MESSAGES;
        Self { used: AtomicUsize::new(0), max, largest, holder: AtomicU64::new(0), turn }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    pub(super) fn is_spent(&self) -> bool {
        self.used.load(Relaxed) > self.max
    }

    /// Returns whether so much is left that no connection need end or wait.
    pub(super) fn is_relieved(&self) -> bool {
        self.excess() == 0
    }

    /// Returns the most bytes that a connection with a single stream holds: the window of two largest messages, and the
    /// message that is decoded.
    pub(super) fn of_one_stream(&self) -> usize {
        self.largest.saturating_mul(3)
    }

    /// Returns the bytes above three quarters of the budget. The last quarter has room for the stream of one connection.
    pub(super) fn excess(&self) -> usize {
        self.used.load(Relaxed).saturating_sub(self.max / 4 * 3)
    }

    /// Returns whether the connection with this number may be read, and gives it the turn if it needs and gets it.
    pub(super) fn may_grow(&self, number: u64, now: Instant) -> bool {
        if self.is_relieved() {
            return true;
        }
        let mut turn = self.turn.lock();
        let (is_holder, is_past) = (self.holder.load(Relaxed) == number, now >= turn.ends);
        if is_holder && !turn.is_over {
            if is_past {
                turn.end(now);
            }
            return !is_past;
        }
        let is_free = is_past || turn.is_over && !is_holder;
        if is_free {
            self.holder.store(number, Relaxed);
            *turn = Turn { is_over: false, is_wanted: false, ends: now + TURN };
        }
        turn.is_wanted |= !is_free && !is_holder;
        is_free
    }

    /// Ends the turn of a connection that has nothing incomplete.
    fn end_turn(&self, number: u64) {
        if self.holder.load(Relaxed) == number {
            let mut turn = self.turn.lock();
            if !turn.is_over {
                turn.end(Instant::now());
            }
        }
    }
}

impl Turn {
    /// Ends the turn. Its connection may have the next one at once, unless another connection wants it.
    fn end(&mut self, now: Instant) {
        (self.is_over, self.ends) = (true, if self.is_wanted { now + PAUSE } else { now });
    }
}

/// Bytes of one connection that nobody has taken.
#[derive(Debug)]
pub(super) struct HeldBytes {
    /// Number of the connection.
    number: u64,
    budget: Arc<ReceivedBytes>,
    held: AtomicUsize,
    /// Number of bodies of requests that are open.
    bodies: AtomicUsize,
}

impl HeldBytes {
    pub(super) fn new(number: u64, budget: Arc<ReceivedBytes>) -> Self {
        Self { number, budget, held: AtomicUsize::new(0), bodies: AtomicUsize::new(0) }
    }

    pub(super) fn get(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Returns whether the connection may be read while room is scarce; see [`ReceivedBytes::may_grow`].
    pub(super) fn may_grow(&self, now: Instant) -> bool {
        self.budget.may_grow(self.number, now)
    }

    /// Counts bytes that have arrived. Returns whether the budget is spent.
    pub(super) fn add(&self, bytes: usize) -> bool {
        if bytes > 0 {
            // First, so that the sum is never below its parts.
            self.budget.used.fetch_add(bytes, AcqRel);
            self.held.fetch_add(bytes, AcqRel);
        }
        self.budget.is_spent()
    }

    /// Counts bytes that were taken. Bytes that were given up before count once.
    pub(super) fn take(&self, bytes: usize) {
        let (mut taken, mut left) = (0, 0);
        let take = |held: usize| {
            taken = held.min(bytes);
            left = held - taken;
            Some(left)
        };
        let _ = self.held.fetch_update(AcqRel, Acquire, take); // never refuses
        self.budget.used.fetch_sub(taken, AcqRel);
        if left == 0 {
            self.budget.end_turn(self.number);
        }
    }

    /// Gives all bytes up, because the connection ends.
    pub(super) fn give_up(&self) {
        self.take(usize::MAX);
    }

    /// Gives up what came for no open body: padding, and bytes of streams that were reset. HTTP/2 keeps none of it. At
    /// most one round of reads too much is given up, that of a request which has not reached its service.
    pub(super) fn give_up_strays(&self) {
        if self.bodies.load(Acquire) == 0 {
            self.give_up();
        }
    }

    fn body_closed(&self) {
        if self.bodies.fetch_sub(1, AcqRel) == 1 {
            self.give_up();
        }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Counter of the bytes of streams among the bytes of a connection. Other frames are small, and bounded by HTTP/2.
#[derive(Debug)]
pub(super) struct StreamBytes {
    state: Reading,
    /// Whether a frame that carries no bytes of a stream exceeds [`MAX_OTHER_PAYLOAD`].
    is_oversized: bool,
}

/// Part of a frame that comes next.
#[derive(Debug)]
enum Reading {
    Header { bytes: [u8; HEADER], filled: usize },
    Payload { is_data: bool, left: usize },
}

impl Default for StreamBytes {
    fn default() -> Self {
        Self { state: Reading::Payload { is_data: false, left: PREFACE }, is_oversized: false }
    }
}

impl StreamBytes {
    /// Returns whether a frame has come for which the connection ends.
    pub(super) fn is_oversized(&self) -> bool {
        self.is_oversized
    }

    /// Returns how many of the next bytes of the connection belong to streams.
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut counted = 0;
        while !bytes.is_empty() {
            match &mut self.state {
                Reading::Payload { is_data, left } => {
                    let n = bytes.len().min(*left);
                    counted += if *is_data { n } else { 0 };
                    *left -= n;
                    bytes = bytes.get(n..).unwrap_or_default();
                    if *left == 0 {
                        self.state = Reading::Header { bytes: [0; HEADER], filled: 0 };
                    }
                }
                Reading::Header { bytes: header, filled } => {
                    let n = bytes.len().min(HEADER - *filled);
                    for (to, from) in header.iter_mut().skip(*filled).zip(bytes) {
                        *to = *from;
                    }
                    *filled += n;
                    bytes = bytes.get(n..).unwrap_or_default();
                    if *filled == HEADER {
                        let [a, b, c, kind, ..] = *header;
                        let left = u32::from_be_bytes([0, a, b, c]) as usize;
                        self.is_oversized |= kind != DATA && left > MAX_OTHER_PAYLOAD;
                        self.state = match left {
                            0 => Reading::Header { bytes: [0; HEADER], filled: 0 },
                            _ => Reading::Payload { is_data: kind == DATA, left },
                        };
                    }
                }
            }
        }
        counted
    }
}

/// Body of one request, as far as it has arrived at its reader and was not taken. Dropping it gives the rest up.
#[derive(Debug)]
pub(crate) struct Body {
    session: Option<Arc<Session>>,
    /// Bytes of the headers while they are kept.
    headers: AtomicUsize,
    arrived: AtomicUsize,
}

impl Body {
    /// Makes the body of a request on a connection; `None` for a connection of a server of the user. The headers count
    /// as bytes received until [`headers_dropped`](Self::headers_dropped).
    pub(crate) fn new(session: Option<Arc<Session>>, headers: &HeaderMap) -> Arc<Self> {
        let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_ENTRY).sum();
        if let Some(session) = &session {
            session.held().bodies.fetch_add(1, AcqRel);
            session.held().add(bytes);
        }
        Arc::new(Self { session, headers: AtomicUsize::new(bytes), arrived: AtomicUsize::new(0) })
    }

    /// Records that the headers of the request are kept no more, while its body lasts.
    pub(crate) fn headers_dropped(&self) {
        self.take(self.headers.swap(0, Relaxed));
    }

    /// Records that bytes have come to the reader of the body.
    pub(crate) fn arrived(&self, bytes: usize) {
        self.arrived.fetch_add(bytes, Relaxed);
    }

    /// Records that a message of this length was handled.
    pub(crate) fn handled(&self, bytes: usize) {
        let bytes = bytes + PREFIX;
        let _ = self.arrived.fetch_update(Relaxed, Relaxed, |arrived| Some(arrived.saturating_sub(bytes)));
        self.take(bytes);
    }

    fn take(&self, bytes: usize) {
        if let Some(session) = &self.session {
            session.held().take(bytes);
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.headers_dropped();
        self.take(self.arrived.load(Relaxed));
        if let Some(session) = &self.session {
            session.held().body_closed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an HTTP/2 frame without content.
    fn frame(kind: u8, bytes: usize) -> Vec<u8> {
        let mut frame = u32::try_from(bytes).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.resize(HEADER + bytes, DATA);
        frame
    }

    /// Checks that bytes of streams are counted however the bytes of the connection are cut.
    #[test]
    fn bytes_of_streams_are_counted_in_any_cut() {
        let connection = [vec![DATA; PREFACE], frame(4, 0), frame(1, 40), frame(DATA, 100), frame(DATA, 0)].concat();
        let connection = [connection, frame(8, 4), frame(DATA, 20_000), frame(DATA, 7)].concat();
        for cut in [1, 2, 8, 9, 10, 1000, connection.len()] {
            let mut bytes = StreamBytes::default();
            let counted: usize = connection.chunks(cut).map(|part| bytes.count(part)).sum();
            assert_eq!(counted, 20_107, "in parts of {cut}");
            assert!(!bytes.is_oversized());
        }
    }

    /// Checks that frames with bytes of streams may be large, and others may not.
    #[test]
    fn large_frames_without_bytes_of_streams_are_oversized() {
        for (kind, bytes, is_oversized) in
            [(DATA, 65_536, false), (1, 16_384, false), (1, 16_385, true), (9, 65_536, true)]
        {
            for cut in [1, 9, 10, 1000] {
                let mut counter = StreamBytes::default();
                let connection = [vec![0; PREFACE], frame(4, 0), frame(kind, bytes)].concat();
                let _: usize = connection.chunks(cut).map(|part| counter.count(part)).sum();
                assert_eq!(counter.is_oversized(), is_oversized, "{bytes} bytes of type {kind}");
            }
        }
    }

    #[test]
    fn held_bytes_return_to_the_budget_once() {
        let budget = Arc::new(ReceivedBytes::new(100));
        let [one, two] = [1, 2].map(|number| HeldBytes::new(number, Arc::clone(&budget)));
        assert!(!one.add(60) && two.add(50));
        assert!(budget.is_spent() && !budget.is_relieved());
        one.give_up();
        one.take(60);
        assert_eq!((one.get(), two.get(), budget.used.load(Relaxed)), (0, 50, 50));
        assert!(budget.is_relieved());
        two.take(20);
        drop(two);
        assert_eq!(budget.used.load(Relaxed), 0);
    }
}
