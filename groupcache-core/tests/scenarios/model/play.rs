//! Who calls, and who is asked: callers that do anything at any time, and a loader with every fault that there is.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use groupcache_core::{Error, Group, Invalidated, Load, LoadError, Loaded, Loader};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    history::{Answer, Fresh, History},
    judge::Rules,
};

/// What a play is like.
#[derive(Clone, Copy, Debug)]
pub struct Play {
    pub operations: usize,
    /// Callers of each node.
    pub callers: usize,
    pub keys: usize,
    /// Writes among a thousand operations.
    pub writes: u32,
    /// Of so many writes one is a clear.
    pub clear_in: u32,
    /// Of how many operations one is followed by a pause, and how long that may be.
    pub pause: (u32, Duration),
    pub deadline: Duration,
    /// Some callers have no patience.
    pub gives_up: bool,
    /// The longest load that ends by itself.
    pub slow: Duration,
    /// Of so many loads one hangs.
    pub hangs_in: u32,
    /// And is aborted after this time.
    pub load_deadline: Duration,
    pub largest: usize,
    /// Of each node, in bytes.
    pub capacity: u64,
}

/// What loaders of one group share.
pub struct Backend {
    pub play: Play,
    pub rules: Rules,
    pub history: History,
    pub rng: Mutex<fastrand::Rng>,
    /// No faults any more.
    pub is_calm: AtomicBool,
    /// Writes that did not reach everyone.
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

    /// A value tells its key, its number, and is as long as it likes.
    fn text(&self, key: &str, number: u64, rng: &mut fastrand::Rng) -> String {
        format!("{key} {number} {}", "x".repeat(rng.usize(..self.play.largest)))
    }
}

/// The number of a value of this key.
fn number(key: &str, value: &str) -> u64 {
    let mut words = value.split(' ');
    assert_eq!(words.next(), Some(key), "a value of another key");
    words.next().and_then(|number| number.parse().ok()).expect("a number")
}

/// The loader of one node.
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
            running.says(Answer::TimedOut, Fresh::NotKept);
            return std::future::pending().await;
        }
        let (of_values, value) = (backend.rules.of_values(), Answer::Value(running.number));
        let loaded = Loaded::new(backend.text(key, running.number, &mut rng));
        match if is_calm { 99 } else { rng.u32(..100) } {
            0..4 => Err(LoadError::transient("the database is down")),
            4..7 => Err(LoadError::permanent("the database says no")),
            // Without a word on the terminal, which `panic!` would write.
            7..10 => std::panic::resume_unwind(Box::new("a loader that panics")),
            10..16 => {
                running.says(Answer::Nothing, backend.rules.of_nothing());
                Ok(Loaded::not_found())
            }
            16..26 => {
                // Without a previous value it is an error of the load.
                if let Some(previous) = load.previous() {
                    running.says(Answer::Value(number(key, previous)), of_values);
                }
                Ok(Loaded::unchanged())
            }
            26..32 => {
                running.says(value, Fresh::NotKept);
                Ok(loaded.do_not_keep())
            }
            32..40 => {
                let fresh = Duration::from_millis(rng.u64(1..300));
                running.says(value, Fresh::For(fresh));
                Ok(loaded.time_to_live(fresh))
            }
            _ => {
                running.says(value, of_values);
                Ok(loaded)
            }
        }
    }
}

/// One who calls, at one node.
struct Caller {
    group: Group<String>,
    node: usize,
    backend: Arc<Backend>,
    rng: fastrand::Rng,
}

/// Every node has its callers, who share the operations. Ends when all have done theirs.
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
        done.expect("no caller is surprised");
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
        // P6, at every look.
        let bytes = self.group.bytes();
        assert!(bytes <= play.capacity, "P6: {bytes} bytes of {}", play.capacity);
        let (pause_in, pause) = play.pause;
        if self.rng.u32(..pause_in) == 0 {
            // Mostly short ones.
            sleep(pause.mul_f64(self.rng.f64().powi(4))).await;
        }
    }

    /// Some keys are asked for more than others.
    fn key(&mut self) -> String {
        let keys = self.backend.play.keys;
        format!("key-{}", self.rng.usize(..keys).min(self.rng.usize(..keys)))
    }

    fn keys(&mut self) -> Vec<String> {
        (0..self.rng.usize(1..6)).map(|_| self.key()).collect()
    }

    /// Most writes are of a few keys: what was written within the last second has no copies on other nodes.
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
        let begin = self.backend.history.asks(&key);
        let got = match is_dropped {
            true => timeout(deadline, self.group.get(&key[0])).await.ok(),
            false => Some(self.group.with_deadline(deadline).get(&key[0]).await),
        };
        let seen = got.map(|got| seen(&key[0], got));
        self.backend.history.told(begin, deadline, &key, &[seen]);
    }

    async fn get_many(&mut self) {
        let keys = self.keys();
        let begin = self.backend.history.asks(&keys);
        let got = self.group.get_many(&keys).await;
        let seen: Vec<_> = keys.iter().zip(got).map(|(key, got)| Some(seen(key, got))).collect();
        self.backend.history.told(begin, self.backend.play.deadline, &keys, &seen);
    }

    async fn peek(&mut self) {
        let key = [self.key()];
        let begin = self.backend.history.asks(&key);
        let value = self.group.peek(&key[0]).await.expect("the node runs");
        let seen = value.map(|value| Answer::Value(number(&key[0], &value)));
        self.backend.history.told(begin, self.backend.play.deadline, &key, &[seen]);
    }

    async fn write(&mut self) {
        let backend = Arc::clone(&self.backend);
        let history = &backend.history;
        let (write, set, written) = match self.rng.u32(..100) {
            _ if self.rng.u32(..backend.play.clear_in) == 0 => (history.writes(&[]), None, self.group.clear().await),
            0..40 => {
                let key = self.key_to_write();
                let (write, set, number) = history.sets(&key, self.node, backend.rules.of_values());
                let value = backend.text(&key, number, &mut self.rng);
                (write, Some(set), self.group.set(&key, value).await)
            }
            40..80 => {
                let key = self.key_to_write();
                (history.writes(std::slice::from_ref(&key)), None, self.group.remove(&key).await)
            }
            _ => {
                let keys: Vec<_> = (0..self.rng.usize(1..4)).map(|_| self.key_to_write()).collect();
                (history.writes(&keys), None, self.group.remove_many(&keys).await)
            }
        };
        let is_complete = |written: &Invalidated| written.is_complete() && !written.views_differed();
        match written {
            Ok(written) if is_complete(&written) => history.wrote(write, set),
            _ => drop(backend.incomplete.fetch_add(1, SeqCst)),
        }
    }
}

/// What a get was told; anything but these is a surprise.
fn seen(key: &str, got: Result<String, Error>) -> Answer {
    match got {
        Ok(value) => Answer::Value(number(key, &value)),
        Err(error) if error.is_not_found() => Answer::Nothing,
        Err(error) if error.is_load_failed() => Answer::Failed,
        Err(error) if error.is_timeout() => Answer::TimedOut,
        Err(error) => panic!("an error that nobody made: {error:?}"),
    }
}
