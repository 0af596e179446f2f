//! Redaction: keys, values and secrets stay out of errors and out of log lines above DEBUG.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::Duration,
};

use groupcache_core::{BoxError, Error, Node};
use read_along::is_secret;

use crate::support::{Cluster, Loads};

/// Environment variable that names the leak, set for the child process.
const LEAK: &str = "GROUPCACHE_TEST_LEAK";

/// Logs what must not be logged, and tests nothing: the next test runs it in a child process.
#[tokio::test]
async fn child_process() {
    let Ok(leak) = std::env::var(LEAK) else { return };
    let node = Node::builder().start().await.unwrap();
    let users = node.group::<String>("users").capacity_bytes(1 << 20);
    let users = users.loader(async |key: &str| Ok::<_, BoxError>(format!("name of {key}"))).build().unwrap();
    let name = users.get("12345-a").await.unwrap();
    let _ = users.remove("67890-b").await.unwrap();
    is_secret("pa55word");
    match leak.as_str() {
        "key" => tracing::info!(key = "12345-a", "loaded"),
        "value" => tracing::warn!("loaded {name}"),
        "removed" => tracing::error!(error = %"67890-b is gone"),
        "secret" => tracing::info!("the password is pa55word"),
        "nothing" => tracing::debug!(key = "12345-a", name, "loaded with pa55word"),
        other => panic!("unknown leak: {other}"),
    }
}

/// Checks that a key, a value or a secret in a log line at INFO or above aborts the process of a test, and that DEBUG
/// lines do not.
#[test]
fn key_value_or_secret_in_the_log_aborts_the_process() {
    let run = |leak: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["log_redaction::child_process", "--exact"]).env(LEAK, leak);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
    };
    assert!(run("nothing").success());
    for leak in ["key", "value", "removed", "secret"] {
        assert_eq!(run(leak).signal(), Some(6), "{leak} aborts the process");
    }
}

/// Loads a key with the outcome that its prefix names.
async fn by_key(loads: &Loads, key: &str) -> Result<Option<String>, BoxError> {
    loads.begin(key);
    match key.split('-').next() {
        Some("none") => Ok(None),
        Some("error") => Err("the database is down".into()),
        Some("panic") => panic!("at the loader"),
        Some("large") => Ok(Some("v".repeat(2 << 20))),
        Some("hang") => std::future::pending().await,
        _ => Ok(Some(key.to_owned())),
    }
}

/// Checks that no kind of error contains the key or the value in its texts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_contain_neither_keys_nor_values() {
    let cluster = Cluster::start(2).await;
    let loads = Loads::default();
    let groups = cluster
        .group(|_, node| {
            let group = node.group::<String>("data").capacity_bytes(8 << 20).load_deadline(Duration::from_millis(300));
            group.loader_with(loads.clone(), by_key)
        })
        .await;
    let is = |is: fn(&Error) -> bool| is;
    let kinds = [
        ("none", is(Error::is_not_found)),
        ("error", is(Error::is_load_failed)),
        ("panic", is(Error::is_load_failed)),
        ("large", is(Error::is_too_large)),
        ("hang", is(Error::is_timeout)),
    ];
    for (kind, is_expected) in kinds {
        for n in 0..8 {
            let key = format!("{kind}-{n}-7f3a9");
            let error = groups[n % 2].get(&key).await.expect_err(kind);
            assert!(is_expected(&error), "{error:?}");
            let shown = format!("{error:?} {error}");
            assert!(!shown.contains("7f3a9") && !shown.contains("vvvv"), "{shown}");
        }
    }
    let long = "7f3a9".repeat(300);
    for error in [groups[0].get(&long).await.map(drop), groups[0].remove(&long).await.map(drop)] {
        assert!(!format!("{:?}", error.expect_err("too long")).contains("7f3a9"));
    }
    cluster.shutdown().await;
}
