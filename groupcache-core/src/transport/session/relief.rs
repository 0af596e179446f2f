//! Relief of the budget of received bytes: which connections end for the others.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::transport::session::{Party, Session, Sessions};

impl Sessions {
    /// Closes connections of the party that holds most bytes which nobody has taken, those with most bytes first, until
    /// the budget is relieved. Further parties follow while the budget is spent. Returns the closed ones.
    ///
    /// Connections without the frames of a peer, and those with more than the bytes of one stream, end for the others if
    /// together they hold enough, because unary requests have about 100 bytes.
    pub(crate) fn relieve(&self) -> Vec<Arc<Session>> {
        let mut closed = Vec::new();
        while self.close_largest(false, &mut closed) && self.received.is_spent() {}
        closed
    }

    /// Does the same with such connections only, if together they hold enough.
    pub(crate) fn relieve_of_unary(&self) -> Vec<Arc<Session>> {
        let mut closed = Vec::new();
        while self.close_largest(true, &mut closed) {}
        closed
    }

    /// Closes connections of the party with most bytes until the budget is relieved. Returns whether any had bytes.
    fn close_largest(&self, are_streams_spared: bool, closed: &mut Vec<Arc<Session>>) -> bool {
        let (open, excess) = (self.open.lock(), self.received.excess());
        if excess == 0 {
            return false;
        }
        let holders = || open.living().filter(|session| session.held.get() > 0);
        let of_one_stream = self.received.of_one_stream();
        let unary = |session: &&Arc<Session>| !session.has_stream.load(Relaxed) || session.held.get() > of_one_stream;
        let are_enough = holders().filter(unary).map(|session| session.held.get()).sum::<usize>() >= excess;
        if are_streams_spared && !are_enough {
            return false;
        }
        let mut parties: BTreeMap<Party<'_>, (usize, Vec<&Arc<Session>>)> = BTreeMap::new();
        for session in holders().filter(|session| !are_enough || unary(session)) {
            let party = parties.entry(session.party()).or_default();
            party.0 += session.held.get();
            party.1.push(session);
        }
        let Some((_, mut largest)) = parties.into_values().max_by_key(|(bytes, _)| *bytes) else { return false };
        largest.sort_by_key(|session| Reverse(session.held.get())); // the oldest first among equals
        for session in largest {
            session.close();
            closed.push(Arc::clone(session));
            if self.received.is_relieved() {
                break;
            }
        }
        true
    }
}
