//! Oracle of the model test: the promises, each as one check of all events of a key.
//!
//! Nothing is simulated. A number tells which event came first, and each check errs in favour of the cache only by the
//! time between an action of the cache and the moment in which the history could record it.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::loader::LoadReason;

use super::history::{Fresh, Get, Log, Moment, Origin, Outcome, Source, Write};

/// Ages of a group, and properties of the place where it runs.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub time_to_live: Option<Duration>,
    pub negative: Option<Duration>,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    pub refresh_ahead: Duration,
    /// Whether no entry is evicted for want of room.
    pub is_roomy: bool,
    /// Whether all nodes have one view and reach each other.
    pub do_views_agree: bool,
    /// Whether nodes may hold replicas of values that other nodes own.
    pub has_replicas: bool,
    /// Maximum time after the end of a load in which a new get may still join its flight: coarse time on one node, the
    /// network between nodes.
    pub late: Duration,
}

/// Maximum age of the coarse time.
const EARLY: Duration = Duration::from_millis(20);

/// Time for which an old value is still served after a load has failed.
const SERVED_ON: Duration = Duration::from_secs(1);

impl Rules {
    /// Returns the freshness of a value without a time to live of its own.
    pub fn of_values(&self) -> Fresh {
        self.time_to_live.map_or(Fresh::Forever, Fresh::For)
    }

    /// Returns the freshness of a negative entry.
    pub fn of_nothing(&self) -> Fresh {
        self.negative.map_or(Fresh::NotKept, Fresh::For)
    }

    /// Returns for how long the outcome is served, and for how long it is kept for the case of errors.
    fn served(&self, source: &Source) -> (Duration, Duration) {
        match (source.fresh, source.outcome) {
            (Fresh::NotKept, _) => (Duration::ZERO, Duration::ZERO),
            (Fresh::Forever, _) => (Duration::MAX, Duration::MAX),
            (Fresh::For(fresh), Outcome::Value(_)) => {
                let served = fresh + self.stale_while_revalidate;
                (served, served.max(fresh + self.stale_if_error))
            }
            (Fresh::For(fresh), _) => (fresh, fresh),
        }
    }
}

/// Events of one key.
struct KeyEvents<'a> {
    rules: &'a Rules,
    /// Loads and sets, in the order of their beginnings.
    sources: Vec<&'a Source>,
    writes: Vec<&'a Write>,
    all_writes: &'a [Write],
}

/// Judges a history.
///
/// # Errors
///
/// The promise that is broken, and the events that break it.
pub fn judge(log: &Log, rules: &Rules) -> Result<(), String> {
    let mut gets: BTreeMap<&str, Vec<&Get>> = BTreeMap::new();
    for get in &log.gets {
        gets.entry(&get.key).or_default().push(get);
    }
    let keys = gets.keys().copied().chain(log.sources.iter().map(|source| source.key.as_str()));
    for key in keys.collect::<std::collections::BTreeSet<_>>() {
        let events = KeyEvents {
            rules,
            sources: log.sources.iter().filter(|source| source.key == key).collect(),
            writes: log.writes.iter().filter(|write| write.is_of(key)).collect(),
            all_writes: &log.writes,
        };
        for (at, source) in events.sources.iter().enumerate() {
            if matches!(source.origin, Origin::Load(_)) {
                events.check_single_load(source, &events.sources[..at])?;
                events.check_no_needless_load(source, &events.sources[..at])?;
            }
        }
        for get in gets.get(key).into_iter().flatten() {
            events.check_deadline(get)?;
            events.check_outcome(get)?;
        }
    }
    Ok(())
}

impl KeyEvents<'_> {
    /// Returns whether a write may have come between the beginnings of two flights: it was called before the second
    /// loader was, and did not return before the first flight can have begun.
    fn is_separated(&self, first: &Source, second: &Source) -> bool {
        let own = |write: &Write| first.origin == Origin::Set && write.begin.n == first.begin.n;
        let between = |write: &Write| write.begin.n < second.begin.n && write.end.is_none_or(|end| end.n > first.since);
        self.writes.iter().any(|write| between(write) && !own(write))
    }

    /// Checks P1, and P2 for loads of one node: two loads of a key do not run at once unless a write separates them.
    fn check_single_load(&self, load: &Source, earlier: &[&Source]) -> Result<(), String> {
        let by_owners = |one: &Source| one.origin != Origin::Load(LoadReason::Fallback) && self.rules.do_views_agree;
        let running = earlier
            .iter()
            .filter(|other| other.origin != Origin::Set && other.end.is_none_or(|end| end.n > load.begin.n));
        for other in running {
            let is_one_flight = other.node == load.node || (by_owners(other) && by_owners(load));
            if is_one_flight && !self.is_separated(other, load) {
                return Err(format!(
                    "P1 and P2: two loads run at once without a write between them:\n{other:?}\n{load:?}"
                ));
            }
        }
        Ok(())
    }

    /// Checks the rest of P1: a fresh outcome is not loaded again unless a write separates the loads.
    fn check_no_needless_load(&self, load: &Source, earlier: &[&Source]) -> Result<(), String> {
        // The last load or set with a value or with nothing. An outcome that is not kept leaves no entry.
        let has_outcome = |other: &&&Source| {
            matches!(other.outcome, Outcome::Value(_) | Outcome::Nothing)
                && other.end.is_some_and(|end| end.n < load.begin.n)
        };
        let Some(before) = earlier.iter().rfind(has_outcome) else { return Ok(()) };
        let (Some(end), Origin::Load(reason)) = (before.end, load.origin) else { return Ok(()) };
        if !self.rules.is_roomy || !self.rules.do_views_agree || reason == LoadReason::Fallback {
            return Ok(());
        }
        let kept_at = if before.origin == Origin::Set { before.begin.at } else { end.at };
        let lasts = match (reason, before.fresh) {
            (LoadReason::Refresh, Fresh::For(fresh)) => fresh - self.rules.refresh_ahead.min(fresh / 2),
            _ => self.rules.served(before).0,
        };
        let is_over = before.fresh == Fresh::NotKept || load.begin.at + EARLY >= kept_at.saturating_add(lasts);
        // Keys share stripes, so that a write of any key may be the reason why the first outcome was not cached.
        let may_be_detached = |write: &Write| write.begin.n < end.n && write.end.is_none_or(|end| end.n > before.since);
        let own = |write: &Write| before.origin == Origin::Set && write.begin.n == before.begin.n;
        if is_over || self.is_separated(before, load) || self.all_writes.iter().any(|w| may_be_detached(w) && !own(w)) {
            return Ok(());
        }
        Err(format!("P1: a fresh outcome was loaded again:\n{before:?}\n{load:?}"))
    }

    /// Checks P3: a get ends by its deadline.
    fn check_deadline(&self, get: &Get) -> Result<(), String> {
        let took = get.end.at.saturating_sub(get.begin.at);
        if took <= get.deadline + self.rules.late { Ok(()) } else { Err(format!("P3: the get took {took:?}: {get:?}")) }
    }

    /// Checks P9 and freshness: some source explains the outcome of the get.
    fn check_outcome(&self, get: &Get) -> Result<(), String> {
        // The last beginning of the writes that had returned when the get began: no older outcome may be returned.
        let over = |write: &&&Write| write.end.is_some_and(|end| end.n < get.begin.n);
        let floor = self.writes.iter().filter(over).map(|write| write.begin.n).max().unwrap_or(0);
        let sources = self.sources.iter().filter(|source| source.outcome == get.seen);
        let mut sources = sources.filter(|source| source.begin.n < get.end.n);
        if let Outcome::Value(number) = get.seen {
            // "Unchanged" does not make a value younger, because it is as old as the load that brought it.
            let Some(first) = self.sources.iter().find(|source| source.begin.n == number) else {
                return Err(format!("this value of the key was never loaded or set: {get:?}"));
            };
            if !is_after(first, floor) {
                return Err(format!(
                    "P9: the value is older than the write of {floor}, which had returned:\n{first:?}\n{get:?}"
                ));
            }
        }
        let took = get.end.at.saturating_sub(get.begin.at);
        let newest = self.newest_known(get);
        let by_itself = get.seen == Outcome::TimedOut && took + EARLY >= get.deadline;
        let may_have_come_from =
            |source: &&Source| is_after(source, floor) && is_after(source, newest) && self.is_served(source, get);
        if by_itself || sources.clone().any(may_have_come_from) {
            return Ok(());
        }
        let last = sources.next_back();
        Err(format!(
            "no source explains this outcome after the write of {floor} and the load of {newest}:\n\
             {get:?}\n{last:?}"
        ))
    }

    /// Returns the beginning of the last load that had ended with a value or with nothing when the get began.
    ///
    /// Cached or not, from then on no older outcome is returned. Replicas at other nodes are not updated by such a
    /// load, so that the result is 0 where there are replicas.
    fn newest_known(&self, get: &Get) -> u64 {
        let may_be_detached = |load: &Source, end: u64| {
            self.all_writes.iter().any(|write| write.begin.n < end && write.end.is_none_or(|end| end.n > load.since))
        };
        let known = self.sources.iter().filter(|source| {
            let has_outcome =
                matches!(source.outcome, Outcome::Value(_) | Outcome::Nothing) && source.origin != Origin::Set;
            let before = |end: Moment| end.at + EARLY < get.begin.at && !may_be_detached(source, end.n);
            has_outcome && source.end.is_some_and(before)
        });
        if self.rules.has_replicas { 0 } else { known.map(|load| load.begin.n).max().unwrap_or(0) }
    }

    /// Returns whether the outcome of this source may be returned to a get, by the time at which the get began.
    fn is_served(&self, source: &Source, get: &Get) -> bool {
        let Some(end) = source.end else { return true };
        let (served, kept) = self.rules.served(source);
        let is_before = |lasts: Duration| get.begin.at <= end.at.saturating_add(lasts).saturating_add(self.rules.late);
        // A load that failed while the get waited, or so shortly before it that the old value is still served.
        let failed = |load: &&Source| {
            let has_failed = matches!(load.outcome, Outcome::Failed | Outcome::TimedOut);
            let is_near = |at: Duration| get.begin.at <= at + SERVED_ON + self.rules.late && at <= get.end.at + EARLY;
            has_failed && load.end.is_some_and(|end| is_near(end.at))
        };
        is_before(served)
            || !self.rules.stale_if_error.is_zero()
                && is_before(kept)
                && self.sources.iter().copied().any(|s| failed(&s))
    }
}

/// Returns whether the outcome of a source may be returned after the writes up to this number.
///
/// Of two concurrent writes either may win, so that a set is older than another write only if it had returned when that
/// write was called.
fn is_after(source: &Source, floor: u64) -> bool {
    match source.origin {
        Origin::Load(_) => source.begin.n >= floor,
        Origin::Set => source.end.is_none_or(|end| end.n >= floor),
    }
}
