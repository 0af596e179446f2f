//! Backend: the source of the values, which counts its calls by key and can stall.

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

/// Duration of a load, as of a database in the same room.
const TAKES: Duration = Duration::from_millis(5);

/// Bytes of a value.
const SMALL: usize = 100;
/// Bytes of a large value.
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
    /// Lets loads end, or stalls them.
    pub(crate) fn works(&self, works: bool) {
        self.works.send_replace(works);
    }

    /// Returns the number of calls by key since the last `take`.
    pub(crate) fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.loaded.lock().unwrap())
    }

    /// Counts the call, and returns a value of 100 B, or of 64 KiB for a `fresh` key while values are large.
    pub(crate) async fn load(&self, key: &str) -> Result<String, Error> {
        *self.loaded.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        self.take_time().await;
        let is_large = self.are_large.load(Relaxed) && key.starts_with("fresh");
        Ok("x".repeat(if is_large { LARGE } else { SMALL }))
    }

    /// Returns the time of the call as the value.
    pub(crate) async fn stamp(&self, _: &str) -> Result<String, Error> {
        let begun = clock::nanoseconds();
        self.take_time().await;
        Ok(begun.to_string())
    }

    pub(crate) async fn take_time(&self) {
        let mut works = self.works.subscribe();
        let _ = works.wait_for(|works| *works).await;
        sleep(TAKES).await;
    }
}
