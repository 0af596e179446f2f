//! Whole clusters in virtual time: real nodes, real HTTP/2, a network and machines that fail, and one seed for all of it.
//!
//! `make sim-seed SEED=7` plays one seed, `make sim` ten thousand, each in a process of its own. What is seen is judged
//! by the promises of the library; see `judge.rs`.

#![cfg_attr(
    simulation,
    expect(
        clippy::indexing_slicing,
        clippy::expect_used,
        reason = "what is wrong with a simulation is to end it, as a test"
    )
)]

#[cfg(simulation)]
mod driver;
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
mod nonsense;
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
    eprintln!("built without `--cfg simulation`: there is no simulated network in it; `make sim` builds it with");
}
