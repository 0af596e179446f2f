//! Load: a closed loop of callers that wait for each get, and a paced stream of gets that does not wait.

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

use crate::{Result, machine::Used, targets::Target};

/// Figures of one measurement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Answered gets per second.
    pub per_second: f64,
    /// Median latency of a get in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency.
    pub p99_us: f64,
    /// 99.9th percentile of the latency.
    pub p999_us: f64,
    /// Longest latency.
    pub max_us: f64,
    /// Number of gets that failed.
    pub errors: u64,
    /// Processor time of the client for each get, in nanoseconds.
    pub client_ns: f64,
    /// Processor time of the server for each get, in nanoseconds.
    pub server_ns: f64,
    /// Number of times that the client slept and was woken, for each get.
    pub client_wakes: f64,
    /// Number of times that the server slept and was woken, for each get.
    pub server_wakes: f64,
}

/// Plan of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of tasks that make one get after another.
    pub callers: usize,
    /// Time before the figures are counted.
    pub warm_up: Duration,
    /// Time in which the figures are counted.
    pub time: Duration,
    /// Number of sets in 100 operations.
    pub sets_percent: usize,
    /// Bytes of a value that is set.
    pub set_bytes: usize,
    /// Process id of the server, for its processor time.
    pub server: u32,
}

/// Upper bound of the histogram. No get takes longer than its deadline.
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

/// Measures a closed loop: each of `plan.callers` callers has keys of its own, so that no two get one key at the same
/// time.
///
/// # Errors
/// An error if the resources of a process cannot be read.
pub async fn closed<C: Target>(target: &Arc<C>, keys: &Arc<[Arc<str>]>, plan: Plan) -> Result<Figures> {
    let (counts, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    // All callers share one histogram, because one for each would take the caches from the code under test.
    let times = Arc::new(Mutex::new(histogram()));
    let mut callers = JoinSet::new();
    for caller in 0..plan.callers {
        let (target, keys) = (Arc::clone(target), Arc::clone(keys));
        let (counts, ends, times) = (Arc::clone(&counts), Arc::clone(&ends), Arc::clone(&times));
        callers.spawn(async move {
            let value = vec![b'w'; plan.set_bytes];
            let (mut errors, mut n) = (0_u64, 0_usize);
            let mut begun = Instant::now();
            for key in keys.iter().skip(caller).step_by(plan.callers).cycle() {
                n += 1;
                let done = match (n * 37 + caller) % 100 < plan.sets_percent {
                    true => target.set(caller, key, &value).await,
                    false => target.get(caller, key).await.map(drop),
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
                    tokio::task::yield_now().await; // a get that is answered at once never waits
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

/// Measures a paced stream of `per_second` gets. Each get begins when it is due, whether earlier gets have ended or
/// not.
///
/// The time of a get that begins late is counted from the moment when the get was due.
///
/// # Errors
/// An error if the resources of a process cannot be read.
pub async fn paced<C: Target>(target: &Arc<C>, keys: &Arc<[Arc<str>]>, plan: Plan, per_second: f64) -> Result<Figures> {
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
            let (target, times, errors) = (Arc::clone(target), Arc::clone(&times), Arc::clone(&errors));
            let key = keys.get(begun_gets as usize % keys.len()).map(Arc::clone).unwrap_or_default();
            let caller = begun_gets as usize % plan.callers;
            let is_counted = before.is_some();
            tokio::spawn(async move {
                let done = target.get(caller, &key).await;
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
        tokio::task::yield_now().await; // a sleep takes 1 ms, so that gets would come in bursts
    }
    let (client, server) = before.ok_or("the measurement ended before its warm-up")?;
    let used = (Used::of_this_process()? - client, Used::of(plan.server)? - server);
    tokio::time::sleep(Duration::from_millis(200)).await; // time for the last gets to end
    let times = times.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(figures(&times, errors.load(Relaxed), plan.time, used.0, used.1))
}
