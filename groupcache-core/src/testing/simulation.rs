//! What a simulated machine has in the place of a real one; there in builds with `--cfg simulation` only.

use std::cell::Cell;

pub use crate::testing::mutants::NAMES as MUTANTS;

thread_local! {
    static WALL_CLOCK: Cell<fn() -> u64> = const { Cell::new(|| 0) };
}

/// The wall clock of whatever machine asks, in milliseconds. A simulation is one thread.
pub fn set_wall_clock(clock: fn() -> u64) {
    WALL_CLOCK.set(clock);
}

pub(crate) fn wall_clock_ms() -> u64 {
    WALL_CLOCK.get()()
}
