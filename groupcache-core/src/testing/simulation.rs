//! Hooks of the simulation: the wall clock of a simulated machine, and the names of the mutants. Builds with
//! `--cfg simulation` only.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

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

/// Resolver of the simulated network, where names are known without a look-up.
#[derive(Clone)]
pub(crate) struct Resolver;

impl Resolver {
    /// Returns the resolver of the simulated network.
    pub(crate) fn of_process() -> Self {
        Self
    }

    /// Returns the address of a simulated host, or the IP address itself.
    pub(crate) async fn lookup(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let ip = literal.unwrap_or_else(|_| turmoil::lookup(host));
        Ok(Arc::new([SocketAddr::new(ip, port)]))
    }
}
