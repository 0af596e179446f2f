//! What a history may look like: the promises, each as one question to all that has happened to a key.
//!
//! Nothing is simulated. A number says what came first, and each question errs on the side of the cache only by the
//! time between what it did and what the history could see of it.

use std::{collections::BTreeMap, time::Duration};

use groupcache_core::LoadReason;

use super::history::{Answer, Fresh, Get, Log, Moment, Origin, Source, Write};

/// What a group was told about ages, and what is to be expected of the place where it runs.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub time_to_live: Option<Duration>,
    pub negative: Option<Duration>,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    pub refresh_ahead: Duration,
    /// Nothing has to leave for want of room.
    pub is_roomy: bool,
    /// All nodes have one view and reach each other.
    pub do_views_agree: bool,
    /// Nodes may have copies of what others own.
    pub has_copies: bool,
    /// How long after its end a load may still be what a new get waits for: coarse time here, a network elsewhere.
    pub late: Duration,
}

/// Coarse time is at most this old.
const EARLY: Duration = Duration::from_millis(20);

/// How long an old value is served on after a load has failed.
const SERVED_ON: Duration = Duration::from_secs(1);

impl Rules {
    /// How long a value is fresh of which its loader says nothing.
    pub fn of_values(&self) -> Fresh {
        self.time_to_live.map_or(Fresh::Forever, Fresh::For)
    }

    pub fn of_nothing(&self) -> Fresh {
        self.negative.map_or(Fresh::NotKept, Fresh::For)
    }

    /// For how long it is served, and for how long it is kept for errors.
    fn served(&self, source: &Source) -> (Duration, Duration) {
        match (source.fresh, source.answer) {
            (Fresh::NotKept, _) => (Duration::ZERO, Duration::ZERO),
            (Fresh::Forever, _) => (Duration::MAX, Duration::MAX),
            (Fresh::For(fresh), Answer::Value(_)) => {
                let served = fresh + self.stale_while_revalidate;
                (served, served.max(fresh + self.stale_if_error))
            }
            (Fresh::For(fresh), _) => (fresh, fresh),
        }
    }
}

/// All that happened to one key.
struct Life<'a> {
    rules: &'a Rules,
    /// In the order of their beginnings.
    sources: Vec<&'a Source>,
    writes: Vec<&'a Write>,
    all_writes: &'a [Write],
}

/// `Err` names the promise that was broken, and how.
pub fn judge(log: &Log, rules: &Rules) -> Result<(), String> {
    let mut gets: BTreeMap<&str, Vec<&Get>> = BTreeMap::new();
    for get in &log.gets {
        gets.entry(&get.key).or_default().push(get);
    }
    let keys = gets.keys().copied().chain(log.sources.iter().map(|source| source.key.as_str()));
    for key in keys.collect::<std::collections::BTreeSet<_>>() {
        let life = Life {
            rules,
            sources: log.sources.iter().filter(|source| source.key == key).collect(),
            writes: log.writes.iter().filter(|write| write.is_of(key)).collect(),
            all_writes: &log.writes,
        };
        for (at, source) in life.sources.iter().enumerate() {
            if matches!(source.origin, Origin::Load(_)) {
                life.one_load_at_once(source, &life.sources[..at])?;
                life.no_load_in_vain(source, &life.sources[..at])?;
            }
        }
        for get in gets.get(key).into_iter().flatten() {
            life.ended_in_time(get)?;
            life.may_see(get)?;
        }
    }
    Ok(())
}

impl Life<'_> {
    /// Whether a write may have come between the beginnings of two flights: it was called before the second loader was,
    /// and did not return before the first flight can have begun.
    fn is_separated(&self, first: &Source, second: &Source) -> bool {
        let own = |write: &Write| first.origin == Origin::Set && write.begin.n == first.begin.n;
        let between = |write: &Write| write.begin.n < second.begin.n && write.end.is_none_or(|end| end.n > first.since);
        self.writes.iter().any(|write| between(write) && !own(write))
    }

    /// P1, and P2 for loads of one node: two loads of a key do not run at once unless a write separates them.
    fn one_load_at_once(&self, load: &Source, earlier: &[&Source]) -> Result<(), String> {
        let by_owners = |one: &Source| one.origin != Origin::Load(LoadReason::Fallback) && self.rules.do_views_agree;
        let running = earlier
            .iter()
            .filter(|other| other.origin != Origin::Set && other.end.is_none_or(|end| end.n > load.begin.n));
        for other in running {
            let is_one_flight = other.node == load.node || (by_owners(other) && by_owners(load));
            if is_one_flight && !self.is_separated(other, load) {
                return Err(format!("P1 and P2: two loads at once, and no write between them:\n{other:?}\n{load:?}"));
            }
        }
        Ok(())
    }

    /// P1, the rest: what is fresh is not loaded again, unless a write came between.
    fn no_load_in_vain(&self, load: &Source, earlier: &[&Source]) -> Result<(), String> {
        // The last that said what there is; what is not kept leaves nothing behind.
        let has_said = |other: &&&Source| {
            matches!(other.answer, Answer::Value(_) | Answer::Nothing)
                && other.end.is_some_and(|end| end.n < load.begin.n)
        };
        let Some(before) = earlier.iter().rfind(has_said) else { return Ok(()) };
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
        // Keys share stripes: a write of any key may be why the first load was not kept.
        let is_passed = |write: &Write| write.begin.n < end.n && write.end.is_none_or(|end| end.n > before.since);
        let own = |write: &Write| before.origin == Origin::Set && write.begin.n == before.begin.n;
        if is_over || self.is_separated(before, load) || self.all_writes.iter().any(|w| is_passed(w) && !own(w)) {
            return Ok(());
        }
        Err(format!("P1: loaded again while it was fresh:\n{before:?}\n{load:?}"))
    }

    /// P3.
    fn ended_in_time(&self, get: &Get) -> Result<(), String> {
        let took = get.end.at.saturating_sub(get.begin.at);
        if took <= get.deadline + self.rules.late { Ok(()) } else { Err(format!("P3: it took {took:?}: {get:?}")) }
    }

    /// P9 and the ends of values: there is something from which the get may have what it was told.
    fn may_see(&self, get: &Get) -> Result<(), String> {
        // The last beginning of the writes that had returned when the get began: nothing from before it may be seen.
        let over = |write: &&&Write| write.end.is_some_and(|end| end.n < get.begin.n);
        let floor = self.writes.iter().filter(over).map(|write| write.begin.n).max().unwrap_or(0);
        let sources = self.sources.iter().filter(|source| source.answer == get.seen);
        let mut sources = sources.filter(|source| source.begin.n < get.end.n);
        if let Answer::Value(number) = get.seen {
            // "Unchanged" does not make a value younger: it is as old as the load that brought it.
            let Some(first) = self.sources.iter().find(|source| source.begin.n == number) else {
                return Err(format!("nobody ever loaded or set that value of this key: {get:?}"));
            };
            if !is_after(first, floor) {
                return Err(format!("P9: a write was called at {floor} and had returned:\n{first:?}\n{get:?}"));
            }
        }
        let took = get.end.at.saturating_sub(get.begin.at);
        let newest = self.newest_known(get);
        let by_itself = get.seen == Answer::TimedOut && took + EARLY >= get.deadline;
        let may_have_come_from =
            |source: &&Source| is_after(source, floor) && is_after(source, newest) && self.is_served(source, get);
        if by_itself || sources.clone().any(may_have_come_from) {
            return Ok(());
        }
        let last = sources.next_back();
        Err(format!(
            "nothing may be seen as this at that time, or after the write of {floor} and the load of {newest}:\n\
             {get:?}\n{last:?}"
        ))
    }

    /// The beginning of the last load that had said what there is, or that there is nothing, when the get began: kept or
    /// not, from then on nothing older is known. Copies on other nodes are not told.
    fn newest_known(&self, get: &Get) -> u64 {
        let is_passed = |load: &Source, end: u64| {
            self.all_writes.iter().any(|write| write.begin.n < end && write.end.is_none_or(|end| end.n > load.since))
        };
        let known = self.sources.iter().filter(|source| {
            let says = matches!(source.answer, Answer::Value(_) | Answer::Nothing) && source.origin != Origin::Set;
            let before = |end: Moment| end.at + EARLY < get.begin.at && !is_passed(source, end.n);
            says && source.end.is_some_and(before)
        });
        if self.rules.has_copies { 0 } else { known.map(|load| load.begin.n).max().unwrap_or(0) }
    }

    /// Whether a get may be told what this source has brought, by the time at which it began.
    fn is_served(&self, source: &Source, get: &Get) -> bool {
        let Some(end) = source.end else { return true };
        let (served, kept) = self.rules.served(source);
        let is_before = |lasts: Duration| get.begin.at <= end.at.saturating_add(lasts).saturating_add(self.rules.late);
        // A load that failed while the get waited, or so shortly before that the old value is served on.
        let failed = |load: &&Source| {
            let has_failed = matches!(load.answer, Answer::Failed | Answer::TimedOut);
            let is_near = |at: Duration| get.begin.at <= at + SERVED_ON + self.rules.late && at <= get.end.at + EARLY;
            has_failed && load.end.is_some_and(|end| is_near(end.at))
        };
        is_before(served)
            || !self.rules.stale_if_error.is_zero()
                && is_before(kept)
                && self.sources.iter().copied().any(|s| failed(&s))
    }
}

/// Whether what a source brought may be seen after the writes up to this number. Of two writes at once either may stand,
/// so that a set is older than another write only if it had returned when that was called.
fn is_after(source: &Source, floor: u64) -> bool {
    match source.origin {
        Origin::Load(_) => source.begin.n >= floor,
        Origin::Set => source.end.is_none_or(|end| end.n >= floor),
    }
}
