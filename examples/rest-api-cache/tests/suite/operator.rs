//! Operation of the service: limits, request ids, metrics, bad settings, and the end of the process.
use std::{fs, net::TcpListener, path::Path, time::Instant};

use process::Signal;

use crate::support::{CONFIG, Process, ask, eventually, free_ports, local, stage, upstream::Mood};

/// Checks that a client beyond its limit gets 429 with `Retry-After`, that health checks have no limit, and that the
/// client may send requests again later.
#[test]
fn client_beyond_its_limit_is_refused_for_a_while() {
    let (_upstream, process) = stage(&[("LIMIT_PER_SECOND", "1"), ("LIMIT_BURST", "5")]);
    let answers: Vec<_> = (0..8).map(|_| process.get("/orgs/Netflix")).collect();
    assert!(answers[..5].iter().all(|answer| answer.status == 200), "{answers:?}");
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert_eq!(refused.header("retry-after"), Some("1"), "{refused:?}");
    assert_eq!(process.get("/healthcheck").status, 200, "health checks have no limit");
    eventually("the client is served again", || process.get("/orgs/Netflix").status == 200);
}

/// Checks that an answer has the id of the client if that is plain and short, and otherwise a new one.
#[test]
fn every_answer_has_an_id() {
    let (_upstream, process) = stage(&[]);
    let id = |header: &[&str]| {
        let answer = ask(process.port, "GET /healthcheck HTTP/1.1", header).unwrap();
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id(&["x-request-id: from-the-balancer_7.1"]), "from-the-balancer_7.1");
    let made = [id(&[]), id(&[]), id(&["x-request-id: a b"]), id(&[&format!("x-request-id: {}", "x".repeat(65))])];
    for (n, one) in made.iter().enumerate() {
        assert!(one.len() == 16 && one.chars().all(|c| c.is_ascii_hexdigit()), "{made:?}");
        assert!(!made[..n].contains(one), "{made:?}");
    }
    assert!(process.get("/view/top/x/forks").header("x-request-id").is_some(), "an error has an id");
}

/// Checks the metrics of requests, of the upstream, of the cache and of the process.
#[test]
fn metrics_count_requests_by_endpoint_and_outcome() {
    let (upstream, process) = stage(&[]);
    for path in ["/orgs/Netflix", "/orgs/Netflix", "/view/top/5/forks", "/view/top/0/forks", "/users/chali/orgs"] {
        process.get(path);
    }
    let count = |endpoint: &str, status: u16| {
        process.metric(&format!("http_requests_total{{endpoint=\"{endpoint}\",status=\"{status}\"}}"))
    };
    assert_eq!(count("/orgs/Netflix", 200), Some(2.0));
    assert_eq!(count("/view/top/{count}/{view}", 200), Some(1.0));
    assert_eq!(count("/view/top/{count}/{view}", 400), Some(1.0));
    assert_eq!(count("proxy", 200), Some(1.0));
    assert_eq!(process.metric("http_request_seconds_count{endpoint=\"/orgs/Netflix\"}"), Some(2.0));
    assert!(
        process.metric("upstream_requests_total{status=\"200\"}").unwrap() >= 6.0,
        "four paths, one with two pages"
    );
    assert!(process.metric("upstream_rate_limit_remaining").unwrap() < 5_000.0);
    assert!(process.metric("groupcache_gets_total{group=\"documents\"}").unwrap() >= 2.0);
    assert!(process.metric("process_resident_memory_bytes").unwrap() > 1e6);
    eventually("the process has used processor time", || process.metric("process_cpu_seconds_total").unwrap() > 0.0);
    upstream.set_mood(Mood::Silent);
    eventually("requests without an answer are counted", || {
        process.metric("upstream_requests_total{status=\"none\"}").is_some_and(|count| count > 0.0)
    });
}

/// Checks that a process answers its running request after SIGTERM, exits with success and frees its port.
#[test]
fn terminated_process_answers_its_running_request() {
    let (upstream, mut process) = stage(&[]);
    upstream.set_mood(Mood::Slow);
    let port = process.port;
    let asked = std::thread::spawn(move || ask(port, "GET /users/chali/orgs HTTP/1.1", &[]).unwrap().status);
    eventually("the upstream has the request", || upstream.has_received("/users/chali/orgs"));
    let begun = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(asked.join().unwrap(), 200, "{:#?}", process.log());
    assert!(process.exits_with_success(), "{:#?}", process.log());
    println!("ended {:?} after SIGTERM", begun.elapsed());
    assert!(!process.said("cutting off"), "{:#?}", process.log());
    assert!(TcpListener::bind(local(port)).is_ok());
}

/// Writes a configuration file for a test and returns its path.
fn file(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.yaml", std::process::id()));
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Checks that a process with a bad setting ends with one line that names the setting and shows no password.
#[test]
fn bad_setting_ends_the_process_with_one_line() {
    let good = fs::read_to_string(CONFIG).unwrap();
    let port = free_ports(1).to_string();
    let taken = TcpListener::bind(local(free_ports(1))).unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();
    let secret = file("secret", &good.replace("url: api.github.com", "url: me:password-7@api.github.com"));
    for (vars, expected) in [
        (vec![("CONFIG", "/nowhere/config.yaml")], "/nowhere/config.yaml"),
        (vec![("CONFIG", &*file("broken", "server: ["))], "while parsing"),
        (vec![("CONFIG", &*file("typo", &good.replace("refresh:", "refersh:")))], "refersh"),
        (vec![("CONFIG", &*file("missing", &good.replace("  port: 3000\n", "")))], "port"),
        (vec![("CONFIG", CONFIG), ("SERVER_PORT", "many")], "server.port"),
        (vec![("CONFIG", CONFIG), ("CACHE_REFRESH", "0")], "cache.refresh"),
        (vec![("CONFIG", CONFIG), ("TARGET_URL", "https://api.github.com/")], "without a scheme"),
        (vec![("CONFIG", &*secret)], "without a scheme"),
        (vec![("CONFIG", CONFIG), ("SERVER_PORT", &*taken)], "set SERVER_PORT to a free port"),
        (vec![("CONFIG", CONFIG), ("SERVER_PORT", &*port), ("GROUPCACHE_DISCOVERY", "pigeons")], "pigeons"),
        (vec![("CONFIG", CONFIG), ("SERVER_PORT", &*port), ("GITHUB_API_TOKEN", "a\u{7f}b")], "GITHUB_API_TOKEN"),
    ] {
        let mut process = Process::spawn(0, &vars);
        assert!(!process.exits_with_success(), "{vars:?}");
        let lines = process.log();
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].starts_with("rest-api-cache: ") && lines[0].contains(expected), "{vars:?}: {lines:#?}");
        assert!(!lines[0].contains("password-7"), "{lines:#?}");
    }
}

/// Checks that a variable overrides the file, unless the variable is empty.
#[test]
fn environment_overrides_the_file() {
    let (upstream, _) = stage(&[]);
    let [in_file, in_environment] = [free_ports(1), free_ports(1)];
    let text = fs::read_to_string(CONFIG).unwrap().replace("port: 3000", &format!("port: {in_file}"));
    let text = text.replace("scheme: https", "scheme: http").replace("api.github.com", &upstream.address.to_string());
    let config = file("precedence", &text);
    let number = in_environment.to_string();
    for (port, other, vars) in [
        (in_file, in_environment, vec![("CONFIG", &*config)]),
        (in_environment, in_file, vec![("CONFIG", &*config), ("SERVER_PORT", &*number)]),
        (in_file, in_environment, vec![("CONFIG", &*config), ("SERVER_PORT", "")]),
    ] {
        let process = Process::spawn(port, &vars);
        eventually("the process answers", || process.ask("/healthcheck").is_some());
        assert!(ask(other, "GET /healthcheck HTTP/1.1", &[]).is_none());
    }
}
