//! Paths that are not cached: each request of a client is a request to the upstream.
use process::Signal;

use crate::support::{TOKEN, ask, ask_host, eventually, stage, upstream::Mood};

const ORGS: &str = "/users/chali/orgs";

/// Checks which headers of the client reach the upstream, that answers are passed on with status, tag and links, and
/// that the token of the service takes the place of the client's credentials.
#[test]
fn answers_of_the_upstream_are_passed_on_unchanged() {
    let (upstream, process) = stage(&[("GITHUB_API_TOKEN", TOKEN)]);
    let (line, mine) =
        (format!("GET {ORGS}?page=1 HTTP/1.1"), ["authorization: Bearer mine", "cookie: c=1", "accept: a/b"]);
    for _ in 0..2 {
        let answer = ask(process.port, &line, &mine).unwrap();
        assert_eq!((answer.status, answer.header("x-cache")), (200, None));
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        assert!(answer.header("x-ratelimit-remaining").is_some());
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("content-security-policy"), Some("default-src 'none'"));
    }
    let asked = upstream.asked(ORGS);
    assert_eq!(asked.len(), 2, "not cached");
    assert_eq!(asked[0].path, format!("{ORGS}?page=1"));
    assert_eq!(asked[0].header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!((asked[0].header("cookie"), asked[0].header("accept")), (None, Some("a/b")));

    let etag = ask(process.port, &line, &[]).unwrap().header("etag").unwrap().to_owned();
    assert_eq!(ask(process.port, &line, &[&format!("if-none-match: {etag}")]).unwrap().status, 304);
    let answer = process.get("/users/nobody");
    assert_eq!((answer.status, answer.body.as_str()), (404, r#"{"message":"Not Found"}"#));
    let links = process.get("/orgs/Netflix/repos?per_page=100");
    let next = "</orgs/Netflix/repos?per_page=100&page=2>; rel=\"next\"";
    assert!(links.header("link").unwrap().contains(next), "{:?}", links.header("link"));
    let head = ask(process.port, &format!("HEAD {ORGS} HTTP/1.1"), &[]).unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

/// Checks that methods other than GET and HEAD are refused and do not reach the upstream.
#[test]
fn writes_are_refused() {
    let (upstream, process) = stage(&[]);
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in ["/user/repos", "/"] {
            let answer = ask(process.port, &format!("{method} {path} HTTP/1.1"), &[]).unwrap();
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
    }
    assert!(upstream.asked("/user/repos").is_empty());
}

/// Checks the status for each failure of the upstream: its own status, 504 for no answer, 503 for a spent rate limit.
#[test]
fn each_failure_of_the_upstream_has_its_own_status() {
    let (upstream, process) = stage(&[("TARGET_TIMEOUT", "1")]);
    upstream.set_mood(Mood::Failing);
    assert_eq!(process.get(ORGS).status, 500, "the answer of the upstream");
    upstream.set_mood(Mood::Silent);
    assert_eq!(process.get(ORGS).status, 504);
    upstream.set_mood(Mood::Spent(3));
    eventually("the rate limit is spent", || [403, 503].contains(&process.get(ORGS).status));
    let before = upstream.asked(ORGS).len();
    let answer = process.get(ORGS);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!((1..=4).contains(&answer.header("retry-after").unwrap().parse::<u64>().unwrap()), "{answer:?}");
    assert_eq!(upstream.asked(ORGS).len(), before, "no request reaches the upstream during the pause");
    upstream.set_mood(Mood::Well);
    eventually("the pause ends", || process.get(ORGS).status == 200);
}

/// Checks that spent searches pause searches only, which GitHub counts apart.
#[test]
fn spent_searches_pause_no_other_path() {
    let (upstream, process) = stage(&[]);
    let search = "/search/repositories";
    let statuses: Vec<_> = (0..11).map(|n| process.get(&format!("{search}?q={n}")).status).collect();
    assert_eq!((&statuses[..10], statuses[10]), ([200; 10].as_slice(), 403));
    assert_eq!(process.get(&format!("{search}?q=12")).status, 503);
    assert_eq!(upstream.asked(search).len(), 11, "no search reaches the upstream during the pause");
    assert_eq!(process.get(ORGS).status, 200);
}

/// Checks that a service on a loopback address answers no request for a foreign host, and the hosts that it is told.
#[test]
fn foreign_host_is_refused_on_a_loopback_address() {
    let (upstream, process) = stage(&[("SERVER_HOSTS", "cache.example")]);
    let line = format!("GET {ORGS} HTTP/1.1");
    let status = |host: &str| ask_host(process.port, host, &line, &[]).unwrap().status;
    let own = format!("127.0.0.1:{}", process.port);
    for (host, expected) in [("evil.example:3000", 421), ("cache.example", 200), (&own, 200), ("", 421)] {
        assert_eq!(status(host), expected, "{host}");
    }
    assert_eq!(upstream.asked(ORGS).len(), 2);
}

/// Checks that no line of the log contains the token, at any level. [`Process::spawn`](crate::support::Process::spawn)
/// reads every line.
#[test]
fn token_is_in_no_line_of_the_log() {
    let (_upstream, mut process) = stage(&[("GITHUB_API_TOKEN", TOKEN), ("RUST_LOG", "trace")]);
    assert_eq!(process.get(ORGS).status, 200);
    assert_eq!(process.get("/orgs/Netflix").status, 200);
    process.signal(Signal::TERM);
    assert!(process.exits_with_success());
    assert!(process.said("token: ***"), "the log shows the settings without the token: {:#?}", process.log());
}
