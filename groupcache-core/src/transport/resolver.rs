//! Resolver: looks up host names for all dials of this process.
//!
//! The system looks names up by a blocking call, which takes 10 to 30 s while the name servers are silent. The calls
//! therefore run on a few threads that no runtime waits for. Each name has one look-up at a time, which all callers
//! share, and a name that has been found stays known while its name servers are silent. Names that make trouble have at
//! most half of the threads, so that silent names delay no others.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

/// Maximum number of look-ups that run at the same time, for names that were found before, for names that are new, and
/// for names with a last look-up that failed or was slow. Each number includes the look-ups of the kinds after it.
const AT_ONCE: [usize; 3] = [8, 6, 4];

/// Maximum number of threads.
const MAX_THREADS: usize = AT_ONCE[0];

/// Time without work after which a thread ends.
const IDLE: Duration = Duration::from_secs(10);

/// Bytes of the stack of a thread: several times what the resolver of the C library takes.
const STACK_BYTES: usize = 512 << 10;

/// Maximum number of remembered names: the targets of two full peer sets.
const MAX_NAMES: usize = 4_096;

const TIMES: Times = Times {
    fresh: Duration::from_secs(5),
    failed: Duration::from_secs(2),
    stale: Duration::from_secs(600),
    slow: Duration::from_secs(1),
    patience: Duration::from_millis(100),
};

/// Times of a resolver.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Time for which found addresses are returned without a look-up.
    fresh: Duration,
    /// Time for which a failure is returned without a look-up.
    failed: Duration,
    /// Time for which found addresses are returned while look-ups fail or are slow.
    stale: Duration,
    /// Time from which on a look-up is slow.
    slow: Duration,
    /// Time that a caller with stale addresses waits for a look-up.
    patience: Duration,
}

type Addresses = Arc<[SocketAddr]>;
type Outcome = Result<Addresses, Arc<str>>;
type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Resolver of host names, with its threads and its cache.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Shared>);

struct Shared {
    // The lock of std and not that of the crate, because the threads are outside of every runtime and of the
    // interleaving checker.
    table: Mutex<Table>,
    work: Condvar,
    look_up: Box<LookUp>,
    times: Times,
}

#[derive(Default)]
struct Table {
    names: BTreeMap<Arc<str>, Entry>,
    /// Number of look-ups that run, by kind.
    running: [usize; AT_ONCE.len()],
    queued: usize,
    threads: usize,
    idle_threads: usize,
    /// Number of look-ups that were ever queued.
    last: u64,
}

/// Knowledge of a name.
struct Entry {
    state: State,
    /// Addresses of the last look-up that found some, and its end.
    found: Option<(Addresses, Instant)>,
    /// Error of the last look-up, and its end; `None` after a success.
    failure: Option<(Arc<str>, Instant)>,
    /// Number of look-ups in a row that failed or were slow.
    troubles: u32,
    used_at: Instant,
}

/// State of a name's look-up. The senders receive its outcome.
enum State {
    Resting,
    Queued { number: u64, outcome: watch::Sender<Option<Outcome>> },
    Running { outcome: watch::Sender<Option<Outcome>> },
}

/// Result of a question to the table.
enum Step {
    Done(Outcome),
    Wait { outcome: watch::Receiver<Option<Outcome>>, stale: Option<Addresses>, patience: Duration },
}

/// A look-up that a thread has begun.
struct Job {
    name: Arc<str>,
    kind: usize,
    begun: Instant,
}

impl Resolver {
    /// Returns the resolver of this process.
    pub(crate) fn of_process() -> Self {
        static RESOLVER: OnceLock<Resolver> = OnceLock::new();
        RESOLVER.get_or_init(|| Self::with(|name| Ok((name, 0).to_socket_addrs()?.collect()), TIMES)).clone()
    }

    /// Returns a resolver with another look-up than that of the system.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn of(look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self::with(look_up, TIMES)
    }

    fn with(look_up: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static, times: Times) -> Self {
        let look_up = Box::new(look_up);
        Self(Arc::new(Shared { table: Mutex::default(), work: Condvar::new(), look_up, times }))
    }

    /// Returns the addresses of a host with this port, in the order in which the system prefers them; at least one. An
    /// IP address, with or without brackets, is its own address.
    ///
    /// The caller sets the limit of time, and may drop the future. The look-up then goes on for the next caller.
    ///
    /// # Errors
    /// The name cannot be looked up, or has no addresses, and had none in the last minutes either.
    pub(crate) async fn lookup(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Arc::new([SocketAddr::new(ip, port)]));
        }
        let outcome = match Shared::ask(&self.0, &host.to_ascii_lowercase()) {
            Step::Done(outcome) => outcome,
            Step::Wait { mut outcome, stale: None, .. } => received(&mut outcome).await,
            Step::Wait { mut outcome, stale: Some(stale), patience } => {
                let refreshed = timeout(patience, received(&mut outcome)).await;
                Ok(refreshed.ok().and_then(Result::ok).unwrap_or(stale))
            }
        };
        let with_port = |mut address: SocketAddr| {
            address.set_port(port);
            address
        };
        match outcome {
            Ok(addresses) => Ok(addresses.iter().copied().map(with_port).collect()),
            Err(why) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "the name {host} cannot be looked up ({why}); check the name and the name servers of this machine"
                ),
            )),
        }
    }
}

async fn received(outcome: &mut watch::Receiver<Option<Outcome>>) -> Outcome {
    match outcome.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err("no outcome".into())),
        Err(_) => Err("its look-up was given up".into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the threads are outside of simulated time")]
fn now() -> Instant {
    Instant::now()
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known of a name, or the look-up to wait for, which begins if none is under way.
    fn ask(shared: &Arc<Self>, name: &str) -> Step {
        let (times, now) = (shared.times, now());
        let mut guard = shared.table();
        let table = &mut *guard;
        if !table.names.contains_key(name) && !table.make_room() {
            return Step::Done(Err("too many other names are looked up".into()));
        }
        let entry = table.names.entry(name.into()).or_insert_with(|| Entry::new(now));
        entry.used_at = now;
        let known = entry.found.as_ref().filter(|(_, at)| now.duration_since(*at) < times.stale);
        if let Some((addresses, at)) = known
            && now.duration_since(*at) < times.fresh
        {
            return Step::Done(Ok(Arc::clone(addresses)));
        }
        let stale = known.map(|(addresses, _)| Arc::clone(addresses));
        if let Some((why, at)) = &entry.failure
            && now.duration_since(*at) < times.failed
        {
            return Step::Done(stale.ok_or_else(|| Arc::clone(why)));
        }
        // Callers do not wait again for a name that made others wait before.
        let patience = if entry.troubles == 0 { times.patience } else { Duration::ZERO };
        let outcome = match &entry.state {
            State::Queued { outcome, .. } | State::Running { outcome } => outcome.subscribe(),
            State::Resting => {
                table.last += 1;
                let (outcome, receiver) = watch::channel(None);
                entry.state = State::Queued { number: table.last, outcome };
                table.queued += 1;
                receiver
            }
        };
        if let Err(why) = Self::start_thread(shared, table) {
            return Step::Done(stale.ok_or(why));
        }
        Step::Wait { outcome, stale, patience }
    }

    /// Wakes a thread for queued look-ups, or starts one.
    fn start_thread(shared: &Arc<Self>, table: &mut Table) -> Result<(), Arc<str>> {
        shared.work.notify_one();
        if table.queued <= table.idle_threads || table.threads >= MAX_THREADS {
            return Ok(());
        }
        let thread = thread::Builder::new().name("groupcache-dns".to_owned()).stack_size(STACK_BYTES);
        let of_thread = Arc::clone(shared);
        match thread.spawn(move || of_thread.run()) {
            Ok(_) => table.threads += 1,
            // The threads that there are take the look-up later.
            Err(_) if table.threads > 0 => {}
            Err(e) => return Err(format!("no thread could be started: {e}").into()),
        }
        Ok(())
    }

    /// Looks names up until there has been no work for [`IDLE`].
    fn run(&self) {
        let mut table = self.table();
        loop {
            if let Some(job) = table.begin(now()) {
                drop(table);
                let outcome = match (self.look_up)(&job.name) {
                    Ok(addresses) if addresses.is_empty() => Err("it has no addresses".into()),
                    Ok(addresses) => Ok(addresses.into()),
                    Err(e) => Err(e.to_string().into()),
                };
                table = self.table();
                table.end(&job, outcome, self.times, now());
                continue;
            }
            table.idle_threads += 1;
            let (mut woken, waited) = self.work.wait_timeout(table, IDLE).unwrap_or_else(PoisonError::into_inner);
            woken.idle_threads -= 1;
            if waited.timed_out() && !woken.has_work() {
                woken.threads -= 1;
                return;
            }
            table = woken;
        }
    }
}

impl Table {
    /// Makes room for a name, and returns whether there is any. Names that are looked up stay.
    fn make_room(&mut self) -> bool {
        if self.names.len() >= MAX_NAMES {
            let is_removable = |entry: &Entry| match &entry.state {
                State::Resting => true,
                State::Queued { outcome, .. } => outcome.receiver_count() == 0,
                State::Running { .. } => false,
            };
            let removable = self.names.iter().filter(|(_, entry)| is_removable(entry));
            let oldest = removable.min_by_key(|(_, entry)| entry.used_at).map(|(name, _)| Arc::clone(name));
            let removed = oldest.and_then(|name| self.names.remove(&name));
            self.queued -= usize::from(removed.is_some_and(|entry| matches!(entry.state, State::Queued { .. })));
        }
        self.names.len() < MAX_NAMES
    }

    /// Returns whether one more look-up of this kind may run.
    fn admits(&self, kind: usize) -> bool {
        (0..=kind).all(|at| {
            let running: usize = self.running.iter().skip(at).sum();
            AT_ONCE.get(at).is_some_and(|max| running < *max)
        })
    }

    fn next(&self) -> Option<(Arc<str>, usize)> {
        // A name without a caller comes after those that callers wait for, because a dial gives up after a second, and
        // hundreds of silent names would keep a new one waiting for minutes.
        let queued = self.names.iter().filter_map(|(name, entry)| match &entry.state {
            State::Queued { number, outcome } => {
                Some(((entry.troubles, outcome.receiver_count() == 0, *number), name, entry.kind()))
            }
            State::Resting | State::Running { .. } => None,
        });
        let next = queued.filter(|(_, _, kind)| self.admits(*kind)).min_by_key(|(rank, ..)| *rank);
        next.map(|(_, name, kind)| (Arc::clone(name), kind))
    }

    fn has_work(&self) -> bool {
        self.queued > 0 && self.next().is_some()
    }

    /// Begins the queued look-up with the fewest failures before it, and of these one that a caller waits for.
    fn begin(&mut self, begun: Instant) -> Option<Job> {
        let (name, kind) = if self.queued == 0 { None } else { self.next() }?;
        let entry = self.names.get_mut(&name)?;
        if let State::Queued { outcome, .. } = std::mem::replace(&mut entry.state, State::Resting) {
            entry.state = State::Running { outcome };
        }
        self.queued -= 1;
        if let Some(running) = self.running.get_mut(kind) {
            *running += 1;
        }
        Some(Job { name, kind, begun })
    }

    /// Records the outcome of a look-up, and sends it to all waiting callers.
    fn end(&mut self, job: &Job, outcome: Outcome, times: Times, now: Instant) {
        if let Some(running) = self.running.get_mut(job.kind) {
            *running -= 1;
        }
        let Some(entry) = self.names.get_mut(&job.name) else { return };
        let is_slow = now.duration_since(job.begun) >= times.slow;
        entry.troubles = if is_slow || outcome.is_err() { entry.troubles.saturating_add(1) } else { 0 };
        match &outcome {
            Ok(addresses) => (entry.found, entry.failure) = (Some((Arc::clone(addresses), now)), None),
            Err(why) => entry.failure = Some((Arc::clone(why), now)),
        }
        if let State::Running { outcome: waiting } = std::mem::replace(&mut entry.state, State::Resting) {
            waiting.send_replace(Some(outcome));
        }
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self { state: State::Resting, found: None, failure: None, troubles: 0, used_at: now }
    }

    /// Returns the kind of the name, an index of [`AT_ONCE`].
    fn kind(&self) -> usize {
        match (self.troubles, &self.found) {
            (0, Some(_)) => 0,
            (0, None) => 1,
            _ => 2,
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
