//! Dial limits: how often, and how many at a time, a node dials targets that have never answered.
//!
//! Anybody who may announce can name any number of ids and addresses. Targets that have never answered are therefore
//! dialled a few at a time, and each address by one of them at a time. The pauses belong to the address and not to the
//! target, so that many ids at one address cause no more dials there than one. They grow up to minutes. A target that
//! has answered has none of these limits and waits for none of these dials.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep},
};

use crate::{
    identity::{Address, PeerId},
    limits::{RECONNECT_MIN, UNMET_MAX},
    membership::stabilizer::Refusal,
    peer::client::{dial::Failure, link::Target},
    runtime::{sync::Mutex, token_bucket::TokenBucket},
};

// Lanes of dials: to addresses where no dial has failed, to others, and to the address of a peer that has just connected
// to this node or answered there. An address is claimed at the end of the wait for a lane. Otherwise an invented id in
// a full lane would keep the peer at its address out.
const FIRST: usize = 0;
const AGAIN: usize = 1;
const ARRIVAL: usize = 2;

/// Number of dials of each lane that run at the same time.
const AT_ONCE: [usize; 3] = [16, 8, 4];

/// Number of dials per second of each lane, with the number that may come at once. The peers of a full set are all
/// dialled at the start.
const RATES: [(f64, f64); 3] = [(50.0, 2_000.0), (20.0, 40.0), (20.0, 40.0)];

/// Shortest time between two dials of one address that an arrival causes.
const ARRIVAL_PAUSE: Duration = Duration::from_secs(1);

/// Time after the end of a pause for which an address is remembered.
const REMEMBERED: Duration = UNMET_MAX;

/// Number of remembered addresses from which on those that have no pause are forgotten.
const FORGET_FROM: usize = 1_024;

/// Maximum number of remembered addresses: four of each target. Beyond it, addresses are forgotten that nobody dials or
/// waits for.
const MAX_PLACES: usize = 16_384;

/// Place to dial: a name with its port, or an address that is not a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Name(Address),
    Socket(SocketAddr),
}

/// Limits of the dials to targets that have never answered, for one node.
#[derive(Debug)]
pub(crate) struct DialLimits {
    places: Mutex<Places>,
    /// Lanes in the order of [`AT_ONCE`].
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    running: Arc<Semaphore>,
    rate: Mutex<TokenBucket>,
}

#[derive(Debug)]
struct Places {
    states: BTreeMap<Place, State>,
    forget_from: usize,
}

/// State of a place that was dialled.
#[derive(Debug)]
struct State {
    is_dialled: bool,
    /// Number of dials without success since the last success.
    failures: u32,
    last_dial: Instant,
    not_before: Instant,
    /// Id of the node that answered the last dial.
    found: Option<PeerId>,
    /// Error of the last dial.
    error: Option<DialError>,
    /// Sender of the end of each dial.
    ended: watch::Sender<()>,
}

/// Error of a dial, which the other targets at the address report too.
#[derive(Clone, Debug)]
pub(crate) struct DialError {
    pub(crate) refusal: Option<Refusal>,
    pub(crate) text: Arc<str>,
}

/// Arrival of a peer, which makes a dial urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arrival {
    /// No peer has connected to this node.
    None,
    /// A peer has connected to this node that may be the one behind the target.
    OfAnyPeer,
    /// The peer of the target has connected to this node, or a peer that says an address of the target as its own.
    OfTarget,
}

/// Turn of a target in a lane. Until the dial begins, other targets may be dialled at the same addresses.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    limits: &'a DialLimits,
    target: Arc<Target>,
    arrival: Arrival,
    lane: usize,
}

/// Addresses of a target that may be dialled now, with their places and their lane.
struct Free {
    lane: usize,
    addresses: Vec<Address>,
    places: Vec<Place>,
}

/// Right to dial the places of a target, until the drop.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    limits: &'a DialLimits,
    pub(crate) target: Arc<Target>,
    arrival: Arrival,
    /// Addresses of the target that may be dialled.
    pub(crate) addresses: Vec<Address>,
    /// Claimed places, with the id of another node that has answered there during the dial.
    places: Mutex<Vec<(Place, Option<PeerId>)>>,
    _permit: OwnedSemaphorePermit,
}

/// Reason why no address of a target is dialled now.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) until: Instant,
    /// Receiver of the end of a dial to an address of the target by another one; without one, the channel is closed.
    pub(crate) ended: Option<watch::Receiver<()>>,
    /// Last failure at the address, by whichever target, with the id of the node that answered there.
    pub(crate) failure: Option<(Option<PeerId>, DialError)>,
}

impl Place {
    fn of(address: &Address) -> Self {
        address.as_str().parse().map_or_else(|_| Self::Name(address.clone()), Self::at)
    }

    fn at(socket: SocketAddr) -> Self {
        // IPv4 addresses have a form as IPv6 addresses too.
        Self::Socket(SocketAddr::new(socket.ip().to_canonical(), socket.port()))
    }
}

impl Arrival {
    /// Returns what the arrival of a peer means for a target. `said` are the addresses that the peer says as its own.
    pub(crate) fn at(target: &Target, id: &PeerId, said: &[Address]) -> Self {
        match &target.expected {
            Some(expected) if expected == id => Self::OfTarget,
            Some(_) => Self::None,
            None if target.addresses.iter().any(|address| said.contains(address)) => Self::OfTarget,
            None => Self::OfAnyPeer,
        }
    }
}

impl Default for DialLimits {
    fn default() -> Self {
        let lane = |(at_once, (per_second, burst))| Lane {
            running: Arc::new(Semaphore::new(at_once)),
            rate: Mutex::new(TokenBucket::new(per_second, burst)),
        };
        Self {
            places: Mutex::new(Places { states: BTreeMap::new(), forget_from: FORGET_FROM }),
            lanes: AT_ONCE.into_iter().zip(RATES).map(lane).collect(),
        }
    }
}

impl DialLimits {
    /// Returns a turn of the target, or why none of its addresses may be dialled now. After an arrival, only the time
    /// since the last dial counts.
    pub(crate) fn turn(&self, target: Arc<Target>, arrival: Arrival) -> Result<Turn<'_>, Wait> {
        let lane = self.places.lock().free(&target, arrival, Instant::now())?.lane;
        Ok(Turn { limits: self, target, arrival, lane })
    }
}

impl<'a> Turn<'a> {
    /// Waits until the dial may begin. Returns `None` if another target was dialled at the addresses meanwhile, so that
    /// the target needs another turn.
    pub(crate) async fn begin(self) -> Option<Claim<'a>> {
        let lane = self.limits.lanes.get(self.lane)?;
        // The semaphore is never closed.
        let claim = self.claim(Arc::clone(&lane.running).acquire_owned().await.ok()?)?;
        let pause = lane.rate.lock().spend(1.0, Instant::now());
        sleep(pause).await;
        Some(claim)
    }

    /// Claims the addresses that may be dialled now.
    fn claim(&self, permit: OwnedSemaphorePermit) -> Option<Claim<'a>> {
        let now = Instant::now();
        let mut places = self.limits.places.lock();
        let free = places.free(&self.target, self.arrival, now).ok().filter(|free| free.lane == self.lane)?;
        free.places.iter().for_each(|place| places.begin(place, now));
        Some(Claim {
            limits: self.limits,
            target: Arc::clone(&self.target),
            arrival: self.arrival,
            addresses: free.addresses,
            places: Mutex::new(free.places.into_iter().map(|place| (place, None)).collect()),
            _permit: permit,
        })
    }
}

impl Wait {
    /// Adds an address that is not dialled before `due`.
    fn add(&mut self, state: &State, due: Instant) {
        if state.is_dialled {
            self.ended = Some(state.ended.subscribe());
        } else {
            self.until = self.until.min(due);
            self.ended.get_or_insert_with(|| state.ended.subscribe());
        }
        let failure = state.error.as_ref().map(|error| (state.found.clone(), error.clone()));
        self.failure = self.failure.take().or(failure);
    }
}

impl Places {
    /// Returns the addresses of a target that may be dialled now, of which there is at least one.
    fn free(&self, target: &Target, arrival: Arrival, now: Instant) -> Result<Free, Wait> {
        let mut wait = Wait { until: now + UNMET_MAX, ended: None, failure: None };
        let mut free = Free { lane: FIRST, addresses: Vec::new(), places: Vec::new() };
        for address in &target.addresses {
            let place = Place::of(address);
            if free.places.contains(&place) {
                continue;
            }
            let state = self.states.get(&place);
            if let Some(state) = state.filter(|state| state.is_dialled || now < state.due(target, arrival)) {
                wait.add(state, state.due(target, arrival));
                continue;
            }
            let is_awaited = arrival == Arrival::OfTarget || state.is_some_and(|state| state.is_of(target));
            let has_failed = state.is_some_and(|state| state.failures > 0);
            free.lane = free.lane.max(match (is_awaited, has_failed) {
                (true, _) => ARRIVAL,
                (false, true) => AGAIN,
                (false, false) => FIRST,
            });
            free.addresses.push(address.clone());
            free.places.push(place);
        }
        if !free.places.is_empty() {
            return Ok(free);
        }
        if target.addresses.is_empty() {
            let text = "the target has no address; compare its discovery record".into();
            wait.failure = Some((None, DialError { refusal: None, text }));
        }
        Err(wait)
    }

    fn begin(&mut self, place: &Place, now: Instant) {
        if self.states.len() >= self.forget_from {
            let is_awaited = |state: &State| state.is_dialled || state.ended.receiver_count() > 0;
            self.states.retain(|_, state| is_awaited(state) || now < state.not_before + REMEMBERED);
            if self.states.len() >= MAX_PLACES {
                self.states.retain(|_, state| is_awaited(state));
            }
            self.forget_from = FORGET_FROM.max(2 * self.states.len()).min(MAX_PLACES);
        }
        let new = || State {
            is_dialled: true,
            failures: 0,
            last_dial: now,
            not_before: now,
            found: None,
            error: None,
            ended: watch::Sender::new(()),
        };
        let state = self.states.entry(place.clone()).or_insert_with(new);
        state.is_dialled = true;
        state.last_dial = now;
    }
}

impl State {
    /// Returns whether the node that answered here is the one that the target expects.
    fn is_of(&self, target: &Target) -> bool {
        self.found.is_some() && self.found == target.expected
    }

    /// Returns the time from which on the target may dial here.
    fn due(&self, target: &Target, arrival: Arrival) -> Instant {
        if arrival > Arrival::None || self.is_of(target) {
            self.not_before.min(self.last_dial + ARRIVAL_PAUSE)
        } else {
            self.not_before
        }
    }
}

impl Claim<'_> {
    /// Claims an address that a name stands for. An error says why the address is not dialled now.
    pub(crate) fn admit(&self, socket: SocketAddr) -> Result<(), String> {
        let (now, place) = (Instant::now(), Place::at(socket));
        let mut claimed = self.places.lock();
        if claimed.iter().any(|(other, _)| *other == place) {
            return Ok(());
        }
        let mut places = self.limits.places.lock();
        if let Some(state) = places.states.get(&place) {
            if state.is_dialled {
                return Err("another target is dialled there".to_owned());
            }
            if now < state.due(&self.target, self.arrival) {
                let why = state.error.as_ref().map_or("no target has answered", |error| &*error.text);
                return Err(format!("dialled again later ({why})"));
            }
        }
        places.begin(&place, now);
        claimed.push((place, None));
        Ok(())
    }

    /// Records the id of another node that answers at an address.
    pub(crate) fn found(&self, socket: SocketAddr, id: &PeerId) {
        let at = Place::at(socket);
        if let Some((_, found)) = self.places.lock().iter_mut().find(|(place, _)| *place == at) {
            *found = Some(id.clone());
        }
    }

    /// Records that the target answers at an address.
    pub(crate) fn answered(&self, socket: SocketAddr, id: &PeerId) {
        let (at, claimed) = (Place::at(socket), self.places.lock());
        let mut places = self.limits.places.lock();
        for (place, _) in claimed.iter().filter(|(place, _)| *place == at || matches!(place, Place::Name(_))) {
            if let Some(state) = places.states.get_mut(place) {
                state.found = (*place == at).then(|| id.clone());
                (state.failures, state.error, state.not_before) = (0, None, Instant::now());
            }
        }
    }

    /// Records a failed dial, and lengthens the pause of each place. `seed` chooses the jitter.
    pub(crate) fn failed(&self, failure: &Failure, seed: u64) {
        let now = Instant::now();
        let error = match failure {
            Failure::NotConnected(text) => DialError { refusal: None, text: text.as_str().into() },
            Failure::Refused(why, text) => DialError { refusal: Some(why.clone()), text: text.as_str().into() },
        };
        let claimed = self.places.lock();
        let mut places = self.limits.places.lock();
        for (place, found) in claimed.iter() {
            if let Some(state) = places.states.get_mut(place) {
                state.not_before = now + pause(state.failures, seed);
                state.failures = state.failures.saturating_add(1);
                state.found.clone_from(found);
                state.error = Some(error.clone());
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let claimed = self.places.lock();
        let mut places = self.limits.places.lock();
        for (place, _) in claimed.iter() {
            if let Some(state) = places.states.get_mut(place) {
                state.is_dialled = false;
                state.ended.send_replace(());
            }
        }
    }
}

/// Returns the pause after a number of failures, with jitter: [`RECONNECT_MIN`] at first, [`UNMET_MAX`] at most.
fn pause(failures: u32, seed: u64) -> Duration {
    let grown = RECONNECT_MIN.saturating_mul(1 << failures.min(16)).min(UNMET_MAX / 2);
    let jitter = fastrand::Rng::with_seed(seed.wrapping_add(failures.into())).f64();
    grown + grown.mul_f64(jitter)
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
