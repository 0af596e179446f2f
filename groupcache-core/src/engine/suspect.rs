//! Suspects: keys with strikes, as gets and loads treat them; see [`crate::quarantine`].

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    engine::{Engine, GroupFlight},
    error::Result,
    peer::group_service::LoadRequest,
    protocol::message::Response,
    quarantine::{
        APART, NOTICE,
        record::{Record, Verdict},
    },
    runtime::clock,
    value::Value,
};

/// How a load begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// At once, like most loads.
    AtOnce,
    /// After a notice to the peer that waits for it, apart from other loads of suspects, and only before `until`, while the
    /// peer waits, and if the key has no more strikes than these.
    InTurn { strikes: usize, until: Instant },
}

/// Key with strikes.
pub(super) struct Suspect {
    pub(super) record: Record,
    pub(super) verdict: Verdict,
    now_ms: u64,
}

impl Suspect {
    /// Returns the rest of the quarantine of the key, if it is in quarantine.
    pub(super) fn quarantine(&self) -> Option<Duration> {
        match self.verdict {
            Verdict::Quarantined { until_ms } => Some(Duration::from_millis(until_ms.saturating_sub(self.now_ms))),
            Verdict::Clean | Verdict::Suspected | Verdict::Trial => None,
        }
    }
}

impl<V: Value> Engine<V> {
    /// Returns the record of a key, unless the key is clean.
    pub(super) fn suspect(&self, key: &str) -> Option<Suspect> {
        let local = &self.context.local;
        let record = local.quarantine.record(&self.settings.name, key)?;
        let now_ms = local.clock.read_ms();
        let verdict = record.verdict(now_ms);
        (verdict != Verdict::Clean).then_some(Suspect { record, verdict, now_ms })
    }

    /// Returns an error unless a caller of this node may begin a load of the key here. Nobody would witness the end of the
    /// process.
    pub(super) fn check_load_here(&self, key: &str) -> Result<()> {
        match self.suspect(key) {
            None => Ok(()),
            Some(suspect) => Err(self.errors.quarantined(suspect.quarantine())),
        }
    }

    /// Records that the loader has returned or was aborted, and that this process lives.
    pub(super) fn survived(&self, key: &Arc<str>) {
        let local = &self.context.local;
        if local.quarantine.has_records() {
            local.quarantine.ended_well(&self.settings.name, key, local.clock.read_ms());
        }
    }
}

/// Returns how a load for a peer begins, or the response that refuses it.
pub(super) fn admit<V: Value>(
    engine: &Engine<V>,
    request: &LoadRequest<'_>,
) -> std::result::Result<Admission, Response> {
    let (local, name) = (&engine.context.local, &engine.settings.name);
    if request.strikes.is_none() && !local.quarantine.has_records() {
        return Ok(Admission::AtOnce);
    }
    let key: Arc<str> = request.key.into();
    if let Some(strikes) = &request.strikes {
        let now_ms = local.clock.read_ms();
        local.quarantine.merge(name, &key, &Record::of_wire(strikes, now_ms), now_ms);
    }
    let Some(suspect) = engine.suspect(&key) else { return Ok(Admission::AtOnce) };
    let quarantine = suspect.quarantine();
    // A peer that hears of no beginning is no witness of the end.
    if quarantine.is_some() || request.notice.is_none() {
        return Err(Response::Quarantined { retry_after: quarantine.unwrap_or_default() });
    }
    if suspect.verdict == Verdict::Trial {
        local.quarantine.begin_trial(name, &key, suspect.now_ms);
    }
    Ok(Admission::InTurn { strikes: suspect.record.strikes(), until: clock::deadline(request.wait) })
}

/// Turn of the load of a suspect.
pub(super) struct Turn {
    strikes: usize,
    until: Instant,
    permit: OwnedSemaphorePermit,
}

/// Waits for the turn of a load; `None` for a load that begins at once. Runs before the load takes its permits, so that
/// suspects which wait keep no other load waiting.
///
/// # Errors
/// The turn does not come before `deadline`, or while the peer waits.
pub(super) async fn turn<V: Value>(
    engine: &Engine<V>,
    admission: Admission,
    deadline: Instant,
) -> Result<Option<Turn>> {
    let Admission::InTurn { strikes, until } = admission else { return Ok(None) };
    let turn = Arc::clone(&engine.context.local.quarantine.turn).acquire_owned();
    match timeout_at(deadline.min(until), turn).await {
        Ok(Ok(permit)) => Ok(Some(Turn { strikes, until, permit })),
        _ => Err(engine.errors.overloaded("other keys whose loads may end the process are loaded first")),
    }
}

/// Load of a suspect that runs. Dropping it lets the next one begin.
#[derive(Default)]
pub(super) struct Running {
    _ended: Option<oneshot::Sender<()>>,
}

/// Tells the peers that wait for a load that it begins, lets the notice leave, and passes the turn on [`APART`] later or
/// when the load ends.
///
/// # Errors
/// Another node has reported a strike meanwhile, or the peer waits no more, so that nobody would witness the end of the
/// process.
pub(super) async fn begin<V: Value>(
    engine: &Engine<V>,
    flight: &GroupFlight<V>,
    turn: Option<Turn>,
) -> Result<Running> {
    let context = flight.context.load_context();
    let Some(Turn { strikes, until, permit }) = turn else {
        engine.check_load_here(flight.key())?;
        context.iter().for_each(|load| load.calls());
        return Ok(Running::default());
    };
    let check = || match engine.suspect(flight.key()) {
        Some(suspect) if suspect.record.strikes() > strikes => Err(engine.errors.quarantined(suspect.quarantine())),
        _ if Instant::now() + NOTICE >= until => Err(engine.errors.overloaded("the load comes too late for its peer")),
        _ => Ok(()),
    };
    check()?;
    if let Some(load) = context {
        load.begins(engine.context.now_ms());
        load.calls();
    }
    sleep(NOTICE).await;
    check()?;
    let (running, ended) = oneshot::channel();
    // In a task of its own, because a loader may block the task of the load.
    engine.context.tasks.run(async move {
        let _ = timeout(APART, ended).await;
        drop(permit);
    });
    Ok(Running { _ended: Some(running) })
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
