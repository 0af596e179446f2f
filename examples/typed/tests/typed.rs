//! The program as a whole, and cases that the program does not show: a slow database, and a failing one.
#![expect(clippy::unwrap_used, reason = "a test, helpers included, that runs a program and holds a file")]
use std::{path::PathBuf, process::Command, time::Duration};

use groupcache_discovery::{Group, Node, Prost};
use read_along as _;
use tokio::time::{Instant, sleep, timeout};
use typed::{DEADLINE, Database, User, users};

/// Maximum time for a condition: long enough on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks the output of the program: two nodes query the database once, and again after a remove.
#[test]
fn two_nodes_query_the_database_once_until_a_remove() {
    let ran = Command::new(env!("CARGO_BIN_EXE_typed")).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let output = String::from_utf8(ran.stdout).unwrap();
    let (ada, older) = ("Ada Lovelace, 36", "Ada Lovelace, 37");
    let shown: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let line =
        |node: &str, what: &str, queries: u32| format!("{node}: {what} (queries of the database so far: {queries})");
    assert_eq!(
        shown,
        [
            line("a", ada, 1),
            line("b", ada, 1),
            line("a", ada, 1),
            line("b", ada, 1),
            line("b", older, 2),
            line("a", older, 2),
            line("a", "there is no user 99999", 3),
        ]
    );
    assert!(ran.stderr.is_empty(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// Node with the group of users, and a database file that a test can lock.
struct Stage {
    path: PathBuf,
    database: Database,
    node: Node,
    users: Group<Prost<User>>,
}

impl Stage {
    async fn new(test: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}.db", std::process::id()));
        let database = Database::open(&path).unwrap();
        database.save(&user("12345")).unwrap();
        let node = Node::builder().start().await.unwrap();
        let users = users(&node, database.clone()).unwrap();
        Self { path, database, node, users }
    }

    async fn end(self) {
        self.node.shutdown().await.unwrap();
        let _ = std::fs::remove_file(self.path);
    }
}

fn user(id: &str) -> User {
    User { id: id.to_owned(), name: "Grace Hopper".to_owned(), age: 85 }
}

/// Checks that a caller waits 500 ms for a slow database, and that the load goes on: its value serves later callers.
#[tokio::test]
async fn slow_load_times_out_its_caller_and_serves_the_next() {
    let stage = Stage::new("slow").await;
    let other = rusqlite::Connection::open(&stage.path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let begun = Instant::now();
    let error = timeout(PATIENCE, stage.users.get("12345")).await.unwrap().unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    let took = begun.elapsed();
    assert!(took >= DEADLINE, "{took:?}");
    println!("timed out after {took:?} (figure: 500 ms)");

    other.execute_batch("COMMIT").unwrap();
    // The load goes on after its caller timed out, and later callers join its flight.
    let deadline = Instant::now() + PATIENCE;
    let found = loop {
        match stage.users.get("12345").await {
            Ok(found) => break found,
            Err(e) => assert!(e.is_timeout() && Instant::now() < deadline, "{e:?}"),
        }
    };
    assert_eq!(*found, user("12345"));
    assert_eq!(stage.database.queries(), 1, "one load, although its first caller timed out");
    stage.end().await;
}

/// Checks that an entry is served for its time to live of five minutes, in virtual time.
#[tokio::test(start_paused = true)]
async fn user_is_cached_for_five_minutes() {
    let stage = Stage::new("kept").await;
    stage.users.get("12345").await.unwrap();
    // The group shortens each time to live by up to a tenth at random, so that entries which were loaded together do
    // not expire together.
    sleep(Duration::from_secs(265)).await;
    stage.users.get("12345").await.unwrap();
    assert_eq!(stage.database.queries(), 1);
    sleep(Duration::from_secs(36)).await;
    stage.users.get("12345").await.unwrap();
    assert_eq!(stage.database.queries(), 2);
    stage.end().await;
}

/// Checks that the caller gets an error of the database, and that neither an error nor a missing user is cached.
#[tokio::test]
async fn failed_load_and_missing_user_are_not_cached() {
    let stage = Stage::new("broken").await;
    let other = rusqlite::Connection::open(&stage.path).unwrap();
    other.execute_batch("ALTER TABLE users RENAME TO people").unwrap();
    let error = stage.users.get("12345").await.unwrap_err();
    assert!(error.is_load_failed() && !error.is_not_found(), "{error:?}");

    other.execute_batch("ALTER TABLE people RENAME TO users").unwrap();
    assert_eq!(*stage.users.get("12345").await.unwrap(), user("12345"));
    assert_eq!(stage.database.queries(), 2);
    // The answer that a user is missing is not cached either.
    assert!(stage.users.get("99999").await.unwrap_err().is_not_found());
    stage.database.save(&user("99999")).unwrap();
    assert_eq!(*stage.users.get("99999").await.unwrap(), user("99999"));
    stage.end().await;
}
