//! What the values come from: it counts who asks for what, and can stall.

use std::{
    collections::BTreeMap,
    io::Error,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use chaos::clock;
use tokio::{sync::watch, time::sleep};

/// As long as a database in the same room takes.
const TAKES: Duration = Duration::from_millis(5);

/// Bytes of a value, and of a large one.
const SMALL: usize = 100;
const LARGE: usize = 64 << 10;

pub(crate) struct Backend {
    loaded: Mutex<BTreeMap<String, u64>>,
    works: watch::Sender<bool>,
    pub(crate) are_large: AtomicBool,
}

impl Default for Backend {
    fn default() -> Self {
        Self { loaded: Mutex::default(), works: watch::Sender::new(true), are_large: AtomicBool::default() }
    }
}

impl Backend {
    /// Whether loads end.
    pub(crate) fn works(&self, works: bool) {
        self.works.send_replace(works);
    }

    /// The calls since it was last asked.
    pub(crate) fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.loaded.lock().unwrap())
    }

    /// A value of some size.
    pub(crate) async fn load(&self, key: &str) -> Result<String, Error> {
        *self.loaded.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        self.take_time().await;
        let is_large = self.are_large.load(Relaxed) && key.starts_with("fresh");
        Ok("x".repeat(if is_large { LARGE } else { SMALL }))
    }

    /// When it was asked.
    pub(crate) async fn stamp(&self, _: &str) -> Result<String, Error> {
        let begun = clock::nanoseconds();
        self.take_time().await;
        Ok(begun.to_string())
    }

    async fn take_time(&self) {
        let mut works = self.works.subscribe();
        let _ = works.wait_for(|works| *works).await;
        sleep(TAKES).await;
    }
}
