//! A call in flight: how far it has come, and what the end of its connection says about the peer.

use crate::{
    identity::Instance,
    peer::client::call::{Call, Outcome},
    runtime::byte_budget::ByteShare,
};

/// Progress of a call at its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The request waits to be sent.
    Queued,
    /// The request was sent on the current connection.
    Sent,
    /// The peer has said that the load of a key with strikes waits for its turn.
    Held,
    /// The peer has said that it begins the load of a key with strikes.
    Begun,
    /// The connection broke while the peer had the request, so that the process of the peer may have ended. `has_run`
    /// says whether the load may have run.
    Cut { has_run: bool },
}

/// Call without an answer.
pub(super) struct InFlight {
    pub(super) call: Call,
    /// Whether the request was sent again after its connection broke; no request is sent a third time.
    is_repeated: bool,
    progress: Progress,
    /// Bytes of the value of a set, in the budgets of the peer and of the node.
    _bytes: Option<[ByteShare; 2]>,
}

impl InFlight {
    pub(super) fn new(call: Call, bytes: Option<[ByteShare; 2]>) -> Self {
        Self { call, is_repeated: false, progress: Progress::Queued, _bytes: bytes }
    }

    /// Records that the request leaves with a frame.
    pub(super) fn sent(&mut self) {
        self.progress = Progress::Sent;
    }

    /// Records that the load waits for its turn at the peer. The notice of the beginning overtakes what is queued, so that
    /// this notice may arrive after it.
    pub(super) fn held(&mut self) {
        if self.progress == Progress::Sent {
            self.progress = Progress::Held;
        }
    }

    /// Returns whether the peer has the request, on the current connection.
    pub(super) fn is_at_peer(&self) -> bool {
        matches!(self.progress, Progress::Sent | Progress::Held | Progress::Begun)
    }

    /// Returns whether the connection broke while the peer had the request.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.progress, Progress::Cut { .. })
    }

    /// Records that the peer begins the load.
    pub(super) fn begun(&mut self) {
        self.progress = Progress::Begun;
    }

    /// Records the end of the connection, after which the request is sent again if there is another connection.
    /// `may_have_died` says that the process of the peer may have ended.
    pub(super) fn cut(&mut self, may_have_died: bool) {
        // The load of a request that carries strikes runs after the notice.
        let has_run = match self.progress {
            Progress::Queued => return,
            Progress::Sent => self.call.strikes.is_none(),
            Progress::Held => false,
            Progress::Begun => true,
            Progress::Cut { .. } => return,
        };
        self.progress = if may_have_died { Progress::Cut { has_run } } else { Progress::Queued };
    }

    /// Records that the process of the peer is alive.
    pub(super) fn is_alive(&mut self) {
        if let Progress::Cut { .. } = self.progress {
            self.progress = Progress::Queued;
        }
    }

    /// Returns whether the request may be sent once more on another connection, and records that it is. `is_owed` says
    /// that the connection was replaced and not broken.
    pub(super) fn may_repeat(&mut self, is_owed: bool) -> bool {
        let may_repeat = !self.is_repeated || is_owed;
        self.is_repeated |= !is_owed;
        may_repeat
    }

    /// Returns the outcome of a call to a peer that cannot be reached any more. `peer` is the process that had the request.
    pub(super) fn unreached(&self, peer: Option<&Instance>) -> Outcome {
        match (self.progress, peer) {
            (Progress::Cut { has_run }, Some(process)) => Outcome::Died { process: process.clone(), has_run },
            _ => Outcome::Unreachable,
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::{
        identity::{Incarnation, PeerId},
        peer::client::receiver::{Receiver, Reply},
        protocol::{
            chain::LoadChain,
            message::{Op, Strikes},
        },
    };

    struct Nobody;

    impl Reply for Nobody {
        fn reply(self: Arc<Self>, _: Outcome, _: Instant) {}
    }

    /// Checks that a peer which began the load and then ended has run the load, although the notice of the wait for the
    /// turn arrived after that of the beginning.
    #[test]
    fn late_notice_of_the_wait_hides_no_beginning() {
        let reply = Receiver::new(Arc::new(Nobody));
        let call = Call {
            op: Op::Get,
            group: 0,
            key: Arc::from("k"),
            deadline_ms: 0,
            rank: 0,
            chain: LoadChain::EMPTY,
            number: 0,
            known: Vec::new(),
            strikes: Some(Box::<Strikes>::default()),
            reply,
        };
        let mut in_flight = InFlight::new(call, None);
        in_flight.sent();
        in_flight.begun();
        in_flight.held();
        in_flight.cut(true);
        let process = Instance { id: PeerId::new("a").unwrap(), incarnation: Incarnation(1) };
        assert!(matches!(in_flight.unreached(Some(&process)), Outcome::Died { has_run: true, .. }));
    }
}
