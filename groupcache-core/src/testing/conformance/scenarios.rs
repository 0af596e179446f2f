//! The scenarios of the conformance suite, the easiest first.
//!
//! Each scenario has a fresh source and a fresh provider. A scenario ends with `Stop::LeftOut` when the source cannot
//! do what it needs.

use std::time::Duration;

use tokio::time::Instant;

use crate::testing::conformance::{
    Cannot, Outcome, Report, Source, Timing,
    bench::{Bench, Seen, tasks_end},
    member,
};
use crate::{
    error::Error,
    identity::{Address, Incarnation, NodeState, PeerId},
    membership::provider::{Health, Me},
    runtime::clock,
};

/// Number of members that join at once in the scenario about storms.
const CROWD: u16 = 50;
/// Maximum number of complete sets within [`QUIET`] while the source is unchanged. A provider that polls its source
/// publishes each result.
const QUIET_SETS: u64 = 20;
/// Time during which a set must not change.
const QUIET: Duration = Duration::from_secs(1);

/// Number of inventions of a liar: more than a node takes.
const INVENTIONS: u16 = 2_200;
/// Time during which a flood of inventions must remove no member.
const FLOOD: Duration = Duration::from_secs(3);

/// Runs every scenario, each with a fresh source, and returns a report.
///
/// The time that this takes depends on the [`Timing`] of the source. The scenarios count the tasks of the tokio
/// runtime, so spawn little else in it meanwhile.
pub async fn conform<S: Source>(fresh: impl AsyncFn() -> S) -> Report {
    let mut report = Report::default();
    let all = &mut report;
    all.run("first set arrives in time with all members", &fresh, first_set).await;
    all.run("first set of an empty source is complete", &fresh, empty_source).await;
    all.run("joining member is listed", &fresh, join).await;
    all.run("leaving member is removed", &fresh, leave).await;
    all.run("crashed member is removed", &fresh, crash).await;
    all.run("new incarnation of an id replaces the earlier one", &fresh, new_incarnation).await;
    all.run("two addresses of a member are one peer", &fresh, dual_stack).await;
    all.run("garbage is ignored", &fresh, garbage).await;
    all.run("flood of inventions removes no member that is reached", &fresh, flood).await;
    all.run("false records of a member hide no true one", &fresh, false_records).await;
    all.run("source that is down removes no member and recovers", &fresh, outage).await;
    all.run("source that refuses removes no member and recovers", &fresh, refusal).await;
    all.run("source that is down at the start is not an empty source", &fresh, late_source).await;
    all.run("resolve request is answered, even by an equal set", &fresh, resolve_request).await;
    all.run("joins cause no storm of sets, and an unchanged source few sets", &fresh, storm).await;
    all.run("change of the announced node removes no member", &fresh, change_of_me).await;
    all.run("provider leaves in time with no task left", &fresh, leaving).await;
    all.run("provider leaves in time while the source is down", &fresh, leaving_in_an_outage).await;
    all.run("provider can be dropped at any time with no task left", &fresh, dropped).await;
    report
}

/// Reason why a scenario did not pass.
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

type ScenarioResult = Result<(), Stop>;

impl Report {
    /// Runs a scenario with a fresh source, and adds the outcome.
    async fn run<S: Source>(
        &mut self,
        name: &'static str,
        fresh: &impl AsyncFn() -> S,
        scenario: impl AsyncFnOnce(&mut S, Timing) -> ScenarioResult,
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

/// Adds members to the source, and starts a provider that lists them.
async fn start_with<S: Source>(source: &mut S, timing: Timing, members: u16) -> Result<(Vec<Me>, Bench), Stop> {
    let members = (0..members).map(member).collect::<Result<Vec<_>, _>>()?;
    for member in &members {
        source.join(member).await?;
    }
    let mut bench = Bench::start(source.provider())?;
    bench
        .until(timing.first_set, "a complete first set with all members", |s| s.is_complete() && s.has_all(&members))
        .await?;
    Ok((members, bench))
}

/// Ends a scenario that is not about the end of the provider.
async fn end(bench: Bench, timing: Timing) -> ScenarioResult {
    bench.leave(timing.leaving).await?;
    Ok(())
}

/// Ends the provider, and checks that no task of it is left.
async fn end_of_all(bench: Bench, timing: Timing) -> ScenarioResult {
    let tasks_before = bench.leave(timing.leaving).await?;
    Ok(tasks_end(tasks_before, timing.tasks).await?)
}

async fn first_set<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (_, bench) = start_with(source, timing, 3).await?;
    end(bench, timing).await
}

async fn empty_source<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    source.can_be_empty()?;
    source.mend(&[]).await;
    let mut bench = Bench::start(source.provider())?;
    let absent = member(1)?;
    bench.until(timing.first_set, "a complete set without members", |s| s.is_complete() && !s.has(&absent)).await?;
    end(bench, timing).await
}

async fn join<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (mut members, mut bench) = start_with(source, timing, 2).await?;
    let late = member(2)?;
    source.join(&late).await?;
    members.push(late);
    bench.until(timing.change, "the member that joined, and the others", |s| s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn leave<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (members, mut bench) = start_with(source, timing, 3).await?;
    let Some((gone, others)) = members.split_first() else { return Ok(()) };
    source.leave(gone).await?;
    bench
        .until(timing.change, "the others without the member that left", |s| !s.has(gone) && s.has_all(others))
        .await?;
    end(bench, timing).await
}

async fn crash<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (members, mut bench) = start_with(source, timing, 3).await?;
    let Some((gone, others)) = members.split_first() else { return Ok(()) };
    source.crash(gone).await?;
    // A node asks for a listed peer that it has lost the connection to.
    bench.ask_for([gone.id.clone()]);
    bench.until(timing.crash, "the others without the crashed member", |s| !s.has(gone) && s.has_all(others)).await?;
    end(bench, timing).await
}

async fn new_incarnation<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    source.knows_incarnations()?;
    let (members, mut bench) = start_with(source, timing, 2).await?;
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
    bench.until(timing.change, "one peer of that id, at the address of its new incarnation", is_new).await?;
    bench.throughout(QUIET, "the new incarnation stays", |s| is_new(s) && s.has_all(others)).await?;
    end(bench, timing).await
}

async fn dual_stack<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    source.knows_dual_stack()?;
    let (_, mut bench) = start_with(source, timing, 1).await?;
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

async fn garbage<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (mut members, mut bench) = start_with(source, timing, 2).await?;
    source.garbage().await?;
    bench.throughout(QUIET, "the members stay listed", |s| s.has_all(&members)).await?;
    members.push(member(2)?);
    // A source may need a repair before it can report a change.
    source.mend(&members).await;
    bench.until(timing.recovery, "the member that joined after the garbage", |s| s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn flood<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (members, mut bench) = start_with(source, timing, 3).await?;
    bench.reach(members.iter().map(|member| member.id.clone()));
    let mut lies = Vec::new();
    for number in 0..INVENTIONS {
        // Names before and after those of the members, because a full table may keep the first or the last of them.
        let name = if number % 2 == 0 { "invented" } else { "zz-invented" };
        lies.push(Me { id: PeerId::new(format!("{name}-{number}"))?, ..member(number)? });
    }
    source.lie(&lies).await?;
    bench.throughout(FLOOD, "the members that are reached stay listed", |s| s.has_all(&members)).await?;
    bench.ask();
    bench.throughout(QUIET, "they stay after a request to look again", |s| s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn false_records<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (members, mut bench) = start_with(source, timing, 2).await?;
    bench.reach(members.iter().map(|member| member.id.clone()));
    let dead = Address::new("127.0.99.2:7946")?;
    let lie = |of: &Me| Me { incarnation: Incarnation(u64::MAX), addresses: vec![dead.clone()], ..of.clone() };
    source.lie(&members.iter().map(lie).collect::<Vec<_>>()).await?;
    let has_true_address = |s: &Seen, member: &Me| {
        let mut entries = s.entries(member).into_iter();
        entries.any(|entry| member.addresses.iter().any(|address| entry.addresses().contains(address)))
    };
    let all_true = |s: &Seen| members.iter().all(|member| has_true_address(s, member));
    bench.throughout(FLOOD, "the true address of each member stays listed", all_true).await?;
    end(bench, timing).await
}

async fn outage<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (members, bench) = start_with(source, timing, 3).await?;
    source.fail().await?;
    recovery(source, timing, members, bench).await
}

async fn refusal<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (members, bench) = start_with(source, timing, 3).await?;
    source.refuse().await?;
    recovery(source, timing, members, bench).await
}

async fn recovery<S: Source>(source: &mut S, timing: Timing, mut members: Vec<Me>, mut bench: Bench) -> ScenarioResult {
    bench.ask();
    bench
        .throughout(timing.outage, "all members stay listed while the source is down", |s| s.has_all(&members))
        .await?;
    if !matches!(bench.health, Some(Health::Stale(_))) {
        return Err(Stop::Failed(format!(
            "the provider must report that it is stale, and its health is {:?}",
            bench.health
        )));
    }
    members.push(member(3)?);
    source.mend(&members).await;
    bench.until(timing.recovery, "the member that joined meanwhile", |s| s.has_all(&members)).await?;
    // A provider that announces nothing (a list) is Connected at once, others when the source answers again.
    let is_well = |bench: &mut Bench| {
        bench.seen();
        bench.health == Some(Health::Connected)
    };
    let end_at = clock::deadline(timing.recovery);
    while !is_well(&mut bench) {
        if Instant::now() > end_at {
            return Err(Stop::Failed(format!(
                "the source has recovered, and the health of the provider is {:?}",
                bench.health
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    end(bench, timing).await
}

async fn late_source<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    source.fail().await?;
    let mut bench = Bench::start(source.provider())?;
    bench.throughout(timing.outage, "no complete set of a source that does not answer", |s| !s.is_complete()).await?;
    let members = [member(0)?, member(1)?];
    source.mend(&members).await;
    let limit = timing.recovery + timing.first_set;
    bench.until(limit, "a complete set once the source answers", |s| s.is_complete() && s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn resolve_request<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    source.can_be_asked()?;
    let (members, mut bench) = start_with(source, timing, 2).await?;
    let before = bench.seen().0.count;
    bench.ask();
    let limit = timing.change + timing.first_set;
    bench.until(limit, "one more complete set", |s| s.0.count > before && s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn storm<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (mut members, mut bench) = start_with(source, timing, 2).await?;
    let before = bench.seen().0.count;
    for number in 2..2 + CROWD {
        let late = member(number)?;
        source.join(&late).await?;
        members.push(late);
    }
    bench.until(timing.change.saturating_mul(3), "all members that joined", |s| s.has_all(&members)).await?;
    let after = bench.seen().0.count;
    if after - before > u64::from(CROWD) + QUIET_SETS {
        return Err(Stop::Failed(format!("{} sets for {CROWD} joins", after - before)));
    }
    let still = |s: &Seen| s.has_all(&members) && s.0.count - after <= QUIET_SETS;
    bench.throughout(QUIET, "at most 20 sets in a second without change", still).await?;
    end(bench, timing).await
}

async fn change_of_me<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (members, mut bench) = start_with(source, timing, 2).await?;
    bench.change_me(|me| me.state = NodeState::Draining);
    bench.change_me(|me| me.incarnation.0 += 1);
    bench.throughout(QUIET, "all members stay listed", |s| s.has_all(&members)).await?;
    end(bench, timing).await
}

async fn leaving<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (_, bench) = start_with(source, timing, 3).await?;
    end_of_all(bench, timing).await?;
    // The provider must leave in time before the first answer of its source, too.
    end_of_all(Bench::start(source.provider())?, timing).await
}

async fn leaving_in_an_outage<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (_, mut bench) = start_with(source, timing, 2).await?;
    source.fail().await?;
    bench.throughout(Duration::from_millis(300), "a set", Seen::is_complete).await?;
    end_of_all(bench, timing).await?;
    let mut bench = Bench::start(source.provider())?;
    bench.throughout(Duration::from_millis(300), "no set", |s| !s.is_complete()).await?;
    end_of_all(bench, timing).await
}

async fn dropped<S: Source>(source: &mut S, timing: Timing) -> ScenarioResult {
    let (_, bench) = start_with(source, timing, 2).await?;
    bench.drop_provider(timing.tasks).await?;
    for pause in [0, 1, 5, 25, 100] {
        let bench = Bench::start(source.provider())?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        bench.drop_provider(timing.tasks).await?;
    }
    Ok(())
}
