//! Judge: compares a history with the promises, each of which is one question to all that happened.
//!
//! Each oracle knows all machines, and asks only for what was promised. A write is judged from the moment at which
//! nothing was pending, whether the views agreed or not.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::loader::LoadReason;

use crate::{
    history::{Answer, Get, Log, Moment, Origin, Process, Source, Write},
    machine::PATIENT,
    scenario::Scenario,
};

/// Time for reads from previous owners before a load begins, and a tick. The owner that decides to load first reads
/// from previous owners, and the view may change meanwhile. In seed 50, a load was decided upon 3 ms before the change
/// and began 7 ms after it.
const PREVIOUS_OWNER_READS: Duration = Duration::from_millis(40);

/// Maximum delay of the end of a get, because of the ticks of the simulation and of the node.
const LATE: Duration = Duration::from_millis(150);

/// Time for which a response may be on its way. A connection that is silent for longer is given up.
const IN_TRANSIT: Duration = Duration::from_secs(3);

/// Time before the end of its bound from which a value is too old for a peer, because an age is rounded up.
const ON_ITS_WAY: Duration = Duration::from_millis(300);

/// Time after its call in which a write that has not reached every node may still discard the loads of other keys.
const DISCARDS_LOADS: Duration = Duration::from_secs(2);

/// Time in which all members of one view connect with one another again.
const RECONNECTED: Duration = Duration::from_secs(8);

/// Number of loads of one key that run at once on a node. A further one waits.
const SLOTS: usize = 3;

/// Upper bound of the time for which a node is out of a view.
const OUT_OF_VIEW: Duration = Duration::from_secs(30);

/// Everything that happened to one key.
struct KeyHistory<'a> {
    scenario: &'a Scenario,
    log: &'a Log,
    /// Loads and sets, in the order of their beginnings.
    sources: Vec<&'a Source>,
    gets: &'a [&'a Get],
    writes: Vec<&'a Write>,
}

/// Records the broken promises in the log.
pub(crate) fn judge(log: &mut Log, scenario: &Scenario) {
    let mut broken = Vec::new();
    for get in &log.gets {
        broken.extend(ended_in_time(get, log));
    }
    let mut gets: BTreeMap<usize, Vec<&Get>> = BTreeMap::new();
    for get in &log.gets {
        gets.entry(get.key).or_default().push(get);
    }
    let mut judged = (0, 0);
    for key in 0..scenario.keys {
        let history = KeyHistory {
            scenario,
            log,
            gets: gets.get(&key).map_or(&[], |gets| gets),
            sources: log.sources.iter().filter(|source| source.key == key).collect(),
            writes: log.writes.iter().filter(|write| write.is_of(key)).collect(),
        };
        for (at, source) in history.sources.iter().enumerate() {
            if let Origin::Load(reason) = source.origin {
                let earlier = &history.sources[..at];
                broken.extend(history.one_load_at_once(source, reason, earlier).err());
                broken.extend(history.few_loads_at_once(source, earlier).err());
                broken.extend(history.one_owner(source, reason, earlier).err());
                broken.extend(history.no_load_while_fresh(source, reason, earlier).err());
                broken.extend(history.no_fallback_without_a_fault(source, reason, earlier).err());
            }
        }
        for get in history.gets {
            if let Some((end, seen)) = get.end {
                let floor = history.floor(get);
                judged.0 += 1;
                judged.1 += u64::from(floor > 0);
                broken.extend(history.may_see(get, end, seen, floor).err());
            }
        }
    }
    log.add("gets judged", judged.0);
    log.add("gets judged after a write of their key", judged.1);
    for broken in broken {
        log.broken(broken);
    }
}

/// Checks P3: a get ends by its deadline.
fn ended_in_time(get: &Get, log: &Log) -> Option<String> {
    let over = get.end.map(|(end, _)| end.at).or_else(|| log.ended.get(&get.by).copied()).unwrap_or(log.now());
    (over > get.begin.at + get.deadline + LATE).then(|| format!("P3: a get took {:?}: {get:?}", over - get.begin.at))
}

/// Returns whether the outcome of a source may be observed after the writes up to this number. Either of two writes at
/// once may stand.
fn is_after(source: &Source, floor: u64) -> bool {
    match source.origin {
        Origin::Load(_) => source.begin.n >= floor,
        Origin::Set => source.end.is_none_or(|end| end.n >= floor),
    }
}

/// Returns whether a write may take effect after this number.
fn lasts_beyond(write: &Write, n: u64) -> bool {
    // A node that is not connected hears of the write when it is connected again.
    write.settled.is_none_or(|(settled, _)| settled.n > n)
}

impl KeyHistory<'_> {
    /// Returns the number before which the flight of a load cannot have begun. While other loads have all slots of the key,
    /// a flight waits until one of them ends, and then reads from previous owners.
    fn since(&self, load: &Source) -> u64 {
        let had_slot = |other: &&&Source| {
            let is_load = matches!(other.origin, Origin::Load(_)) && other.by == load.by;
            let lasted = other.end.is_none_or(|end| end.at + PREVIOUS_OWNER_READS >= load.begin.at);
            is_load && lasted && other.begin.n < load.begin.n
        };
        let begins: Vec<u64> = self.sources.iter().filter(had_slot).map(|other| other.begin.n).collect();
        begins.iter().max().filter(|_| begins.len() >= SLOTS).copied().unwrap_or(load.since)
    }

    /// Returns whether a write may have come between the beginnings of two flights.
    fn is_separated(&self, first: &Source, second: &Source) -> bool {
        let since = self.since(first);
        let is_of_key = |write: &Write| lasts_beyond(write, since) && write.is_of(first.key);
        // A node that was out of a view is notified, when it is connected again, that any key may have changed
        // meanwhile.
        let is_reconnected = first.agreed_for >= RECONNECTED && second.agreed_for >= first.agreed_for;
        let is_of_any = |write: &Write| !is_reconnected && write.begin.at + OUT_OF_VIEW >= first.begin.at;
        let earlier = self.log.writes.iter().take_while(|write| write.begin.n < second.begin.n);
        earlier.into_iter().any(|write| is_of_key(write) || is_of_any(write))
    }

    /// Checks P2: two loads of a key on one node do not overlap unless a write separates them. Loads of two nodes do
    /// not overlap either while the cluster is calm (P1).
    fn one_load_at_once(&self, load: &Source, _: LoadReason, earlier: &[&Source]) -> Result<(), String> {
        let mut running = earlier.iter().filter(|other| {
            let runs = other.end.is_none_or(|end| end.n > load.begin.n);
            runs && matches!(other.origin, Origin::Load(_)) && (other.by == load.by || other.is_calm && load.is_calm)
        });
        match running.find(|other| !self.is_separated(other, load)) {
            Some(other) => Err(format!(
                "P1 and P2: two loads of a key overlap, and no write is between them:\n  {other:?}\n  {load:?}"
            )),
            None => Ok(()),
        }
    }

    /// Checks P2: however often a key is written, few of its loads run at once on a node. Loads of suspects, of which there
    /// are none before a process has ended, wait for no slot.
    fn few_loads_at_once(&self, load: &Source, earlier: &[&Source]) -> Result<(), String> {
        let has_suspects = self.log.ended.values().any(|ended| *ended <= load.begin.at);
        let is_running = |other: &&&Source| {
            let is_load = matches!(other.origin, Origin::Load(_)) && other.by == load.by;
            is_load && other.end.is_none_or(|end| end.n > load.begin.n)
        };
        let running = earlier.iter().filter(is_running).count() + 1;
        if running <= SLOTS || has_suspects {
            return Ok(());
        }
        Err(format!("P2: {running} loads of a key run at once on a node:\n  {load:?}"))
    }

    /// Checks P1: while views agree, a key has a single owner.
    ///
    /// A load that begins right after the views came to agree may have been decided upon in an earlier view, because
    /// the owner reads from previous owners in between.
    fn one_owner(&self, load: &Source, reason: LoadReason, earlier: &[&Source]) -> Result<(), String> {
        let was_decided = |load: &Source| load.agreed_for > PREVIOUS_OWNER_READS;
        let since = load.agreed_since.filter(|_| reason == LoadReason::Owner && was_decided(load));
        let Some(since) = since else { return Ok(()) };
        let other = earlier
            .iter()
            .rev()
            .take_while(|other| other.begin.n > since)
            .filter(|other| was_decided(other))
            .find(|other| other.origin == Origin::Load(LoadReason::Owner) && other.by.machine != load.by.machine);
        match other {
            Some(other) => Err(format!("P1: two owners of a key in one view:\n  {other:?}\n  {load:?}")),
            None => Ok(()),
        }
    }

    /// Checks P1: an owner does not load a key again while its entry is fresh.
    fn no_load_while_fresh(&self, load: &Source, reason: LoadReason, earlier: &[&Source]) -> Result<(), String> {
        if !self.scenario.is_roomy || reason != LoadReason::Owner {
            return Ok(());
        }
        let has_kept = |other: &&&Source| {
            let kept = other.is_kept && other.origin == Origin::Load(LoadReason::Owner);
            let same = other.by == load.by && other.epoch == load.epoch;
            kept && same && other.end.is_some_and(|end| end.n < load.begin.n)
        };
        let Some(before) = earlier.iter().rfind(has_kept) else { return Ok(()) };
        let Some(end) = before.end else { return Ok(()) };
        let is_fresh = self.scenario.time_to_live.is_none_or(|lasts| load.begin.at + LATE < end.at + lasts);
        // A loaded value is not cached if a write of any key in the stripe came after the beginning of the load.
        let since = self.since(before);
        let is_discarded = self.log.writes.iter().any(|write| {
            let is_near = write.begin.at + DISCARDS_LOADS >= before.begin.at;
            write.begin.n < end.n && is_near && lasts_beyond(write, since)
        });
        // An outcome that is not cached removes the earlier entry.
        let is_replaced = earlier.iter().any(|other| {
            let between = other.begin.n > before.begin.n && other.by == load.by;
            between && matches!(other.answer, Answer::Value(_) | Answer::Nothing) && !other.is_kept
        });
        // While a member cannot be heard, a value is kept no longer than the bound.
        let bound = self.scenario.max_staleness.filter(|_| !load.is_calm);
        let is_too_old = bound.is_some_and(|bound| load.begin.at + ON_ITS_WAY >= before.begin.at + bound);
        if !is_fresh || is_too_old || is_discarded || is_replaced || self.is_separated(before, load) {
            return Ok(());
        }
        Err(format!("P1: an owner loaded a key again while its entry was fresh:\n  {before:?}\n  {load:?}"))
    }

    /// Checks P1 and P5: while the cluster is calm, no node but the owner loads, not even after an error of the owner's
    /// loader.
    fn no_fallback_without_a_fault(&self, load: &Source, reason: LoadReason, _: &[&Source]) -> Result<(), String> {
        // A key with a strike is loaded by another node than its owner.
        if reason == LoadReason::Fallback && load.is_calm && !self.has_ended_a_process(load.begin) {
            return Err(format!("P1: a node that does not own the key loaded it without a fault:\n  {load:?}"));
        }
        Ok(())
    }

    /// Returns the beginning of the last write that had settled when this get began. No outcome from before
    /// that write may be observed.
    fn floor(&self, get: &Get) -> u64 {
        let is_judged = |write: &Write, settled: Moment, has_met_all: bool| {
            let is_later = || self.log.starts.get(&get.by).is_some_and(|start| *start > settled.n);
            write.met.contains(&get.by) || has_met_all && is_later()
        };
        let over = |write: &&&Write| {
            let before = write.settled.filter(|(settled, _)| settled.n < get.begin.n);
            before.is_some_and(|(settled, has_met_all)| is_judged(write, settled, has_met_all))
        };
        self.writes.iter().filter(over).map(|write| write.begin.n).max().unwrap_or(0)
    }

    /// Returns whether a process had ended by this time while another one waited for the key.
    fn has_ended_a_process(&self, end: Moment) -> bool {
        let waited = |process: Process, at: Duration| {
            let waits =
                |get: &&Get| get.by != process && get.begin.at <= at && get.end.is_none_or(|(end, _)| end.at >= at);
            self.gets.iter().any(waits)
        };
        self.log.ended.iter().any(|(process, at)| *at <= end.at && waited(*process, *at))
    }

    /// Checks P9, the expiry of values, and the reasons of errors.
    fn may_see(&self, get: &Get, end: Moment, seen: Answer, floor: u64) -> Result<(), String> {
        match seen {
            Answer::Closed => Ok(()),
            Answer::Quarantined => match self.has_ended_a_process(end) {
                true => Ok(()),
                false => Err(format!("P4: a get was refused, and no process ended while it had the key:\n  {get:?}")),
            },
            Answer::Value(number) => self.may_see_value(get, number, floor),
            Answer::Nothing => {
                let found = |source: &&&Source| source.answer == Answer::Nothing && source.begin.n < end.n;
                match self.sources.iter().filter(found).any(|source| is_after(source, floor)) {
                    true => Ok(()),
                    false => {
                        Err(format!("P9: a get found nothing, and no load did after the write of {floor}:\n  {get:?}"))
                    }
                }
            }
            Answer::Failed => {
                let failed = |source: &&&Source| {
                    let has_failed = matches!(source.answer, Answer::Failed | Answer::TimedOut);
                    let overlaps = source.end.is_none_or(|over| over.at + IN_TRANSIT >= get.begin.at);
                    has_failed && overlaps && source.begin.n < end.n
                };
                match self.sources.iter().any(|source| failed(&source)) {
                    true => Ok(()),
                    false => Err(format!("P4: a get failed, and no load did:\n  {get:?}")),
                }
            }
            Answer::TimedOut => {
                // Impatient gets end at their own deadline. Patient gets time out only after a load has reached its own
                // deadline.
                let hung = |source: &&&Source| {
                    let overlaps = source.end.is_none_or(|over| over.at + IN_TRANSIT >= get.begin.at);
                    source.answer == Answer::TimedOut && overlaps && source.begin.n < end.n
                };
                match get.deadline < PATIENT || self.sources.iter().any(|source| hung(&source)) {
                    true => Ok(()),
                    false => Err(format!("P3: a get timed out, and no load hung:\n  {get:?}")),
                }
            }
        }
    }

    /// Returns the last write that a value within the bound on staleness must contain. The writer had met the process of
    /// the get, and is alive; discovery reports the truth.
    fn bound_floor(&self, get: &Get) -> u64 {
        let Some(bound) = self.scenario.max_staleness.filter(|_| self.scenario.has_true_discovery()) else { return 0 };
        let is_alive = |write: &Write| self.log.ended.get(&write.by).is_none_or(|ended| *ended > get.begin.at);
        let is_due = |write: &&&Write| {
            write.begin.at + bound + LATE < get.begin.at && write.met.contains(&get.by) && is_alive(write)
        };
        self.writes.iter().filter(is_due).map(|write| write.begin.n).max().unwrap_or(0)
    }

    fn may_see_value(&self, get: &Get, number: u64, floor: u64) -> Result<(), String> {
        let Some(source) = self.sources.iter().find(|source| source.begin.n == number) else {
            return Err(format!("P9: a get returned a value that was neither loaded nor set:\n  {get:?}"));
        };
        if !is_after(source, floor) {
            let write = self.writes.iter().find(|write| write.begin.n == floor);
            return Err(format!(
                "P9: a get returned a value from before a write that had returned:\n  {source:?}\n  {write:?}\n  \
                 {get:?}"
            ));
        }
        let bound_floor = self.bound_floor(get);
        if !is_after(source, bound_floor) {
            let write = self.writes.iter().find(|write| write.begin.n == bound_floor);
            return Err(format!(
                "bound: a get returned a value without a write that was made longer ago than the bound:\n  {source:?}\n  \
                 {write:?}\n  {get:?}"
            ));
        }
        let Some(end) = source.end.filter(|_| source.origin != Origin::Set) else { return Ok(()) };
        let lasts = match (source.is_kept, self.scenario.time_to_live) {
            (false, _) => Duration::ZERO,
            (true, None) => return Ok(()),
            (true, Some(lasts)) => lasts + self.scenario.stale_while_revalidate,
        };
        match get.begin.at <= end.at + lasts + IN_TRANSIT {
            true => Ok(()),
            false => Err(format!("P10: a get returned a value that had expired:\n  {source:?}\n  {get:?}")),
        }
    }
}
