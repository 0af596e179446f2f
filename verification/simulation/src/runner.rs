//! Runner: plays seeds, each in a process of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    process::{Child, Command, ExitCode, Stdio},
};

use crate::{driver::play, scenario::Scenario};

const USAGE: &str = "usage: simulation seed N | simulation seeds FROM COUNT [PROCESSES] | simulation same FROM COUNT";

/// Runs the command of the command line.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> = arguments.iter().skip(1).map(|text| text.parse().ok()).collect();
    match (arguments.first().map(String::as_str), numbers.as_deref()) {
        (Some("seed"), Some([seed])) => one(*seed),
        (Some("seeds"), Some([from, count])) => many(*from, *count, 2),
        (Some("seeds"), Some([from, count, processes])) => many(*from, *count, *processes as usize),
        (Some("same"), Some([from, count])) => same(*from, *count),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Maximum number of broken promises that are printed for one seed. The first of them explains most.
const SHOWN: usize = 3;

fn one(seed: u64) -> ExitCode {
    let is_verbose = std::env::var_os("VERBOSE").is_some();
    if is_verbose {
        println!("{:?}", Scenario::of(seed));
    }
    // Panics of machines are caught and judged, so that their text need not be printed.
    if !is_verbose {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let played = play(seed, is_verbose);
    println!("seed {seed} hash {:016x} simulated-ms {}", played.hash, played.simulated.as_millis());
    for (what, n) in &played.log.counts {
        println!("count {n} {what}");
    }
    for broken in played.log.broken.iter().take(SHOWN) {
        println!("broken {broken}");
    }
    if played.log.broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("to repeat: make sim-seed SEED={seed}");
    ExitCode::FAILURE
}

fn begin(seed: u64) -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    Command::new(program).args(["seed", &seed.to_string()]).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()
}

/// Plays seeds until one breaks a promise, and prints sums of their counts. With `KEEP_GOING` in the environment, plays
/// all of them.
fn many(from: u64, count: u64, processes: usize) -> ExitCode {
    let (mut running, mut counts, mut simulated) = (VecDeque::new(), BTreeMap::<String, u64>::new(), 0);
    let mut seeds = from..from + count;
    let (mut failed, mut played) = (Vec::new(), 0);
    let most_failed = if std::env::var_os("KEEP_GOING").is_some() { usize::MAX } else { 1 };
    loop {
        while running.len() < processes.max(1) && failed.len() < most_failed {
            let Some(seed) = seeds.next() else { break };
            match begin(seed) {
                Ok(child) => running.push_back((seed, child)),
                Err(error) => {
                    eprintln!("a process cannot be started: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        // The oldest process is awaited while the others go on.
        let Some((seed, child)) = running.pop_front() else { break };
        let Ok(output) = child.wait_with_output() else { return ExitCode::FAILURE };
        let text = String::from_utf8_lossy(&output.stdout);
        played += 1;
        for line in text.lines() {
            if let Some((n, what)) = line.strip_prefix("count ").and_then(|rest| rest.split_once(' ')) {
                *counts.entry(what.to_owned()).or_default() += n.parse::<u64>().unwrap_or(0);
            }
            if let Some((_, ms)) = line.split_once("simulated-ms ") {
                simulated += ms.parse::<u64>().unwrap_or(0);
            }
        }
        if !output.status.success() {
            failed.push(seed);
            println!("seed {seed}, number {played} of this run, has broken a promise ({})", output.status);
            text.lines().filter(|line| !line.starts_with("count ")).for_each(|line| println!("{line}"));
        }
    }
    for (what, n) in counts {
        println!("{n:>12} {what}");
    }
    println!("{played} seeds, {} simulated seconds, broken: {failed:?}", simulated / 1000);
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Checks that a seed has one history, however often it is played.
fn same(from: u64, count: u64) -> ExitCode {
    let hash = |seed| {
        let output = begin(seed).and_then(Child::wait_with_output).ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("seed "))?;
        Some(line.to_owned())
    };
    for seed in from..from + count {
        let (first, second) = (hash(seed), hash(seed));
        if first.is_none() || first != second {
            println!("seed {seed} has two histories: {first:?} and {second:?}");
            return ExitCode::FAILURE;
        }
    }
    println!("{count} seeds have one history each");
    ExitCode::SUCCESS
}
