//! Load: callers that ask in a circle, and callers that come when they come.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::Instant};

use crate::{Result, contestants::Contestant, machine::Used};

/// What a measurement of some seconds came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Gets a second that were answered.
    pub per_second: f64,
    /// Microseconds until the answer, of half of the gets.
    pub p50_us: f64,
    /// Of 99 in 100.
    pub p99_us: f64,
    /// Of 999 in 1,000.
    pub p999_us: f64,
    /// Of all.
    pub max_us: f64,
    /// Gets that failed.
    pub errors: u64,
    /// Nanoseconds of processor that the client took for each get.
    pub client_ns: f64,
    /// And the server.
    pub server_ns: f64,
    /// How often the client slept and was woken, for each get.
    pub client_wakes: f64,
    /// And the server.
    pub server_wakes: f64,
}

/// How the gets are made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tasks that ask one get after the other.
    pub callers: usize,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub time: Duration,
    /// Of 100 operations, so many are sets.
    pub sets_percent: usize,
    /// How many bytes they set.
    pub set_bytes: usize,
    /// Process of the server, for what it used.
    pub server: u32,
}

/// The longest time that is told apart: no get takes longer than its deadline.
const LONGEST_NS: u64 = 60_000_000_000;

#[expect(clippy::unwrap_used, reason = "these bounds and three digits are within what it takes")]
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST_NS, 3).unwrap()
}

fn record(times: &Mutex<Histogram<u64>>, time: Duration) {
    times.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(time.as_nanos() as u64);
}

fn figures(times: &Histogram<u64>, errors: u64, counted: Duration, client: Used, server: Used) -> Figures {
    let micros = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    let each = |total: u64| total as f64 / times.len().max(1) as f64;
    Figures {
        per_second: times.len() as f64 / counted.as_secs_f64(),
        p50_us: micros(0.5),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
        max_us: times.max() as f64 / 1000.0,
        errors,
        client_ns: each(client.nanoseconds),
        server_ns: each(server.nanoseconds),
        client_wakes: each(client.wakes),
        server_wakes: each(server.wakes),
    }
}

/// So many callers, each with keys of its own, so that no two ask for the same at once.
///
/// # Errors
/// When what a process used cannot be read.
pub async fn closed<C: Contestant>(contestant: &Arc<C>, keys: &Arc<[Arc<str>]>, plan: Plan) -> Result<Figures> {
    let (counts, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    // One for all: one each would not leave the caches to what is measured.
    let times = Arc::new(Mutex::new(histogram()));
    let mut callers = JoinSet::new();
    for caller in 0..plan.callers {
        let (contestant, keys) = (Arc::clone(contestant), Arc::clone(keys));
        let (counts, ends, times) = (Arc::clone(&counts), Arc::clone(&ends), Arc::clone(&times));
        callers.spawn(async move {
            let value = vec![b'w'; plan.set_bytes];
            let (mut errors, mut n) = (0_u64, 0_usize);
            let mut begun = Instant::now();
            for key in keys.iter().skip(caller).step_by(plan.callers).cycle() {
                n += 1;
                let done = match (n * 37 + caller) % 100 < plan.sets_percent {
                    true => contestant.set(caller, key, &value).await,
                    false => contestant.get(caller, key).await.map(drop),
                };
                let now = Instant::now();
                if counts.load(Relaxed) {
                    match done {
                        Ok(()) => record(&times, now - begun),
                        Err(_) => errors += 1,
                    }
                }
                begun = now;
                if ends.load(Relaxed) {
                    break;
                }
                if n.is_multiple_of(128) {
                    tokio::task::yield_now().await; // what is answered at once never waits
                }
            }
            errors
        });
    }
    tokio::time::sleep(plan.warm_up).await;
    let before = (Used::of_this_process()?, Used::of(plan.server)?);
    counts.store(true, Relaxed);
    let begun = Instant::now();
    tokio::time::sleep(plan.time).await;
    let counted = begun.elapsed();
    counts.store(false, Relaxed);
    let after = (Used::of_this_process()?, Used::of(plan.server)?);
    ends.store(true, Relaxed);
    let errors = callers.join_all().await.into_iter().sum();
    let times = times.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(figures(&times, errors, counted, after.0 - before.0, after.1 - before.1))
}

/// So many gets a second, each of which begins when it is due, whatever became of those before it.
///
/// A get that is begun late is late: its time is counted from when it was due.
///
/// # Errors
/// When what a process used cannot be read.
pub async fn paced<C: Contestant>(
    contestant: &Arc<C>,
    keys: &Arc<[Arc<str>]>,
    plan: Plan,
    per_second: f64,
) -> Result<Figures> {
    let times = Arc::new(Mutex::new(histogram()));
    let (errors, counted) = (Arc::<AtomicU64>::default(), plan.warm_up + plan.time);
    let begun = Instant::now();
    let (mut begun_gets, mut before) = (0_u64, None);
    loop {
        let now = begun.elapsed();
        if now >= plan.warm_up && before.is_none() {
            before = Some((Used::of_this_process()?, Used::of(plan.server)?));
        }
        if now >= counted {
            break;
        }
        let due = (now.as_secs_f64() * per_second) as u64;
        while begun_gets < due {
            let at = begun + Duration::from_secs_f64(begun_gets as f64 / per_second);
            let (contestant, times, errors) = (Arc::clone(contestant), Arc::clone(&times), Arc::clone(&errors));
            let key = keys.get(begun_gets as usize % keys.len()).map(Arc::clone).unwrap_or_default();
            let caller = begun_gets as usize % plan.callers;
            let is_counted = before.is_some();
            tokio::spawn(async move {
                let done = contestant.get(caller, &key).await;
                match done {
                    Ok(_) if is_counted => {
                        record(&times, at.elapsed());
                    }
                    Ok(_) => {}
                    Err(_) => drop(errors.fetch_add(1, Relaxed)),
                }
            });
            begun_gets += 1;
        }
        tokio::task::yield_now().await; // sleeps are of a millisecond: it would come in bursts
    }
    let (client, server) = before.ok_or("it ended before it had begun")?;
    let used = (Used::of_this_process()? - client, Used::of(plan.server)? - server);
    tokio::time::sleep(Duration::from_millis(200)).await; // what is still under way
    let times = times.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(figures(&times, errors.load(Relaxed), plan.time, used.0, used.1))
}
