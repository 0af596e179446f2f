//! Suspects: keys with strikes, as gets and loads treat them; see [`crate::quarantine`].

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use crate::{
    engine::{Engine, Failure, GroupFlight},
    error::Result,
    flight::Kind as Table,
    protocol::message::{Response, Strikes},
    quarantine::{
        APART, NOTICE,
        record::{Record, Verdict},
    },
    value::Value,
};

/// How a load begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// At once, like most loads.
    AtOnce,
    /// After a notice to the peers that wait for it, and apart from other loads of suspects.
    InTurn,
    /// Like [`InTurn`](Self::InTurn), although the key has as many strikes as one in quarantine.
    Trial,
}

impl<V: Value> Engine<V> {
    fn verdict(&self, key: &str) -> Verdict {
        let local = &self.context.local;
        local.quarantine.verdict(&self.settings.name, key, local.clock.read_ms())
    }

    /// Returns the record of a key, unless the key is clean.
    pub(super) fn suspect(&self, key: &str) -> Option<Record> {
        let local = &self.context.local;
        let record = local.quarantine.record(&self.settings.name, key)?;
        (record.verdict(local.clock.read_ms()) != Verdict::Clean).then_some(record)
    }

    /// Returns whether a caller of this node must not begin a load of the key here.
    pub(super) fn is_suspect(&self, key: &str) -> bool {
        self.context.local.quarantine.has_records() && self.verdict(key) != Verdict::Clean
    }

    /// Returns an error if the key is in quarantine.
    pub(super) fn check_quarantine(&self, key: &str) -> Result<()> {
        match self.verdict(key) {
            Verdict::Quarantined { until_ms } => {
                let now_ms = self.context.local.clock.read_ms();
                Err(self.errors.quarantined(Some(Duration::from_millis(until_ms.saturating_sub(now_ms)))))
            }
            Verdict::Clean | Verdict::Suspected | Verdict::Trial => Ok(()),
        }
    }

    /// Returns an error unless a caller of this node may begin a load of the key here.
    pub(super) fn check_load_here(&self, key: &str) -> Result<()> {
        self.check_quarantine(key)?;
        if self.is_suspect(key) { Err(self.errors.quarantined(None)) } else { Ok(()) }
    }

    /// Records that the loader has returned or was aborted, and that this process lives.
    pub(super) fn survived(&self, key: &Arc<str>) {
        let local = &self.context.local;
        if local.quarantine.has_records() {
            local.quarantine.ended_well(&self.settings.name, key, local.clock.read_ms());
        }
    }
}

/// Returns how a load for a peer begins, or the response that refuses it. `strikes` are those that the request carries.
pub(super) fn admit<V: Value>(
    engine: &Engine<V>,
    key: &str,
    strikes: Option<&Strikes>,
) -> std::result::Result<Admission, Response> {
    let (local, name) = (&engine.context.local, &engine.settings.name);
    if strikes.is_none() && !local.quarantine.has_records() {
        return Ok(Admission::AtOnce);
    }
    let (now_ms, key): (_, Arc<str>) = (local.clock.read_ms(), key.into());
    let verdict = match strikes {
        Some(strikes) => local.quarantine.merge(name, &key, &Record::of_wire(strikes, now_ms), now_ms),
        None => local.quarantine.verdict(name, &key, now_ms),
    };
    if engine.flights.running(Table::Load, &key).is_some() {
        return Ok(Admission::AtOnce); // the request joins it
    }
    match verdict {
        Verdict::Clean => Ok(Admission::AtOnce),
        Verdict::Suspected => Ok(Admission::InTurn),
        Verdict::Trial => {
            local.quarantine.begin_trial(name, &key, now_ms);
            Ok(Admission::Trial)
        }
        Verdict::Quarantined { until_ms } => {
            Err(Response::Quarantined { retry_after: Duration::from_millis(until_ms.saturating_sub(now_ms)) })
        }
    }
}

/// Runs the load of a suspect: waits for its turn, tells the peers that wait for it, and then begins it. The next load
/// begins once this one has ended, or has gone on for [`APART`].
///
/// Dropping `load` completes the flight, and so does dropping this future.
pub(super) async fn in_turn<V: Value>(
    engine: Arc<Engine<V>>,
    flight: GroupFlight<V>,
    admission: Admission,
    load: impl Future<Output = ()> + Send,
) {
    let refuse = |error: Failure| {
        engine.flights.complete(&flight, Err(error), 0, || ());
    };
    let turn = Arc::clone(&engine.context.local.quarantine.turn).acquire_owned();
    let Ok(Ok(turn)) = timeout(engine.loads.deadline, turn).await else {
        return refuse(engine.errors.overloaded("other keys whose loads may end the process are loaded first").into());
    };
    // Another node may have reported a second strike meanwhile.
    if let (Admission::InTurn, Err(error)) = (admission, engine.check_quarantine(flight.key())) {
        return refuse(error.into());
    }
    flight.context.load_context().iter().for_each(|load| load.begins());
    sleep(NOTICE).await;
    let mut load = std::pin::pin!(load);
    if timeout(APART, load.as_mut()).await.is_err() {
        drop(turn);
        load.await;
    }
}
