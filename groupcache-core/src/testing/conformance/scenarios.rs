//! The scenarios, in the order in which a source is likeliest to pass them.

use std::time::Duration;

use tokio::time::Instant;

use crate::testing::conformance::{
    Cannot, Outcome, Report, Source, Timing,
    bench::{Bench, Seen, tasks_end},
    member,
};
use crate::{
    error::Error,
    identity::{Address, Incarnation, NodeState},
    membership::provider::{Health, Me},
    runtime::clock,
};

/// How many members join at once in the scenario about storms.
const CROWD: u16 = 50;
/// Complete sets that a quiet source may cause in [`QUIET`]: a provider that asks its source again and again
/// publishes what it finds.
const QUIET_SETS: u64 = 20;
const QUIET: Duration = Duration::from_secs(1);

/// Runs every scenario against a fresh source each, one after the other, and tells how they went.
///
/// It takes as long as the source's [`Timing`] makes it, and needs a Tokio runtime in which little else is spawned:
/// it counts tasks.
pub async fn conform<S: Source>(fresh: impl AsyncFn() -> S) -> Report {
    let mut report = Report::default();
    let all = &mut report;
    all.run("the first set comes in time, with everyone in it", &fresh, first_set).await;
    all.run("with nobody there the first set says so", &fresh, nobody).await;
    all.run("who joins is listed", &fresh, join).await;
    all.run("who leaves is not", &fresh, leave).await;
    all.run("who crashes is not", &fresh, crash).await;
    all.run("a new life of an id is the same peer", &fresh, new_life).await;
    all.run("two addresses of a member are one peer", &fresh, dual_stack).await;
    all.run("garbage is ignored", &fresh, garbage).await;
    all.run("a source that is down takes nobody away, and recovers", &fresh, outage).await;
    all.run("a source that refuses takes nobody away, and recovers", &fresh, refusal).await;
    all.run("a source that is down at the start is not a source without members", &fresh, late_source).await;
    all.run("a question is answered, even by the same set", &fresh, question).await;
    all.run("a crowd causes no storm of sets, and quiet none at all", &fresh, storm).await;
    all.run("a change of the node itself harms nothing", &fresh, change_of_me).await;
    all.run("it leaves in time, with no task left", &fresh, leaving).await;
    all.run("it leaves in time while the source is down", &fresh, leaving_in_an_outage).await;
    all.run("it can be dropped at any time, with no task left", &fresh, dropped).await;
    report
}

/// Why a scenario did not end well.
enum Stop {
    LeftOut(&'static str),
    Failed(String),
}

impl From<Cannot> for Stop {
    fn from(Cannot(why): Cannot) -> Self {
        Self::LeftOut(why)
    }
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

type Ended = Result<(), Stop>;

impl Report {
    async fn run<S: Source>(
        &mut self,
        name: &'static str,
        fresh: &impl AsyncFn() -> S,
        scenario: impl AsyncFnOnce(&mut S, Timing) -> Ended,
    ) {
        let begun = Instant::now();
        let mut source = fresh().await;
        let timing = source.timing();
        let outcome = match scenario(&mut source, timing).await {
            Ok(()) => Outcome::Passed(begun.elapsed()),
            Err(Stop::LeftOut(why)) => Outcome::LeftOut(why),
            Err(Stop::Failed(what)) => Outcome::Failed(what),
        };
        self.outcomes.push((name, outcome));
    }
}

/// A source with so many members, and a provider that has listed them.
async fn settled<S: Source>(source: &mut S, timing: Timing, members: u16) -> Result<(Vec<Me>, Bench), Stop> {
    let members = (0..members).map(member).collect::<Result<Vec<_>, _>>()?;
    for member in &members {
        source.join(member).await?;
    }
    let mut bench = Bench::start(source.provider())?;
    bench
        .until(timing.first_set, "a complete first set with everyone", |s| s.is_complete() && s.has_all(&members))
        .await?;
    Ok((members, bench))
}

/// The end of each scenario that is not about the end.
async fn end(bench: Bench, timing: Timing) -> Ended {
    bench.leave(timing.leaving).await?;
    Ok(())
}

/// The end of the others: nothing of the provider may be left.
async fn end_of_all(bench: Bench, timing: Timing) -> Ended {
    let tasks_before = bench.leave(timing.leaving).await?;
    Ok(tasks_end(tasks_before, timing.tasks).await?)
}

async fn first_set<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (_, bench) = settled(source, timing, 3).await?;
    end(bench, timing).await
}

async fn nobody<S: Source>(source: &mut S, timing: Timing) -> Ended {
    source.can_be_empty()?;
    source.mend(&[]).await;
    let mut bench = Bench::start(source.provider())?;
    let stranger = member(1)?;
    bench.until(timing.first_set, "a complete set of nobody", |s| s.is_complete() && !s.has(&stranger)).await?;
    end(bench, timing).await
}

async fn join<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (mut members, mut bench) = settled(source, timing, 2).await?;
    let late = member(2)?;
    source.join(&late).await?;
    members.push(late);
    bench.until(timing.change, "the one that joined, and the others", |s| s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn leave<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (members, mut bench) = settled(source, timing, 3).await?;
    let Some((gone, others)) = members.split_first() else { return Ok(()) };
    source.leave(gone).await?;
    bench.until(timing.change, "the others without the one that left", |s| !s.has(gone) && s.has_all(others)).await?;
    end(bench, timing).await
}

async fn crash<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (members, mut bench) = settled(source, timing, 3).await?;
    let Some((gone, others)) = members.split_first() else { return Ok(()) };
    source.crash(gone).await?;
    // A node asks for a peer whose connection broke.
    bench.ask_for([gone.id.clone()]);
    bench.until(timing.crash, "the others without the one that crashed", |s| !s.has(gone) && s.has_all(others)).await?;
    end(bench, timing).await
}

async fn new_life<S: Source>(source: &mut S, timing: Timing) -> Ended {
    source.knows_incarnations()?;
    let (members, mut bench) = settled(source, timing, 2).await?;
    let Some((old, others)) = members.split_first() else { return Ok(()) };
    let address = Address::new("127.0.99.1:7947")?;
    let incarnation = Incarnation(old.incarnation.0 + 1_000_000);
    let new = Me { incarnation, addresses: vec![address.clone()], ..old.clone() };
    source.join(&new).await?;
    let is_new = |s: &Seen| {
        let entries = s.entries(&new);
        let is_one = matches!(entries.as_slice(), [one] if one.addresses.first() == Some(&address));
        is_one && entries.iter().all(|one| one.incarnation.is_none_or(|i| i == incarnation))
    };
    bench.until(timing.change, "one peer of that id, at the address of its new life", is_new).await?;
    bench.throughout(QUIET, "the new life stays", |s| is_new(s) && s.has_all(others)).await?;
    end(bench, timing).await
}

async fn dual_stack<S: Source>(source: &mut S, timing: Timing) -> Ended {
    source.knows_dual_stack()?;
    let (_, mut bench) = settled(source, timing, 1).await?;
    let mut dual = member(1)?;
    dual.addresses.push(Address::new("[fd00::1]:7946")?);
    source.join(&dual).await?;
    let is_one = |s: &Seen| {
        let entries = s.entries(&dual);
        matches!(entries.as_slice(), [one] if dual.addresses.iter().all(|a| one.addresses.contains(a)))
    };
    bench.until(timing.change, "one peer with both addresses", is_one).await?;
    end(bench, timing).await
}

async fn garbage<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (mut members, mut bench) = settled(source, timing, 2).await?;
    source.garbage().await?;
    bench.throughout(QUIET, "the members that are there stay listed", |s| s.has_all(&members)).await?;
    members.push(member(2)?);
    // A source may have to be mended before it can say anything new.
    source.mend(&members).await;
    bench.until(timing.recovery, "the one that joined after the garbage", |s| s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn outage<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (members, bench) = settled(source, timing, 3).await?;
    source.fail().await?;
    recovery(source, timing, members, bench).await
}

async fn refusal<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (members, bench) = settled(source, timing, 3).await?;
    source.refuse().await?;
    recovery(source, timing, members, bench).await
}

async fn recovery<S: Source>(source: &mut S, timing: Timing, mut members: Vec<Me>, mut bench: Bench) -> Ended {
    bench.ask();
    bench
        .throughout(timing.outage, "all members stay listed while the source is down", |s| s.has_all(&members))
        .await?;
    if !matches!(bench.health, Some(Health::Stale(_))) {
        return Err(Stop::Failed(format!("it must report that it is stale, and its health is {:?}", bench.health)));
    }
    members.push(member(3)?);
    source.mend(&members).await;
    bench.until(timing.recovery, "the one that joined meanwhile", |s| s.has_all(&members)).await?;
    // A source without the power to announce (a list) is Connected at once, others when they are heard again.
    let is_well = |bench: &mut Bench| {
        bench.seen();
        bench.health == Some(Health::Connected)
    };
    let end_at = clock::deadline(timing.recovery);
    while !is_well(&mut bench) {
        if Instant::now() > end_at {
            return Err(Stop::Failed(format!("well again, and its health is {:?}", bench.health)));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    end(bench, timing).await
}

async fn late_source<S: Source>(source: &mut S, timing: Timing) -> Ended {
    source.fail().await?;
    let mut bench = Bench::start(source.provider())?;
    bench.throughout(timing.outage, "no complete set of a source that does not answer", |s| !s.is_complete()).await?;
    let members = [member(0)?, member(1)?];
    source.mend(&members).await;
    let limit = timing.recovery + timing.first_set;
    bench.until(limit, "a complete set when it is there", |s| s.is_complete() && s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn question<S: Source>(source: &mut S, timing: Timing) -> Ended {
    source.can_be_asked()?;
    let (members, mut bench) = settled(source, timing, 2).await?;
    let before = bench.seen().0.count;
    bench.ask();
    let limit = timing.change + timing.first_set;
    bench.until(limit, "one more complete set", |s| s.0.count > before && s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn storm<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (mut members, mut bench) = settled(source, timing, 2).await?;
    let before = bench.seen().0.count;
    for number in 2..2 + CROWD {
        let late = member(number)?;
        source.join(&late).await?;
        members.push(late);
    }
    bench.until(timing.change.saturating_mul(3), "the whole crowd", |s| s.has_all(&members)).await?;
    let after = bench.seen().0.count;
    if after - before > u64::from(CROWD) + QUIET_SETS {
        return Err(Stop::Failed(format!("{} sets for {CROWD} joins", after - before)));
    }
    let still = |s: &Seen| s.has_all(&members) && s.0.count - after <= QUIET_SETS;
    bench.throughout(QUIET, "at most 20 sets in a second without change", still).await?;
    end(bench, timing).await
}

async fn change_of_me<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (members, mut bench) = settled(source, timing, 2).await?;
    bench.change_me(|me| me.state = NodeState::Draining);
    bench.change_me(|me| me.incarnation.0 += 1);
    bench.throughout(QUIET, "all members stay listed", |s| s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn leaving<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (_, bench) = settled(source, timing, 3).await?;
    end_of_all(bench, timing).await?;
    // Before it has had an answer, too.
    end_of_all(Bench::start(source.provider())?, timing).await
}

async fn leaving_in_an_outage<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (_, mut bench) = settled(source, timing, 2).await?;
    source.fail().await?;
    bench.throughout(Duration::from_millis(300), "a set", Seen::is_complete).await?;
    end_of_all(bench, timing).await?;
    let mut bench = Bench::start(source.provider())?;
    bench.throughout(Duration::from_millis(300), "no set", |s| !s.is_complete()).await?;
    end_of_all(bench, timing).await
}

async fn dropped<S: Source>(source: &mut S, timing: Timing) -> Ended {
    let (_, bench) = settled(source, timing, 2).await?;
    bench.drop_it(timing.tasks).await?;
    for pause in [0, 1, 5, 25, 100] {
        let bench = Bench::start(source.provider())?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        bench.drop_it(timing.tasks).await?;
    }
    Ok(())
}
