//! The sending half of a connection: a stream of frames, made when HTTP/2 asks for one.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::{
    identity::PeerId,
    peer::client::{breaker::Breaker, link::Link},
    protocol::{message::Hello, wire::Outgoing},
};

/// Stream that yields a frame whenever something is to be sent.
pub(crate) struct Outbound {
    pub(crate) link: Arc<Link>,
    pub(crate) connection: u64,
    pub(crate) expected: Option<PeerId>,
}

impl Stream for Outbound {
    type Item = Outgoing;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        let local = &self.link.local;
        let mut frame = Outgoing::new(local.fingerprint());
        {
            let mut table = self.link.table.lock();
            // Read under the lock, so that a later change finds the waker.
            let version = local.version();
            if !table.is_current(self.connection) {
                return Poll::Ready(None);
            }
            let is_greeted = table.hello_sent == version;
            // Requests wait for the peer's Hello, because the breaker is not closed until then.
            let may_ask = table.breaker == Breaker::Closed;
            if is_greeted && !(may_ask && table.has_due()) {
                table.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            table.hello_sent = version;
            if may_ask {
                let max = self.link.max_requests.load(Relaxed) as usize;
                table.fill(&mut frame, max, local.clock.now_ms());
                if frame.has_ping() && self.link.has_log() {
                    let (peer, now_ms) = (self.link.instance(), local.clock.now_ms());
                    if let Some(peer) = peer {
                        let sent = &mut table.knowledge_sent;
                        frame.knowledge(&local.writes.knowledge_for(&peer.id, sent, None, now_ms));
                    }
                }
                if std::mem::take(&mut table.goodbye_due) {
                    frame.goodbye(local.hello().incarnation);
                }
            }
            // Once per frame, because each call returns the next records.
            if !is_greeted || frame.has_ping() {
                frame.suspects(local.quarantine.news(&mut table.strikes_sent, local.clock.now_ms()));
            }
            if !is_greeted {
                let hello = Hello { expected: self.expected.clone(), ..Hello::clone(&local.hello()) };
                frame.hello(&hello, local.limits.max_in_flight_per_peer);
            }
        }
        if frame.requests() > 0 {
            local.counters.frames_sent.up();
            local.counters.requests_sent.add(frame.requests() as u64);
        }
        Poll::Ready(Some(frame))
    }
}
