//! Suite: all measurements against other projects, and the roles of their processes. An argument selects measurements
//! by a part of their name.

use std::path::PathBuf;

use bench::{
    Result,
    figures::Results,
    machine, processes, report,
    sections::{cluster, local, membership, remote},
    targets::Remote,
};
use serde::de::DeserializeOwned;

/// Number of rounds, which give a median and its spread. `ROUNDS` in the environment overrides the number.
const ROUNDS: usize = 5;

/// Counted seconds of each measurement. `SECONDS_EACH` in the environment overrides the number.
const SECONDS: f64 = 0.8;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", settings] => one_thread(remote::serve, settings),
        ["ask", settings] => one_thread(remote::ask, settings),
        ["cluster", settings] => one_thread(cluster::run, settings),
        ["membership", settings] => one_thread(membership::run, settings),
        ["local", settings] => two_threads(local::ask, settings),
        ["cold", settings] => one_thread(local::ask, settings),
        wanted => measure(wanted),
    }
}

fn one_thread<T: DeserializeOwned, F: Future<Output = Result<()>>>(
    role: impl FnOnce(T) -> F,
    settings: &str,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(role(serde_json::from_str(settings)?))
}

fn two_threads<T: DeserializeOwned, F: Future<Output = Result<()>>>(
    role: impl FnOnce(T) -> F,
    settings: &str,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(role(serde_json::from_str(settings)?))
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is {text:?}: use a number").into()),
        Err(_) => Ok(default),
    }
}

fn remotes() -> Vec<remote::Section> {
    let bare = [Remote::ThisCrate, Remote::Unary, Remote::Memcached, Remote::Echo];
    let with_set = [Remote::ThisCrate, Remote::Memcached, Remote::MemcachedPipelined];
    let section = |name, targets: &[Remote], cells| remote::Section {
        name,
        targets: targets.to_vec(),
        cells,
        one_core: false,
        and_paced: false,
        sets_percent: 0,
    };
    vec![
        section("remote gets", &Remote::ALL, vec![(100, vec![1, 16, 64, 512]), (4096, vec![1, 16, 64, 512])]),
        section("remote gets of large values", &Remote::ALL, vec![(65536, vec![1, 16, 64])]),
        remote::Section { one_core: true, ..section("one caller, one core", &bare, vec![(100, vec![1])]) },
        remote::Section {
            and_paced: true,
            ..section(
                "half of the load",
                &[Remote::ThisCrate, Remote::Unary, Remote::MemcachedPipelined, Remote::EchoPipelined],
                vec![(100, vec![64, 512])],
            )
        },
        remote::Section { sets_percent: 10, ..section("one in ten is a set", &with_set, vec![(100, vec![64])]) },
    ]
}

fn measure(wanted: &[&str]) -> Result<()> {
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let (rounds, seconds) = (setting("ROUNDS", ROUNDS)?, setting("SECONDS_EACH", SECONDS)?);
    for program in Remote::ALL.iter().filter_map(|target| target.program()) {
        if !processes::is_there(program) {
            eprintln!("{program} is not installed and is left out: apt-get install memcached redis-server");
        }
    }
    let mut results = Results { machine: machine::described(), samples: Vec::new() };
    let sections = remotes();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        if is_wanted(local::HITS) || is_wanted(local::MISSES) {
            local::round(round, seconds, &mut results)?;
        }
        for section in sections.iter().filter(|section| is_wanted(section.name)) {
            section.round(round, seconds, &mut results)?;
        }
        for name in [cluster::MANY, cluster::ZIPF, cluster::START].into_iter().filter(|name| is_wanted(name)) {
            cluster::round(name, round, seconds, &mut results)?;
        }
        if is_wanted(membership::NAME) {
            membership::round(round, &mut results)?;
        }
    }
    let folder = PathBuf::from(std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned())).join("bench");
    results.save(&folder.join("results.json"))?;
    let report = report::text(&results, rounds, seconds);
    std::fs::write(folder.join("results.md"), &report)?;
    println!("{report}");
    Ok(())
}
