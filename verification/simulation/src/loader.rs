//! Loader: the source of all values, which is slow, fails, panics and hangs as the scenario demands.

use std::sync::Mutex;

use fastrand::Rng;
use groupcache_core::{Load, LoadError, Loaded, Loader};
use tokio::time::sleep;

use crate::{
    history::{Answer, Process},
    world::{Phase, World},
};

/// Loader of one process.
pub(crate) struct Source {
    pub(crate) world: World,
    pub(crate) machine: usize,
    pub(crate) rng: Mutex<Rng>,
}

/// Returns a value that holds its key and its number, followed by `filling` bytes.
pub(crate) fn text(key: &str, number: u64, filling: usize) -> String {
    format!("{key} {number} {}", "x".repeat(filling))
}

/// Returns the number of a value of this key, or `None` for a value of another key.
pub(crate) fn number(key: &str, value: &str) -> Option<u64> {
    let mut words = value.split(' ');
    words.next().filter(|of| *of == key)?;
    words.next()?.parse().ok()
}

impl Loader<String> for Source {
    async fn load(&self, load: Load<'_, String>) -> Result<Loaded<String>, LoadError> {
        let key = load.key();
        let index = key.trim_start_matches("key-").parse().map_err(LoadError::permanent)?;
        let by = {
            let state = self.world.lock();
            Process { machine: self.machine, start: state.machines[self.machine].starts }
        };
        let running = self.world.begin_load(index, by, load.reason());
        let (loads, is_calm, filling, mut rng) = {
            let state = self.world.lock();
            let mut rng = self.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let filling = rng.usize(..state.scenario.largest_value);
            (state.scenario.loads, state.phase > Phase::Faults, filling, rng.fork())
        };
        if rng.u32(..4) > 0 {
            sleep(loads.slow.mul_f64(rng.f64())).await;
        }
        let mut luck = if is_calm { 1000 } else { rng.u32(..1000) };
        let mut is = |of: u32| {
            let it_is = luck < of;
            luck = luck.saturating_sub(of);
            it_is
        };
        if is(loads.hangs) {
            running.set_outcome(Answer::TimedOut, false);
            return std::future::pending().await;
        }
        if is(loads.errors) {
            return Err(if rng.bool() {
                LoadError::transient("the database is down")
            } else {
                LoadError::permanent("the database refuses the read")
            });
        }
        if is(loads.panics) {
            // Unlike `panic!`, this call writes nothing to the terminal.
            std::panic::resume_unwind(Box::new("a loader that panics"));
        }
        if is(loads.nothing) {
            running.set_outcome(Answer::Nothing, false);
            return Ok(Loaded::not_found());
        }
        let loaded = Loaded::new(text(key, running.number, filling));
        let is_kept = !is(loads.not_kept);
        running.set_outcome(Answer::Value(running.number), is_kept);
        Ok(if is_kept { loaded } else { loaded.do_not_keep() })
    }
}
