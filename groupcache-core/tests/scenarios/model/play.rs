//! Callers and loader of the model test: random operations at any time, and a loader with every kind of fault.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use groupcache_core::{Error, Group, Load, LoadError, Loaded, Loader, WriteOutcome};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    history::{Fresh, History, Outcome},
    judge::Rules,
};

/// Parameters of one run.
#[derive(Clone, Copy, Debug)]
pub struct Play {
    /// Number of operations of all callers together.
    pub operations: usize,
    /// Number of callers per node.
    pub callers: usize,
    /// Number of keys.
    pub keys: usize,
    /// Number of writes per 1,000 operations.
    pub writes: u32,
    /// Number of writes of which one is a clear, on average.
    pub clear_in: u32,
    /// Number of operations of which one is followed by a pause, on average, and the maximum length of the pause.
    pub pause: (u32, Duration),
    /// Deadline of patient gets.
    pub deadline: Duration,
    /// Whether some callers have short deadlines or drop their gets.
    pub gives_up: bool,
    /// Maximum duration of a load that ends by itself.
    pub slow: Duration,
    /// Number of loads of which one hangs, on average.
    pub hangs_in: u32,
    /// Time after which a load is aborted.
    pub load_deadline: Duration,
    /// Upper bound of the padding of a value, in bytes.
    pub largest: usize,
    /// Capacity of the group at each node, in bytes.
    pub capacity: u64,
}

/// State that the loaders of one group share.
pub struct Backend {
    pub play: Play,
    pub rules: Rules,
    pub history: History,
    pub rng: Mutex<fastrand::Rng>,
    /// Whether the loader no longer fails.
    pub is_calm: AtomicBool,
    /// Number of writes that were not complete.
    pub incomplete: AtomicUsize,
}

impl Backend {
    pub fn new(play: Play, rules: Rules, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            play,
            rules,
            history: History::default(),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            is_calm: AtomicBool::new(false),
            incomplete: AtomicUsize::new(0),
        })
    }

    fn rng(&self) -> fastrand::Rng {
        self.rng.lock().unwrap().fork()
    }

    /// Returns a value with its key and its number, padded to a random length.
    fn text(&self, key: &str, number: u64, rng: &mut fastrand::Rng) -> String {
        format!("{key} {number} {}", "x".repeat(rng.usize(..self.play.largest)))
    }
}

/// Returns the number in a value of this key.
fn number(key: &str, value: &str) -> u64 {
    let mut words = value.split(' ');
    assert_eq!(words.next(), Some(key), "a value of another key");
    words.next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Loader of one node.
pub struct AtNode(pub usize, pub Arc<Backend>);

impl Loader<String> for AtNode {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        let Self(node, backend) = self;
        let key = load.key();
        let running = backend.history.load(key, *node, load.reason());
        let mut rng = backend.rng();
        match rng.u32(..4) {
            0 => {}
            1 => tokio::task::yield_now().await,
            _ => sleep(backend.play.slow.mul_f64(rng.f64())).await,
        }
        let is_calm = backend.is_calm.load(SeqCst);
        if !is_calm && rng.u32(..backend.play.hangs_in) == 0 {
            running.record(Outcome::TimedOut, Fresh::NotKept);
            return std::future::pending().await;
        }
        let (of_values, value) = (backend.rules.of_values(), Outcome::Value(running.number));
        let loaded = Loaded::new(backend.text(key, running.number, &mut rng));
        match if is_calm { 99 } else { rng.u32(..100) } {
            0..4 => Err(LoadError::transient("the database is down")),
            4..7 => Err(LoadError::permanent("the database refuses the query")),
            // `panic!` would print to the terminal.
            7..10 => std::panic::resume_unwind(Box::new("a loader that panics")),
            10..16 => {
                running.record(Outcome::Nothing, backend.rules.of_nothing());
                Ok(Loaded::not_found())
            }
            16..26 => {
                // Without a previous value this is an error of the load.
                if let Some(previous) = load.previous() {
                    running.record(Outcome::Value(number(key, previous)), of_values);
                }
                Ok(Loaded::unchanged())
            }
            26..32 => {
                running.record(value, Fresh::NotKept);
                Ok(loaded.do_not_keep())
            }
            32..40 => {
                let fresh = Duration::from_millis(rng.u64(1..300));
                running.record(value, Fresh::For(fresh));
                Ok(loaded.time_to_live(fresh))
            }
            _ => {
                running.record(value, of_values);
                Ok(loaded)
            }
        }
    }
}

/// Caller at one node.
struct Caller {
    group: Group<String>,
    node: usize,
    backend: Arc<Backend>,
    rng: fastrand::Rng,
}

/// Runs the operations, shared by the callers of all nodes, and waits until all of them have ended.
pub async fn act(groups: &[Group<String>], backend: &Arc<Backend>) {
    let callers = backend.play.callers * groups.len();
    let mut all = JoinSet::new();
    for at in 0..callers {
        let (node, rng) = (at % groups.len(), backend.rng());
        let mut caller = Caller { group: groups[node].clone(), node, backend: Arc::clone(backend), rng };
        all.spawn(async move {
            for _ in 0..caller.backend.play.operations / callers {
                caller.operation().await;
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.expect("no caller panics");
    }
}

impl Caller {
    async fn operation(&mut self) {
        let play = self.backend.play;
        match self.rng.u32(..1000) {
            n if n < play.writes => self.write().await,
            n if n < 900 => self.get().await,
            n if n < 960 => self.get_many().await,
            _ => self.peek().await,
        }
        // P6 holds after every operation.
        let bytes = self.group.inspect().bytes();
        assert!(bytes <= play.capacity, "P6: {bytes} bytes of {}", play.capacity);
        let (pause_in, pause) = play.pause;
        if self.rng.u32(..pause_in) == 0 {
            // Most pauses are short.
            sleep(pause.mul_f64(self.rng.f64().powi(4))).await;
        }
    }

    /// Returns a random key. Keys with low numbers are more frequent.
    fn key(&mut self) -> String {
        let keys = self.backend.play.keys;
        format!("key-{}", self.rng.usize(..keys).min(self.rng.usize(..keys)))
    }

    fn keys(&mut self) -> Vec<String> {
        (0..self.rng.usize(1..6)).map(|_| self.key()).collect()
    }

    /// Returns a key to write. Most writes are of a few keys, because a key that was written within the last second has
    /// no replicas.
    fn key_to_write(&mut self) -> String {
        let is_often_written = |key: &str| key.ends_with(['3', '7']);
        loop {
            let key = self.key();
            if is_often_written(&key) || self.rng.u32(..20) == 0 {
                return key;
            }
        }
    }

    async fn get(&mut self) {
        let (key, mut deadline) = ([self.key()], self.backend.play.deadline);
        let is_impatient = self.backend.play.gives_up && self.rng.u32(..8) == 0;
        if is_impatient {
            deadline = Duration::from_millis(self.rng.u64(1..100));
        }
        let is_dropped = is_impatient && self.rng.bool();
        let begin = self.backend.history.begin_gets(&key);
        let got = match is_dropped {
            true => timeout(deadline, self.group.get(&key[0])).await.ok(),
            false => Some(self.group.with_deadline(deadline).get(&key[0]).await),
        };
        let outcome = got.map(|got| outcome(&key[0], got));
        self.backend.history.end_gets(begin, deadline, &key, &[outcome]);
    }

    async fn get_many(&mut self) {
        let keys = self.keys();
        let begin = self.backend.history.begin_gets(&keys);
        let got = self.group.get_many(&keys).await;
        let outcome: Vec<_> = keys.iter().zip(got).map(|(key, got)| Some(outcome(key, got))).collect();
        self.backend.history.end_gets(begin, self.backend.play.deadline, &keys, &outcome);
    }

    async fn peek(&mut self) {
        let key = [self.key()];
        let begin = self.backend.history.begin_gets(&key);
        let value = self.group.peek(&key[0]).await.expect("the node runs");
        let outcome = value.map(|value| Outcome::Value(number(&key[0], &value)));
        self.backend.history.end_gets(begin, self.backend.play.deadline, &key, &[outcome]);
    }

    async fn write(&mut self) {
        let backend = Arc::clone(&self.backend);
        let history = &backend.history;
        let (write, set, written) = match self.rng.u32(..100) {
            _ if self.rng.u32(..backend.play.clear_in) == 0 => {
                (history.begin_write(&[]), None, self.group.clear().await)
            }
            0..40 => {
                let key = self.key_to_write();
                let (write, set, number) = history.begin_set(&key, self.node, backend.rules.of_values());
                let value = backend.text(&key, number, &mut self.rng);
                (write, Some(set), self.group.set(&key, value).await)
            }
            40..80 => {
                let key = self.key_to_write();
                (history.begin_write(std::slice::from_ref(&key)), None, self.group.remove(&key).await)
            }
            _ => {
                let keys: Vec<_> = (0..self.rng.usize(1..4)).map(|_| self.key_to_write()).collect();
                (history.begin_write(&keys), None, self.group.remove_many(&keys).await)
            }
        };
        let is_complete = |written: &WriteOutcome| written.is_complete();
        match written {
            Ok(written) if is_complete(&written) => history.end_write(write, set),
            _ => drop(backend.incomplete.fetch_add(1, SeqCst)),
        }
    }
}

/// Converts the result of a get, and panics at any other error.
fn outcome(key: &str, got: Result<String, Error>) -> Outcome {
    match got {
        Ok(value) => Outcome::Value(number(key, &value)),
        Err(error) if error.is_not_found() => Outcome::Nothing,
        Err(error) if error.is_load_failed() => Outcome::Failed,
        Err(error) if error.is_timeout() => Outcome::TimedOut,
        Err(error) => panic!("unexpected error: {error:?}"),
    }
}
