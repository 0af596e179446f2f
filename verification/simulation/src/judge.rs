//! What a history may look like: the promises, each as one question to all that has happened.
//!
//! Each oracle knows all machines, and asks only what was promised for what it knows: nothing is concluded from a write
//! that named somebody as unreached, nor from views that did not agree.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::LoadReason;

use crate::{
    history::{Answer, Get, Log, Moment, Origin, Source, Write},
    machine::PATIENT,
    scenario::Scenario,
};

/// How long former owners may be asked before a load begins, and a tick: the owner that decides to load asks them first, and
/// the view may change meanwhile. Seed 50: decided upon 3 ms before the change, begun 7 ms after it.
const PEEKING: Duration = Duration::from_millis(40);

/// How late a get may end: ticks of the simulation and of the node.
const LATE: Duration = Duration::from_millis(150);

/// How long an answer may be on its way; a connection that is silent for longer is given up.
const ON_ITS_WAY: Duration = Duration::from_secs(3);

/// How long after it was called a write that has not reached everyone may still undo what other keys' loads have brought.
const LINGERS: Duration = Duration::from_secs(2);

/// How long a node serves what it may not have heard a write of.
const BORROWED: Duration = Duration::from_secs(10);

/// How long it may take until all that are in one view have met.
const MET_AGAIN: Duration = Duration::from_secs(8);

/// For longer than this nobody was out of a view.
const REMEMBERED: Duration = Duration::from_secs(30);

/// All that happened to one key.
struct Life<'a> {
    scenario: &'a Scenario,
    log: &'a Log,
    /// In the order of their beginnings.
    sources: Vec<&'a Source>,
    writes: Vec<&'a Write>,
}

/// Notes in the log which promises were broken, and how.
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
        let life = Life {
            scenario,
            log,
            sources: log.sources.iter().filter(|source| source.key == key).collect(),
            writes: log.writes.iter().filter(|write| write.is_of(key)).collect(),
        };
        for (at, source) in life.sources.iter().enumerate() {
            if let Origin::Load(reason) = source.origin {
                let earlier = &life.sources[..at];
                broken.extend(life.one_load_at_once(source, reason, earlier).err());
                broken.extend(life.one_owner(source, reason, earlier).err());
                broken.extend(life.no_load_in_vain(source, reason, earlier).err());
                broken.extend(life.no_fallback_without_a_fault(source, reason, earlier).err());
            }
        }
        for get in gets.get(&key).into_iter().flatten() {
            if let Some((end, seen)) = get.end {
                let floor = life.floor(get);
                judged.0 += 1;
                judged.1 += u64::from(floor > 0);
                broken.extend(life.may_see(get, end, seen, floor).err());
            }
        }
    }
    log.add("gets judged", judged.0);
    log.add("gets judged after a write of their key", judged.1);
    for broken in broken {
        log.broken(broken);
    }
}

/// P3.
fn ended_in_time(get: &Get, log: &Log) -> Option<String> {
    let over = get.end.map(|(end, _)| end.at).or_else(|| log.ended.get(&get.by).copied()).unwrap_or(log.now());
    (over > get.begin.at + get.deadline + LATE).then(|| format!("P3: it took {:?}: {get:?}", over - get.begin.at))
}

/// Whether what a source brought may be seen after the writes up to this number. Of two writes at once either may stand.
fn is_after(source: &Source, floor: u64) -> bool {
    match source.origin {
        Origin::Load(_) => source.begin.n >= floor,
        Origin::Set => source.end.is_none_or(|end| end.n >= floor),
    }
}

/// Whether a write may take effect after this number.
fn lasts_beyond(write: &Write, n: u64) -> bool {
    // Who was not in the view of the writer is told when it is met again.
    !write.is_of_all || write.end.is_none_or(|end| end.n > n)
}

impl Life<'_> {
    /// Whether a write may have come between the beginnings of two flights.
    fn is_separated(&self, first: &Source, second: &Source) -> bool {
        let is_of_key = |write: &Write| lasts_beyond(write, first.since) && write.is_of(first.key);
        // Who was out of somebody's view is told, when it is met again, that anything may have changed meanwhile.
        let is_settled = first.agreed_for >= MET_AGAIN && second.agreed_for >= first.agreed_for;
        let is_of_any = |write: &Write| !is_settled && write.begin.at + REMEMBERED >= first.begin.at;
        let earlier = self.log.writes.iter().take_while(|write| write.begin.n < second.begin.n);
        earlier.into_iter().any(|write| is_of_key(write) || is_of_any(write))
    }

    /// P2: two loads of a key on one node do not run at once unless a write separates them.
    fn one_load_at_once(&self, load: &Source, _: LoadReason, earlier: &[&Source]) -> Result<(), String> {
        let mut running = earlier.iter().filter(|other| {
            let runs = other.end.is_none_or(|end| end.n > load.begin.n);
            runs && matches!(other.origin, Origin::Load(_)) && (other.by == load.by || other.is_calm && load.is_calm)
        });
        match running.find(|other| !self.is_separated(other, load)) {
            Some(other) => {
                Err(format!("P1 and P2: two loads at once, and no write between them:\n  {other:?}\n  {load:?}"))
            }
            None => Ok(()),
        }
    }

    /// P1: while views agree a key has one owner. What begins right after they have come to agree may have been decided
    /// upon before: former owners are asked in between.
    fn one_owner(&self, load: &Source, reason: LoadReason, earlier: &[&Source]) -> Result<(), String> {
        let was_decided = |load: &Source| load.agreed_for > PEEKING;
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

    /// P1: what an owner has is not loaded again while it is fresh.
    fn no_load_in_vain(&self, load: &Source, reason: LoadReason, earlier: &[&Source]) -> Result<(), String> {
        if !self.scenario.is_roomy || reason != LoadReason::Owner {
            return Ok(());
        }
        let has_kept = |other: &&&Source| {
            let kept = other.is_kept && other.origin == Origin::Load(LoadReason::Owner);
            let same = other.by == load.by && other.epoch == load.epoch && other.cut_off == load.cut_off;
            kept && same && other.end.is_some_and(|end| end.n < load.begin.n)
        };
        let Some(before) = earlier.iter().rfind(has_kept) else { return Ok(()) };
        let Some(end) = before.end else { return Ok(()) };
        let is_fresh = self.scenario.time_to_live.is_none_or(|lasts| load.begin.at + LATE < end.at + lasts);
        // What comes while all peers are lost, and writes pass by, is kept for a short time only.
        let is_capped = load.cut_off > 0 && load.begin.at + LATE >= end.at + BORROWED;
        // Nor kept, when a write of any key that shares the stripe has passed it.
        let is_passed = self.log.writes.iter().any(|write| {
            let is_near = write.begin.at + LINGERS >= before.begin.at;
            write.begin.n < end.n && is_near && lasts_beyond(write, before.since)
        });
        // What is not kept, or an error, takes what was there with it.
        let is_replaced = earlier.iter().any(|other| {
            let between = other.begin.n > before.begin.n && other.by == load.by;
            between && matches!(other.answer, Answer::Value(_) | Answer::Nothing) && !other.is_kept
        });
        if !is_fresh || is_capped || is_passed || is_replaced || self.is_separated(before, load) {
            return Ok(());
        }
        Err(format!("P1: loaded again while it was fresh:\n  {before:?}\n  {load:?}"))
    }

    /// P1 and P5: while nothing is wrong, nobody but the owner loads; not after an error of its loader either.
    fn no_fallback_without_a_fault(&self, load: &Source, reason: LoadReason, _: &[&Source]) -> Result<(), String> {
        if reason == LoadReason::Fallback && load.is_calm {
            return Err(format!("P1: a node loads what it does not own, and nothing is wrong:\n  {load:?}"));
        }
        Ok(())
    }

    /// The beginning of the last write that all had been told when this get began: nothing from before it may be seen.
    fn floor(&self, get: &Get) -> u64 {
        let over = |write: &&&Write| write.is_of_all && write.end.is_some_and(|end| end.n < get.begin.n);
        self.writes.iter().filter(over).map(|write| write.begin.n).max().unwrap_or(0)
    }

    /// P9, the ends of values, and the reasons of errors.
    fn may_see(&self, get: &Get, end: Moment, seen: Answer, floor: u64) -> Result<(), String> {
        match seen {
            Answer::Closed => Ok(()),
            Answer::Value(number) => self.may_see_value(get, number, floor),
            Answer::Nothing => {
                let found = |source: &&&Source| source.answer == Answer::Nothing && source.begin.n < end.n;
                match self.sources.iter().filter(found).any(|source| is_after(source, floor)) {
                    true => Ok(()),
                    false => {
                        Err(format!("P9: nothing was found before the write of {floor}, not after it:\n  {get:?}"))
                    }
                }
            }
            Answer::Failed => {
                let failed = |source: &&&Source| {
                    let has_failed = matches!(source.answer, Answer::Failed | Answer::TimedOut);
                    let overlaps = source.end.is_none_or(|over| over.at + ON_ITS_WAY >= get.begin.at);
                    has_failed && overlaps && source.begin.n < end.n
                };
                match self.sources.iter().any(|source| failed(&source)) {
                    true => Ok(()),
                    false => Err(format!("P4: an error, and no load that failed:\n  {get:?}")),
                }
            }
            Answer::TimedOut => {
                // Those without patience end by their own deadline; others when the load has run into its own.
                let hung = |source: &&&Source| {
                    let overlaps = source.end.is_none_or(|over| over.at + ON_ITS_WAY >= get.begin.at);
                    source.answer == Answer::TimedOut && overlaps && source.begin.n < end.n
                };
                match get.deadline < PATIENT || self.sources.iter().any(|source| hung(&source)) {
                    true => Ok(()),
                    false => Err(format!("P3: timed out, and no load has hung:\n  {get:?}")),
                }
            }
        }
    }

    fn may_see_value(&self, get: &Get, number: u64, floor: u64) -> Result<(), String> {
        let Some(source) = self.sources.iter().find(|source| source.begin.n == number) else {
            return Err(format!("nobody has loaded or set that value of this key:\n  {get:?}"));
        };
        if !is_after(source, floor) {
            let write = self.writes.iter().find(|write| write.begin.n == floor);
            return Err(format!(
                "P9: a value from before a write that had returned:\n  {source:?}\n  {write:?}\n  {get:?}"
            ));
        }
        let Some(end) = source.end.filter(|_| source.origin != Origin::Set) else { return Ok(()) };
        let lasts = match (source.is_kept, self.scenario.time_to_live) {
            (false, _) => Duration::ZERO,
            (true, None) => return Ok(()),
            (true, Some(lasts)) => lasts + self.scenario.stale_while_revalidate,
        };
        match get.begin.at <= end.at + lasts + ON_ITS_WAY {
            true => Ok(()),
            false => Err(format!("P10: a value that has expired:\n  {source:?}\n  {get:?}")),
        }
    }
}
