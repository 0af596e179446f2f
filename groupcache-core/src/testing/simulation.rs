//! Hooks of the simulation: the wall clock of a simulated machine, and the names of the mutants. Builds with
//! `--cfg simulation` only.

use std::cell::Cell;

pub use crate::testing::mutants::NAMES as MUTANTS;

thread_local! {
    /// Source of wall-clock time of this thread.
    static WALL_CLOCK: Cell<fn() -> u64> = const { Cell::new(|| 0) };
}

/// Sets the function that returns the wall clock, in milliseconds, of the simulated machine that runs at the moment. A
/// simulation has one thread.
pub fn set_wall_clock(clock: fn() -> u64) {
    WALL_CLOCK.set(clock);
}

/// Returns the wall clock of the simulated machine that runs at the moment, in milliseconds.
pub(crate) fn wall_clock_ms() -> u64 {
    WALL_CLOCK.get()()
}
