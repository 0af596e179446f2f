//! Alert rules and dashboards of `deploy/monitoring` against three processes that a real Prometheus scrapes.
//!
//! Needs `prometheus` and `promtool`, which `make deps` installs.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test may panic at an unexpected outcome, and opens sockets of its own"
)]
#[expect(dead_code, unused_imports, reason = "another test uses the other helpers")]
mod support;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::TcpStream,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use process::{Process, Start, free_ports, local};
use serde_json::Value;
use support::{Cluster, get, scratch};

/// Folder of the rules and the dashboards.
const MONITORING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/monitoring");

/// Maximum time until Prometheus has evaluated everything, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Returns whether a tool of Prometheus is installed. Otherwise reports the test as left out.
fn has(tool: &str) -> bool {
    let has = Command::new(tool).arg("--version").output().is_ok();
    if !has {
        segment::leave_out(&format!("needs {tool}: make deps"));
    }
    has
}

fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).current_dir(MONITORING).output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text
}

fn text_of(file: &str) -> String {
    fs::read_to_string(format!("{MONITORING}/{file}")).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Returns the names of the metrics in an expression.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("groupcache_")).map(ToOwned::to_owned).collect()
}

/// Returns the title of each panel of a dashboard with its expressions, with the variables of the dashboard filled in.
fn panels(file: &str) -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&text_of(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let filled = expression.replace("$job", ".*").replace("$group", "data").replace("$__rate_interval", "30s");
            assert!(!filled.contains('$'), "{title}: an unknown variable in {expression}");
            all.push((format!("{file}: {title}"), filled));
        }
    }
    all
}

/// Prometheus that scrapes some processes every second and evaluates the alert rules.
struct Prometheus {
    port: u16,
    process: Process,
}

impl Prometheus {
    fn start(scratch: &process::Scratch, targets: &[u16]) -> Self {
        let port = free_ports(1);
        let targets: Vec<_> = targets.iter().map(|port| format!("'{}'", local(*port))).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{MONITORING}/alerts.yml']\n\
             scrape_configs: [{{job_name: cluster, static_configs: [{{targets: [{}]}}]}}]\n",
            targets.join(", ")
        );
        fs::write(scratch.path("prometheus.yml"), config).unwrap();
        let mut command = Command::new("prometheus");
        command.args([
            format!("--config.file={}", scratch.path("prometheus.yml")),
            format!("--storage.tsdb.path={}", scratch.path("tsdb")),
            format!("--web.listen-address={}", local(port)),
        ]);
        Self { port, process: Start::command(command).spawn() }
    }

    /// Returns the JSON of a page of the HTTP API, or `None` without an answer.
    fn api(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect_timeout(&local(self.port), Duration::from_secs(5)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        // Version 1.0, because an answer of version 1.1 may come in chunks.
        stream.write_all(format!("GET /api/v1/{path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// Returns the number of samples that an expression has now, or the error of the expression.
    fn samples(&self, expression: &str) -> Result<usize, String> {
        let mut encoded = String::new();
        for byte in expression.bytes() {
            write!(encoded, "%{byte:02x}").unwrap();
        }
        let answer = self.api(&format!("query?query={encoded}")).ok_or("no answer")?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].as_array().map_or(0, Vec::len)),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// Returns the alert rules with the errors of their last evaluation; `None` before each was evaluated.
    fn rules(&self) -> Option<Vec<(String, String, String)>> {
        let answer = self.api("rules?type=alert")?;
        let groups = answer["data"]["groups"].as_array()?;
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let text = |rule: &Value, name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        let rules: Vec<_> = rules.map(|rule| (text(rule, "name"), text(rule, "query"), text(rule, "health"))).collect();
        (!rules.is_empty() && rules.iter().all(|(_, _, health)| health != "unknown")).then_some(rules)
    }
}

/// Gets rows from three processes until it is dropped.
fn load(cluster: &Cluster, is_over: &AtomicBool) {
    for n in 0_u64.. {
        if is_over.load(Relaxed) {
            return;
        }
        for at in 0..3 {
            let _ = get(cluster.http(at), &format!("/data/row-{}", n % 50));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until no expression is left in `waiting` for which `is_done` returns `false`.
fn until_none_is_left<T: std::fmt::Debug>(what: &str, mut waiting: Vec<T>, mut is_done: impl FnMut(&T) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        waiting.retain(|expression| !is_done(expression));
        if waiting.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{what}: {waiting:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Checks that each expression of the dashboards has samples, that each rule is evaluated without an error, and that each
/// metric of a rule exists, on three processes under load.
#[test]
fn expressions_have_samples_from_three_processes() {
    if !has("prometheus") {
        return;
    }
    let (cluster, files) = (Cluster::start("monitoring"), scratch("prometheus"));
    let ports: Vec<_> = (0..3).map(|n| cluster.http(n)).collect();
    let mut prometheus = Prometheus::start(&files, &ports);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = EndOnDrop(&is_over); // also if an assertion fails
        scope.spawn(|| load(&cluster, &is_over));
        until_none_is_left("Prometheus scrapes each process", vec!["up == 1"], |up| {
            assert!(prometheus.process.is_running(), "{:#?}", prometheus.process.err.lines());
            prometheus.samples(up) == Ok(3)
        });
        let mut expressions = panels("grafana/overview.json");
        let overview = expressions.len();
        expressions.extend(panels("grafana/group.json"));
        assert!(overview > 20 && expressions.len() > overview + 30, "{overview} of {}", expressions.len());
        until_none_is_left("an expression has no samples", expressions, |(_, expression)| {
            prometheus.samples(expression).unwrap_or_else(|e| panic!("{expression}: {e}")) > 0
        });
        let with_cluster = "groupcache_ring_hash * on (job, instance) group_left (cluster) groupcache_node_info";
        assert_eq!(prometheus.samples(with_cluster), Ok(3), "each ring has a cluster");
        let mut rules = Vec::new();
        until_none_is_left("each rule is evaluated", vec![()], |()| {
            rules = prometheus.rules().unwrap_or_default();
            !rules.is_empty()
        });
        for (name, query, health) in &rules {
            assert_eq!(health, "ok", "{name}");
            for metric in metrics_of(query) {
                assert!(prometheus.samples(&metric) > Ok(0), "{name}: no process has {metric}");
            }
        }
        // Prometheus knows what the tests of the rules know.
        let alerts = text_of("alerts.yml").matches("- alert: ").count();
        assert_eq!(rules.len(), alerts);
        drop(ends);
    });
}

/// Flag that is set on drop.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Checks that promtool accepts the rules, that their unit tests pass, and that each alert has a moment at which it fires,
/// one at which it does not, and a row in the documents.
#[test]
fn each_alert_has_a_unit_test_that_passes() {
    if !has("promtool") {
        return;
    }
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    let (rules, tests) = (text_of("alerts.yml"), text_of("alerts_test.yml"));
    let operations = text_of("../../docs/OPERATIONS.md");
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        let cases: Vec<_> =
            tests.split("- eval_time:").filter(|case| case.contains(&format!("alertname: {alert}\n"))).collect();
        let silent = cases.iter().filter(|case| case.contains("exp_alerts: []")).count();
        assert!(silent > 0 && cases.len() > silent, "{alert}: {silent} of {} cases are silent", cases.len());
        assert!(operations.contains(&format!("| `{alert}` |")), "{alert} is not in docs/OPERATIONS.md");
    }
}
