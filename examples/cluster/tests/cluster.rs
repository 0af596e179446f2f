//! The example as a whole: real processes that answer over HTTP, end by signals and start again.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, helpers included, that drives processes from outside in real time"
)]
mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use process::Scratch;
use support::{
    Cluster, FETCH, Log, Process, Signal, eventually, free_ports, get, is_free, is_in_cluster_of, json, local, scratch,
    start,
};

const CLUSTER: &str = env!("CARGO_BIN_EXE_cluster");
const LAUNCH: &str = env!("CARGO_BIN_EXE_launch");

/// Maximum time that a supervisor, or a person at a terminal, waits for a process to end.
const TO_END: Duration = Duration::from_secs(10);

/// Checks that all processes answer alike, that only the owner holds a row, and that the database is read once per row.
#[test]
fn three_processes_load_a_row_once() {
    let mut cluster = Cluster::start("load-once");
    let row = json(cluster.http(0), "/data/some-id");
    assert_eq!(row["guid"], "some-id");
    let date = row["date_created"].as_str().unwrap();
    let shape: String = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "RFC 3339 with fractions: {date}");
    for n in 1..3 {
        assert_eq!(json(cluster.http(n), "/data/some-id"), row);
    }

    let held = |cache: &str| -> Vec<_> { (0..3).map(|n| json(cluster.http(n), &format!("/stats/{cache}"))).collect() };
    let sum = |all: &[serde_json::Value], name: &str| all.iter().map(|one| one[name].as_u64().unwrap()).sum::<u64>();
    let (main, hot) = (held("main"), held("hot"));
    assert_eq!((sum(&main, "items"), sum(&hot, "items")), (1, 0), "the owner holds the row: {main:?} {hot:?}");
    assert_eq!(sum(&main, "gets"), 3, "each process had one get: {main:?}");
    assert!(sum(&main, "bytes") > 0 && sum(&hot, "bytes") == 0 && sum(&main, "hits") <= 1, "{main:?} {hot:?}");

    // All three processes get 30 more rows at the same time.
    std::thread::scope(|scope| {
        let ask = |n: u16| (0..30).map(|id| json(cluster.http(n), &format!("/data/id-{id}"))).collect::<Vec<_>>();
        let asked: Vec<_> = (0..3).map(|n| scope.spawn(move || ask(n))).collect();
        let rows: Vec<_> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
        assert_eq!(rows[0], rows[1]);
        assert_eq!(rows[0], rows[2]);
    });

    for process in &mut cluster.processes {
        process.signal(Signal::TERM);
    }
    for process in &mut cluster.processes {
        assert!(process.ends_within(TO_END).success());
    }
    assert_eq!(cluster.log.count(FETCH), 31, "{:#?}", cluster.log.lines());
    assert_eq!(cluster.log.count(&format!("{FETCH} key=\"some-id\"")), 1);
    let lines: BTreeSet<_> = (0..30).filter(|id| cluster.log.count(&format!("key=\"id-{id}\"")) == 1).collect();
    assert_eq!(lines.len(), 30, "each row is loaded once");
}

/// Checks that gets at one process never fail while a second process is killed, a third is terminated, and both start
/// again.
#[test]
fn killed_or_terminated_process_rejoins_without_failed_gets() {
    let mut cluster = Cluster::start("rejoin");
    let (http, is_over) = (cluster.http(0), AtomicBool::new(false));
    let (mut asked, mut failed) = (0, Vec::new());
    std::thread::scope(|scope| {
        // The guard also ends the loop of the asker when an assertion fails.
        let over = SetOnDrop(&is_over);
        let asker = scope.spawn(|| {
            let (mut asked, mut failed) = (0, Vec::new());
            while !is_over.load(Relaxed) {
                let answer = get(http, &format!("/data/row-{asked}"));
                asked += 1;
                if answer.as_ref().is_none_or(|(status, _)| *status != 200) {
                    failed.push((asked, answer));
                }
            }
            (asked, failed)
        });

        cluster.processes[1].signal(Signal::KILL);
        assert!(!cluster.processes[1].ends_within(TO_END).success());
        eventually("n3 sees that n2 is unreachable", || {
            let members = json(cluster.http(2), "/stats")["members"].clone();
            members.as_array().unwrap().iter().any(|member| member["id"] == "n2" && member["is_reachable"] == false)
        });
        cluster.processes[1] = cluster.process(1);
        cluster.agree();

        cluster.processes[2].signal(Signal::TERM);
        assert!(cluster.processes[2].ends_within(TO_END).success(), "{:#?}", cluster.log.lines());
        eventually("n1 sees two members", || is_in_cluster_of(2, cluster.http(0)));
        cluster.processes[2] = cluster.process(2);
        cluster.agree();

        drop(over);
        (asked, failed) = asker.join().unwrap();
    });
    assert!(asked > 100, "only {asked} gets");
    assert!(failed.is_empty(), "{} of {asked} gets failed: {failed:?}", failed.len());
    // The two new processes serve the same row.
    assert_eq!(json(cluster.http(1), "/data/row-0"), json(cluster.http(2), "/data/row-0"));
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Checks that processes with one cluster key share rows, that a process with another key stays alone and serves from
/// the database, and that no key appears in a log.
#[test]
fn cluster_key_keeps_out_a_process_with_another_key() {
    let [ours, theirs] =
        ["1kzNdPkhZJ6L4bmd8bcPYQmCxp8eI2a7A1yj3uVJ2Yk=", "Zr1C0RIn2uYVt5cJHq0h4c8gXfKQxw9kDqv1m3n7s0E="];
    let mut cluster = Cluster::start_with("cluster-key", &[("GROUPCACHE_CLUSTER_KEY", ours)]);
    assert_eq!(json(cluster.http(0), "/data/some-id"), json(cluster.http(1), "/data/some-id"));

    cluster.processes[2].signal(Signal::KILL);
    cluster.processes[2].ends_within(TO_END);
    cluster.processes[2] = cluster.process_with(2, &[("GROUPCACHE_CLUSTER_KEY", theirs)]);
    eventually("the process with another key serves alone", || is_in_cluster_of(1, cluster.http(2)));
    assert_eq!(json(cluster.http(0), "/data/some-id"), json(cluster.http(2), "/data/some-id"), "from the database");
    eventually("the logs name the reason for the refusal", || {
        cluster.log.count("refused a connection") > 0 && cluster.log.count("another cluster key") > 0
    });
    for process in &mut cluster.processes {
        process.signal(Signal::TERM);
        assert!(process.ends_within(TO_END).success());
    }
    let log = cluster.log.lines().join("\n");
    assert!(!log.contains(ours) && !log.contains(theirs), "{log}");
}

/// Checks the status of each failure: 504 for a slow backend, 502 for a failed one, 400 for a bad guid, 404 for an
/// unknown page. The process stays live.
#[test]
fn slow_backend_and_bad_requests_have_their_own_status() {
    let scratch = scratch("errors");
    let (database, port) = (scratch.path("data.db"), free_ports(1));
    let address = local(port).to_string();
    let _process = start(CLUSTER, &[("HTTP_ADDR", &address), ("DATABASE", &database)], &Log::default());
    eventually("a process without peers is ready", || is_in_cluster_of(1, port));

    let writer = rusqlite::Connection::open(&database).unwrap();
    writer.busy_timeout(Duration::from_secs(5)).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = Instant::now();
    let (status, body) = get(port, "/data/some-id").unwrap();
    assert_eq!(status, 504, "{body}");
    assert!(begun.elapsed() >= Duration::from_millis(240), "after {:?}", begun.elapsed());
    assert!(body.starts_with("{\"error\":\""), "{body}");
    writer.execute_batch("ROLLBACK").unwrap();
    eventually("the row is there once the backend answers", || {
        get(port, "/data/some-id").is_some_and(|(status, _)| status == 200)
    });

    writer.execute_batch("DROP TABLE data").unwrap();
    let cases = [
        ("/data/".to_owned(), 400),
        (format!("/data/{}", "x".repeat(1025)), 400),
        ("/data/%ff".to_owned(), 400),
        ("/elsewhere".to_owned(), 404),
        ("/stats/warm".to_owned(), 400),
        ("/data/another-id".to_owned(), 502),
    ];
    for (path, expected) in cases {
        let (status, body) = get(port, &path).unwrap();
        assert_eq!(status, expected, "{path}: {body}");
        assert!(body.starts_with("{\"error\":\""), "{path}: {body}");
    }
    assert_eq!(get(port, "/healthz").unwrap().0, 200);
}

/// Checks that a process which cannot start ends with exit code 1 and one line that names the setting.
#[test]
fn bad_setting_ends_the_process_with_one_line() {
    let scratch = scratch("bad-start");
    let taken = TcpListener::bind(local(0)).unwrap();
    let (taken, free) = (taken.local_addr().unwrap().port().to_string(), local(free_ports(1)).to_string());
    let taken_http = format!("127.0.0.1:{taken}");
    let good = scratch.path("good.db");
    fs::write(scratch.path("garbage.db"), "this is no database, whatever its name says".repeat(100)).unwrap();
    let (garbage, directory, nowhere) = (scratch.path("garbage.db"), scratch.path(""), scratch.path("no/such/data.db"));
    let cases: &[(&str, &str, &str)] = &[
        ("HTTP_ADDR", &taken_http, &taken_http),
        ("GROUP_PORT", &taken, &taken),
        ("GROUP_PORT", "99999", "GROUP_PORT"),
        ("NODE_IP", "abc", "NODE_IP"),
        ("NODE_IP", "0.0.0.0", "GROUPCACHE_INSECURE"),
        ("GROUPCACHE_CLUSTER_KEY", "too short", "/dev/urandom"),
        ("GROUPCACHE_CLUSTER_KEY_FILE", "/no/such/key", "/no/such/key"),
        ("NODE_NAME", "two words", "two words"),
        ("PEERS", "nonsense", "\"nonsense\""),
        ("PEERS", "127.0.0.1:7946", "GROUP_PORT"), // GROUP_PORT is missing
        ("HTTP_ADDR", "8080", "HTTP_ADDR"),
        ("BACKEND_TIMEOUT_MS", "0", "BACKEND_TIMEOUT_MS"),
        ("RUST_LOG", "loud=very", "RUST_LOG"),
        ("DATABASE", &garbage, "garbage.db"),
        ("DATABASE", &directory, "DATABASE"),
        ("DATABASE", &nowhere, "no/such/data.db"),
    ];
    for (name, value, expected) in cases {
        let mut vars = vec![("HTTP_ADDR", free.as_str()), ("DATABASE", good.as_str())];
        vars.retain(|(other, _)| other != name);
        vars.push((name, value));
        let mut process = start(CLUSTER, &vars, &Log::default());
        let status = process.ends_within(TO_END);
        let lines = process.err.lines();
        assert_eq!(status.code(), Some(1), "{name}={value}: {lines:?}");
        assert_eq!(lines.len(), 1, "{name}={value}: {lines:#?}");
        assert!(lines[0].starts_with("cluster: ") && lines[0].contains(expected), "{name}={value}: {}", lines[0]);
        assert!(!lines[0].contains("panicked"), "{name}={value}: {}", lines[0]);
    }
}

/// Checks that the launcher starts one cluster of three processes, prints requests to try, and leaves nothing behind
/// after Ctrl-C or SIGTERM.
#[test]
fn launcher_starts_three_processes_and_ends_them_on_signals() {
    let ends: [fn(&Process); 2] = [
        |launcher| launcher.signal_group(Signal::INT), // as a terminal does
        |launcher| launcher.signal(Signal::TERM),      // as make does
    ];
    for end in ends {
        let (http, group, scratch) = (free_ports(3), free_ports(3), scratch("launcher"));
        let mut launcher = launch(http, group, &scratch);
        eventually("the launcher prints requests to try", || launcher.out.count("curl http://") > 0);
        for port in [http, http + 1, http + 2] {
            assert!(launcher.out.count(&format!("curl http://127.0.0.1:{port}/data/some-id")) == 1);
            assert!(is_in_cluster_of(3, port), "the three processes are one cluster by then");
            assert_eq!(json(port, "/data/some-id")["guid"], "some-id");
        }
        let children = launcher.children();
        assert_eq!(children.len(), 3);

        end(&launcher);
        assert!(launcher.ends_within(TO_END).success(), "{:#?}", launcher.err.lines());
        assert_nothing_left(&children, http, group, &scratch);
        let loads = launcher.out.count(&format!("{FETCH} key="));
        assert_eq!(loads, 1, "{:#?}", launcher.out.lines());
        for name in ["n1 | ", "n2 | ", "n3 | "] {
            assert!(launcher.out.lines().iter().any(|line| line.starts_with(name)), "lines of {name}");
        }
    }
}

/// Checks that the launcher ends with exit code 1, and names the process and its port, when one process cannot start. A
/// bad setting of the launcher itself is one line that names the variable.
#[test]
fn launcher_ends_when_one_process_cannot_start() {
    let (http, group, scratch) = (free_ports(3), free_ports(3), scratch("launcher-fails"));
    let taken = TcpListener::bind(local(http + 1)).unwrap();
    let mut launcher = launch(http, group, &scratch);
    let status = launcher.ends_within(Duration::from_secs(20));
    drop(taken);
    let lines = launcher.err.lines();
    assert_eq!(status.code(), Some(1), "{lines:?}");
    let prefix = format!("n2 | cluster: cannot listen for HTTP on 127.0.0.1:{}", http + 1);
    assert!(lines.iter().any(|line| line.starts_with(&prefix)), "a line names the port: {lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("launch: n2 ended")), "a line names the process: {lines:?}");
    assert_nothing_left(&[], http, group, &scratch);

    for (name, value) in [("NODES", "0"), ("NODES", "many"), ("HTTP_PORT", "65535"), ("GROUP_PORT", "8081")] {
        let mut launcher = start(LAUNCH, &[(name, value)], &Log::default());
        assert_eq!(launcher.ends_within(TO_END).code(), Some(1));
        let lines = launcher.err.lines();
        assert!(lines.len() == 1 && lines[0].contains(name), "{name}={value}: {lines:?}");
    }
}

fn launch(http: u16, group: u16, scratch: &Scratch) -> Process {
    let (http, group, temporary) = (http.to_string(), group.to_string(), scratch.path(""));
    let vars = [("HTTP_PORT", http.as_str()), ("GROUP_PORT", &group), ("TMPDIR", &temporary)];
    start(LAUNCH, &vars, &Log::default())
}

/// Checks that no file, no child process and no listener of the launcher is left.
fn assert_nothing_left(children: &[String], http: u16, group: u16, scratch: &Scratch) {
    let left: Vec<_> = fs::read_dir(scratch.path("")).unwrap().collect();
    assert!(left.is_empty(), "files are left: {left:?}");
    for pid in children {
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "process {pid} is left");
    }
    for port in (http..http + 3).chain(group..group + 3) {
        assert!(is_free(port), "port {port} is still in use");
    }
}
