//! Churn: the cost of the deploys (a) to (d) for all caches, with the plot. An argument selects scenarios by a part of
//! their name. `WHO` selects the cache by its name.

use std::{fs, path::Path};

use bench::{
    Result,
    churn::{
        CacheKind, Settings,
        floor::{self, Floor, Into},
        plot, pod,
        record::Run,
        scenarios::Scenario,
        throughput::{self, Throughput},
    },
    figures::{Spread, thousands},
    machine,
};
use serde::Serialize;

/// Number of measurements of the rate of hand-overs.
const ROUNDS: usize = 3;

const LINE: &str = "|---|---|---|---|---|---|---|---|---|---|---|";

fn settings() -> Settings {
    Settings {
        kind: CacheKind::ThisCrate,
        peers: "peers".into(),
        keys: 200_000,
        exponent: 0.99,
        value_bytes: 1024,
        lasts: 300.0,
        rate: 5000.0,
        removes: 0.0,
    }
}

#[derive(Serialize)]
struct Results<'a> {
    machine: String,
    runs: &'a [Run],
    throughput: &'a [Throughput],
    floor: &'a [Floor],
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["pod", settings] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let ended = runtime.block_on(pod::run(serde_json::from_str(settings)?));
            runtime.shutdown_background(); // a thread that waits for standard input would keep the runtime
            ended
        }
        ["floor", value_bytes, into] => floor::run(value_bytes.parse()?, into),
        wanted => measure(wanted),
    }
}

fn measure(wanted: &[&str]) -> Result<()> {
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let scratch = process::Scratch::new(std::env::temp_dir(), "churn");
    let settings = settings();
    println!("{}\n", machine::described());
    println!("{:.0} loads/s are expected without a deploy\n", settings.expected_loads());
    println!(
        "| deploy | cache | steady loads/s | loads during it | over steady | loads beyond | failed gets | p50, p99, p99.9 before, µs | during it | moved / left, and later, MB | removes that did not reach all |\n{LINE}"
    );
    let one = std::env::var("WHO").ok();
    let mut runs = Vec::new();
    for scenario in Scenario::ALL.into_iter().filter(|scenario| is_wanted(scenario.name())) {
        for kind in CacheKind::ALL.into_iter().filter(|kind| one.as_ref().is_none_or(|one| kind.name() == one)) {
            let run = scenario.run(kind, &settings, scratch.directory())?;
            println!("{}", line(&run));
            runs.push(run);
        }
    }
    let (mut throughput, mut floor) = (Vec::new(), Vec::new());
    if is_wanted("throughput") {
        for value_bytes in throughput::SIZES {
            let measure = |_| throughput::measure(&settings, value_bytes, scratch.directory());
            let rounds = (0..ROUNDS).map(measure).collect::<Result<Vec<_>>>()?;
            print_throughput(value_bytes, &rounds);
            throughput.extend(rounds);
            for into in [Into::Fresh, Into::Same] {
                let rounds = (0..ROUNDS).map(|_| floor::measure(value_bytes, into)).collect::<Result<Vec<_>>>()?;
                print_floor(into, &rounds);
                floor.extend(rounds);
            }
        }
    }
    let folder = Path::new("target/bench");
    fs::create_dir_all(folder)?;
    let all = Results { machine: machine::described(), runs: &runs, throughput: &throughput, floor: &floor };
    fs::write(folder.join("churn.json"), serde_json::to_vec_pretty(&all)?)?;
    if !runs.is_empty() {
        fs::write(folder.join("churn.svg"), plot::svg(&runs))?;
    }
    Ok(())
}

fn line(run: &Run) -> String {
    let latencies =
        |phase: &bench::churn::record::Phase| format!("{}, {}, {}", phase.p50_us, phase.p99_us, phase.p999_us);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let why = run.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!(
        "| {} | {} | {:.0} | {} in {:.0} s | {:.2} × | {} | {}{why} | {} | {} | {:.0} / {:.0}, {:.0} | {} of {} |",
        run.scenario,
        run.kind.name(),
        run.steady.loads as f64 / run.steady.seconds,
        thousands(run.deploy.loads as f64, 0),
        run.deploy.seconds,
        run.loads_ratio(),
        thousands(run.extra_loads(), 0),
        run.deploy.failed,
        latencies(&run.steady),
        latencies(&run.deploy),
        megabytes(run.moved_bytes),
        megabytes(run.left_bytes),
        megabytes(run.moved_later_bytes),
        run.deploy.unheard,
        run.deploy.removes,
    )
}

fn spread<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> String {
    let text = |s: Spread| format!("{:.2} ({:.2} to {:.2})", s.median, s.min, s.max);
    Spread::of(rounds.iter().map(figure).collect()).map(text).unwrap_or_default()
}

fn print_throughput(value_bytes: usize, rounds: &[Throughput]) {
    let spread = |figure: fn(&Throughput) -> f64| spread(rounds, figure);
    println!("\n| one of two processes leaves with 0.5 GB in values of {} KiB | |\n|---|---|", value_bytes >> 10);
    println!("| bytes sent : bytes owned | {} |", spread(|r| r.moved_bytes as f64 / r.left_bytes as f64));
    println!(
        "| MB/s, from SIGTERM to the end of the process | {} |",
        spread(|r| r.moved_bytes as f64 / 1e6 / r.seconds)
    );
    println!("| seconds | {} |", spread(|r| r.seconds));
    println!("| cores of both processes, beyond those of gets | {} |", spread(|r| r.used_seconds / r.seconds));
    println!(
        "| µs of processor for each value | {} |",
        spread(|r| r.used_seconds * 1e6 * r.value_bytes as f64 / r.moved_bytes as f64)
    );
}

fn print_floor(into: Into, rounds: &[Floor]) {
    let used = spread(rounds, |r| r.used_seconds * 1e6 * r.value_bytes as f64 / r.bytes as f64);
    let pace = spread(rounds, |r| r.bytes as f64 / 1e6 / r.seconds);
    println!("| a bare socket, into {}: µs of processor for each value, MB/s | {used}, {pace} |", into.described());
}
