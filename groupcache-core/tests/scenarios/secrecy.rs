//! Keys, values and secrets stay out of the log above DEBUG, and out of errors.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::Duration,
};

use groupcache_core::{BoxError, Error, Node};
use read_along::is_secret;

use crate::support::{Cluster, Loads};

/// Set for a process of its own.
const LEAK: &str = "GROUPCACHE_TEST_LEAK";

/// Not a test but a process that logs what it should not.
#[tokio::test]
async fn a_process_of_its_own() {
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
        other => panic!("{other} cannot be leaked"),
    }
}

#[test]
fn the_suite_is_read_along_and_a_key_a_value_or_a_secret_at_info_ends_it() {
    let run = |leak: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["secrecy::a_process_of_its_own", "--exact"]).env(LEAK, leak);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
    };
    assert!(run("nothing").success());
    for leak in ["key", "value", "removed", "secret"] {
        assert_eq!(run(leak).signal(), Some(6), "aborted by {leak}");
    }
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_show_neither_keys_nor_values() {
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
