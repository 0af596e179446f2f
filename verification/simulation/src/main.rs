//! Simulation: whole clusters in virtual time. Real nodes and real HTTP/2 run on machines and a network that fail, and
//! a single seed determines the whole run.
//!
//! `make sim-seed SEED=7` plays one seed and `make sim` plays 10,000, each in a process of its own. The oracles in
//! `judge.rs` and `watch.rs` compare each run with the promises of the library.

#![cfg_attr(
    simulation,
    expect(
        clippy::indexing_slicing,
        clippy::expect_used,
        reason = "a failed expectation ends a simulation, as in a test"
    )
)]

#[cfg(simulation)]
mod driver;
#[cfg(simulation)]
mod garbage_client;
#[cfg(simulation)]
mod history;
#[cfg(simulation)]
mod judge;
#[cfg(simulation)]
mod loader;
#[cfg(simulation)]
mod machine;
#[cfg(simulation)]
mod network;
#[cfg(simulation)]
mod provider;
#[cfg(simulation)]
mod runner;
#[cfg(simulation)]
mod scenario;
#[cfg(simulation)]
mod watch;
#[cfg(simulation)]
mod world;

#[cfg(simulation)]
fn main() -> std::process::ExitCode {
    runner::main()
}

#[cfg(not(simulation))]
fn main() {
    eprintln!("the simulated network is missing, because this is a build without `--cfg simulation`: use `make sim`");
}
