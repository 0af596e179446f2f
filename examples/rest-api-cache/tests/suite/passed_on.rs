//! What is not cached, and is asked of the upstream for each client.
use process::Signal;

use crate::support::{TOKEN, ask, eventually, stage, upstream::Mood};

const ORGS: &str = "/users/chali/orgs";

#[test]
fn the_upstreams_answers_are_passed_on_as_they_are() {
    let (upstream, process) = stage(&[("GITHUB_API_TOKEN", TOKEN)]);
    let (line, mine) =
        (format!("GET {ORGS}?page=1 HTTP/1.1"), ["authorization: Bearer mine", "cookie: c=1", "accept: a/b"]);
    for _ in 0..2 {
        let answer = ask(process.port, &line, &mine).unwrap();
        assert_eq!((answer.status, answer.header("x-cache")), (200, None));
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        assert!(answer.header("x-ratelimit-remaining").is_some());
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

#[test]
fn nothing_is_changed_through_it() {
    let (upstream, process) = stage(&[]);
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in ["/user/repos", "/"] {
            let answer = ask(process.port, &format!("{method} {path} HTTP/1.1"), &[]).unwrap();
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
    }
    assert!(upstream.asked("/user/repos").is_empty());
}

#[test]
fn an_upstream_that_is_unwell_is_told_apart() {
    let (upstream, process) = stage(&[("TARGET_TIMEOUT", "1")]);
    upstream.feels(Mood::Failing);
    assert_eq!(process.get(ORGS).status, 500, "its own answer");
    upstream.feels(Mood::Silent);
    assert_eq!(process.get(ORGS).status, 504);
    upstream.feels(Mood::Spent(3));
    eventually("it says that its rate limit is spent", || [403, 503].contains(&process.get(ORGS).status));
    let before = upstream.asked(ORGS).len();
    let answer = process.get(ORGS);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!((1..=4).contains(&answer.header("retry-after").unwrap().parse::<u64>().unwrap()), "{answer:?}");
    assert_eq!(upstream.asked(ORGS).len(), before, "it is left alone");
    upstream.feels(Mood::Well);
    eventually("it may be asked again", || process.get(ORGS).status == 200);
}

#[test]
fn the_token_is_in_no_line_of_the_log() {
    // Each line is looked at, at every level.
    let (_upstream, mut process) = stage(&[("GITHUB_API_TOKEN", TOKEN), ("RUST_LOG", "trace")]);
    assert_eq!(process.get(ORGS).status, 200);
    assert_eq!(process.get("/orgs/Netflix").status, 200);
    process.signal(Signal::TERM);
    assert!(process.ends());
    assert!(process.said("token: ***"), "what is configured is said, without it: {:#?}", process.log());
}
