//! Report: the tables, and the bars that the ratios must reach.

use std::fmt::Write as _;

use crate::{
    figures::{Results, Spread},
    sections::{
        cluster::{MANY, START, ZIPF},
        local::{HITS, Local, MISSES},
        membership,
        remote::cell,
    },
    targets::Remote,
};

/// Sections of remote gets, which are shown with all their figures.
const REMOTE: [&str; 5] =
    ["remote gets", "remote gets of large values", "one caller, one core", "half of the load", "one in ten is a set"];

/// A bar for the ratio of two targets in one cell, round by round.
struct Bar {
    section: &'static str,
    cell: String,
    figure: &'static str,
    one: &'static str,
    other: &'static str,
    limit: Limit,
}

enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

fn bars() -> Vec<Bar> {
    let (this_crate, groupcache_rs, unary) =
        (Remote::ThisCrate.name(), Remote::GroupcacheRs.name(), Remote::Unary.name());
    let (memcached, pipelined) = (Remote::Memcached.name(), Remote::MemcachedPipelined.name());
    let bar = |section, cell: &str, figure, one, other, limit| Bar {
        section,
        cell: cell.to_owned(),
        figure,
        one,
        other,
        limit,
    };
    let rate = |section, bytes, callers, other, limit| {
        bar(section, &cell(bytes, callers), "per_second", this_crate, other, Limit::AtLeast(limit))
    };
    let tail = |callers| {
        let cell = format!("{}, half of its load", cell(100, callers));
        bar("half of the load", &cell, "p99_us / p50_us", this_crate, this_crate, Limit::AtMost(3.0))
    };
    vec![
        bar(HITS, "1 thread", "ns", this_crate, Local::QuickCache.name(), Limit::AtMost(2.0)),
        bar(HITS, "1 thread", "ns", Local::ThisCrateDecoded.name(), Local::QuickCache.name(), Limit::AtMost(2.0)),
        bar(HITS, "1 thread", "ns", this_crate, groupcache_rs, Limit::AtMost(0.25)),
        rate("remote gets", 100, 64, groupcache_rs, 6.0),
        rate("remote gets", 100, 64, memcached, 2.5),
        rate("remote gets", 100, 64, pipelined, 0.5),
        rate("remote gets", 100, 512, groupcache_rs, 15.0),
        rate("remote gets", 100, 512, memcached, 8.0),
        rate("remote gets", 100, 512, pipelined, 0.5),
        rate("one caller, one core", 100, 1, unary, 1.0),
        rate("one caller, one core", 100, 1, memcached, 0.6),
        rate("remote gets of large values", 65536, 16, unary, 1.5),
        rate("remote gets of large values", 65536, 16, memcached, 0.4),
        tail(64),
        tail(512),
        bar(MANY, "100 keys", "per_second", "get_many", "gets at once", Limit::AtLeast(1.5)),
    ]
}

fn spread(results: &Results, bar: &Bar) -> Option<Spread> {
    match bar.figure.split_once(" / ") {
        Some((one, other)) => results.ratio_of_figures(bar.section, &bar.cell, bar.one, one, other),
        None => results.ratio(bar.section, &bar.cell, bar.figure, bar.one, bar.other),
    }
}

fn verdicts(results: &Results) -> String {
    let mut text = String::from("| what | bar | measured, and from round to round | |\n|---|---|---|---|\n");
    for bar in bars() {
        let Some(ratio) = spread(results, &bar) else { continue };
        let (limit, holds) = match bar.limit {
            Limit::AtLeast(limit) => (format!("≥ {limit} ×"), ratio.median >= limit),
            Limit::AtMost(limit) => (format!("≤ {limit} ×"), ratio.median <= limit),
        };
        let verdict = if holds { "reached" } else { "**missed**" };
        let pair = if bar.one == bar.other {
            format!("{}, {}", bar.one, bar.figure)
        } else {
            format!("{} : {}", bar.one, bar.other)
        };
        let _ = writeln!(
            text,
            "| {}, {}: {pair} | {limit} | {:.2} ({:.2} – {:.2}) | {verdict} |",
            bar.section, bar.cell, ratio.median, ratio.min, ratio.max
        );
    }
    let scaling = |target| Some(2.0 * results.ratio_of_cells(HITS, "1 thread", "2 threads", "ns", target)?.median);
    if let (Some(this_crate), Some(bare)) = (scaling(Local::ThisCrate.name()), scaling(Local::QuickCache.name())) {
        let verdict = if this_crate >= 0.95 * bare { "reached" } else { "**missed**" };
        let _ = writeln!(
            text,
            "| {HITS}, 2 threads : 1 | ≥ 0.95 × that of bare quick_cache | {this_crate:.2} : {bare:.2} | {verdict} |"
        );
    }
    if let Some(miss) = results.spread(MISSES, "loader answers at once", "ours", "ns") {
        let verdict = if miss.median <= 4000.0 { "reached" } else { "**missed**" };
        let _ = writeln!(text, "| {MISSES}, processor | ≤ 4,000 ns | {:.0} | {verdict} |", miss.median);
    }
    text
}

/// Returns the whole report as Markdown.
pub fn text(results: &Results, rounds: usize, seconds: f64) -> String {
    let mut text = format!("{}. {rounds} rounds of {seconds} s.\n\n", results.machine);
    text.push_str(&verdicts(results));
    let mut table = |section: &str, figure: &str, digits| {
        let targets = results.targets(section);
        let mut columns: Vec<_> = targets.iter().map(String::as_str).collect();
        columns.sort_by_key(|name| Remote::ALL.iter().position(|target| target.name() == *name));
        if !columns.is_empty() {
            text.push('\n');
            text.push_str(&results.table(section, figure, &columns, digits));
        }
    };
    for section in [HITS, MISSES] {
        table(section, "ns", 0);
    }
    for section in REMOTE {
        for figure in ["per_second", "p50_us", "p99_us", "p999_us", "max_us", "client_ns", "server_ns"] {
            table(section, figure, 0);
        }
        for figure in ["client_wakes", "server_wakes", "errors"] {
            table(section, figure, 2);
        }
    }
    for (section, figure, digits) in [
        (MANY, "per_second", 0),
        (MANY, "share", 2),
        (ZIPF, "per_second", 0),
        (ZIPF, "share", 2),
        (START, "ms", 1),
        (membership::NAME, "ms", 1),
        (membership::NAME, "cpu_ms", 2),
    ] {
        table(section, figure, digits);
    }
    text
}
