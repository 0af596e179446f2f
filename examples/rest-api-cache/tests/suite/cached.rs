//! Cached paths: refreshes, tags, and answers while the upstream fails.
use std::time::{Duration, Instant};

use process::Signal;
use serde_json::json;

use crate::support::{
    Process, TOKEN, eventually, free_ports, local, stage,
    upstream::{Mood, Upstream},
};

const REPOSITORIES: &str = "/orgs/Netflix/repos";
const MEMBERS: &str = "/orgs/Netflix/members";
const ALL: [&str; 4] = ["/", "/orgs/Netflix", MEMBERS, REPOSITORIES];

/// Interval of refreshes that is longer than any test.
const NEVER: (&str, &str) = ("CACHE_REFRESH", "1000");

/// Checks that a refresh of unchanged pages is answered with 304 and does not count against the rate limit, and that a
/// changed page and a new page are seen.
#[test]
fn refresh_of_unchanged_pages_is_free_and_changes_are_seen() {
    let (upstream, process) = stage(&[("GITHUB_API_TOKEN", TOKEN)]);
    assert_eq!(process.json(REPOSITORIES).as_array().unwrap().len(), 152);
    eventually("two pages are requested four times", || upstream.asked(REPOSITORIES).len() >= 8);
    let asked = upstream.asked(REPOSITORIES);
    for (n, each) in asked.iter().enumerate() {
        let page = if n % 2 == 0 { "?per_page=100" } else { "?per_page=100&page=2" };
        assert_eq!(each.path, format!("{REPOSITORIES}{page}"));
        assert_eq!(each.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
        assert_eq!(each.header("if-none-match").is_some(), n >= 2, "{asked:#?}");
        assert_eq!(each.status, if n < 2 { 200 } else { 304 }, "{asked:#?}");
    }
    assert_eq!(upstream.remaining(), 5_000 - 5, "each page counts once");
    let answer = process.get(REPOSITORIES);
    assert_eq!(answer.header("x-cache"), Some("hit"));
    assert!(answer.age() <= 2, "the document is refreshed every second: {answer:?}");

    upstream.change(REPOSITORIES, |all| all[151]["stargazers_count"] = json!(1_000_000));
    let name = process.json(REPOSITORIES)[151]["full_name"].clone();
    eventually("the change is seen", || process.json("/view/top/1/stars") == json!([[name, 1_000_000]]));
    // Page 2 becomes full, and a third page follows.
    upstream.change(REPOSITORIES, |all| {
        let last = all[151].clone();
        all.as_array_mut().unwrap().resize(212, last);
    });
    eventually("a third page is seen", || process.json(REPOSITORIES).as_array().unwrap().len() == 212);
}

/// Checks that documents and views are served as stale while the upstream fails in each way, without waiting for it,
/// and that the service pauses while the rate limit is spent.
#[test]
fn stale_documents_are_served_while_the_upstream_fails() {
    let (upstream, process) = stage(&[("TARGET_TIMEOUT", "25")]);
    let members = process.json(MEMBERS);
    let forks = process.json("/view/top/5/forks");
    // No request waits for the silent upstream, because its time-out is longer than the loop allows an answer to take.
    for mood in [Mood::Failing, Mood::Garbled, Mood::Spent(4), Mood::Silent] {
        eventually("the document is a hit", || process.get(MEMBERS).header("x-cache") == Some("hit"));
        upstream.set_mood(mood);
        let mut slowest = Duration::ZERO;
        eventually("the document is stale", || {
            let begun = Instant::now();
            let answer = process.get(MEMBERS);
            slowest = slowest.max(begun.elapsed());
            assert_eq!(answer.status, 200, "{mood:?}: {answer:?}");
            answer.header("x-cache") == Some("stale") && answer.age() >= 2
        });
        println!("{mood:?}: the slowest answer took {slowest:?}");
        assert!(slowest < Duration::from_secs(15), "a request waited for the upstream, with its time-out of 25 s");
        assert_eq!(process.json(MEMBERS), members);
        assert_eq!(process.json("/view/top/5/forks"), forks);
        eventually("the view is stale", || process.get("/view/top/5/forks").header("x-cache") == Some("stale"));
        if let Mood::Spent(_) = mood {
            // Requests that run when the first 403 arrives get a 403 too: one for each of four paths, and a second one
            // for the path with two pages.
            let refused = ALL.iter().flat_map(|path| upstream.asked(path)).filter(|asked| asked.status == 403).count();
            assert!((1..=5).contains(&refused), "the service sends requests during the pause: {refused}");
        }
        upstream.set_mood(Mood::Well);
    }
}

/// Checks that a document which is refreshed in time is always a hit.
#[test]
fn document_refreshed_in_time_is_never_stale() {
    // An interval of three seconds allows for a pause of the machine of two seconds.
    let (upstream, process) = stage(&[("CACHE_REFRESH", "3")]);
    process.json(MEMBERS);
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        let answer = process.get(MEMBERS);
        assert_eq!(answer.header("x-cache"), Some("hit"), "{answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let asked = upstream.asked(MEMBERS).len();
    assert!((2..=4).contains(&asked), "at 0, 3 and 6 s: {asked}");
}

/// Checks the status of the answer for each failure of the upstream, and that no failure is cached.
#[test]
fn failure_of_the_upstream_is_an_error_and_is_not_cached() {
    for (mood, status) in [(Mood::Failing, 502), (Mood::Garbled, 502), (Mood::Silent, 504), (Mood::Spent(1), 502)] {
        let upstream = Upstream::start(mood);
        let process = Process::start(&upstream, &[NEVER, ("TARGET_TIMEOUT", "1")]);
        let answer = process.get(MEMBERS);
        assert_eq!(answer.status, status, "{mood:?}: {answer:?}");
        assert!(answer.body.starts_with("{\"error\":"), "{answer:?}");
        assert!([502, 504].contains(&process.get("/view/top/5/forks").status), "{mood:?}");

        upstream.set_mood(Mood::Well);
        if let Mood::Spent(_) = mood {
            eventually("the pause ends", || process.get(MEMBERS).status == 200);
        } else {
            assert_eq!(process.get(MEMBERS).header("x-cache"), Some("miss"), "{mood:?}");
        }
        assert_eq!(process.get(MEMBERS).header("x-cache"), Some("hit"));
        assert_eq!(process.json(MEMBERS).as_array().unwrap().len(), 8);
        assert_eq!(process.json("/view/top/5/forks").as_array().unwrap().len(), 5);
    }
}

/// Checks that a missing document is 404, that a path outside of the list is passed on, and that views of a document
/// that is not a list of repositories are 502.
#[test]
fn missing_document_is_404_and_view_of_a_non_list_is_502() {
    let (upstream, process) = stage(&[NEVER, ("ORG_CACHED", "/orgs/{org}, /orgs/{org}/teams")]);
    assert_eq!(process.get("/orgs/Netflix/teams").status, 404);
    assert_eq!(process.get("/").header("x-cache"), None, "a path that is not in the list is passed on");
    upstream.change(REPOSITORIES, |all| *all = json!({ "message": "moved" }));
    let (_, other) = (process, Process::start(&upstream, &[NEVER]));
    let answer = other.get("/view/top/5/forks");
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.body.contains("not repositories"), "{answer:?}");
    assert_eq!(other.json(REPOSITORIES), json!({ "message": "moved" }), "the document itself is served");
}

/// Checks that the service does not follow a link to another host, which would receive the token.
#[test]
fn token_is_not_sent_to_another_host() {
    let (upstream, other) = (Upstream::start(Mood::Well), Upstream::start(Mood::Well));
    upstream.set_mood(Mood::LeadsTo(other.address.port()));
    let process = Process::start(&upstream, &[NEVER, ("GITHUB_API_TOKEN", TOKEN)]);
    let answer = process.get(REPOSITORIES);
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.body.contains("not a page of the upstream"), "{answer:?}");
    assert!(other.asked(REPOSITORIES).is_empty());
}

/// Checks that a cluster of three processes refreshes each path once, that all processes answer alike, and that two go
/// on after the third is killed.
#[test]
fn three_processes_refresh_once_and_answer_alike() {
    let upstream = Upstream::start(Mood::Well);
    let first = free_ports(3);
    let peers: Vec<_> = (0..3).map(|n| format!("n{n}@{}", local(first + n))).collect();
    let peers = peers.join(",");
    let start = |n: u16| {
        let (name, port) = (format!("n{n}"), (first + n).to_string());
        Process::start(&upstream, &[("NODE_NAME", &name), ("GROUP_PORT", &port), ("GROUPCACHE_PEERS", &peers)])
    };
    let mut processes: Vec<_> = (0..3).map(start).collect();
    for process in &processes {
        eventually("the process sees three members", || {
            process.metric("groupcache_members{state=\"ready\"}") == Some(3.0)
        });
    }
    let before = upstream.asked("/").len();
    let window = Duration::from_secs(6);
    std::thread::sleep(window);
    let asked = upstream.asked("/").len() - before;
    println!("{asked} requests in {window:?} (figure: 1 per second)");
    assert!((2..=9).contains(&asked), "one refresh per second in the cluster, not in each process: {asked}");
    for path in ALL {
        let answers: Vec<_> = processes.iter().map(|process| process.json(path)).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{path}");
        assert_eq!(processes[1].get(path).header("x-cache"), Some("hit"), "{path}");
    }
    let stars = processes[0].json("/view/top/10/stars");

    processes[2].signal(Signal::KILL);
    assert!(!processes[2].exits_with_success());
    for process in &processes[..2] {
        for path in ALL {
            assert_eq!(process.get(path).status, 200, "{path}");
        }
        assert_eq!(process.json("/view/top/10/stars"), stars);
    }
}
