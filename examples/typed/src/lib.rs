//! Users, as protobuf messages, behind a cache: what a service of your own would have beside its pages.
mod database;

use std::time::Duration;

use groupcache_discovery::{Error, Group, Node, Prost};

pub use crate::database::Database;

/// What the database has of a user: what `prost` makes of a `.proto` file serves as well.
#[derive(Clone, PartialEq, prost::Message)]
pub struct User {
    /// By which it is asked for.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What it is called.
    #[prost(string, tag = "2")]
    pub name: String,
    /// In years.
    #[prost(uint32, tag = "3")]
    pub age: u32,
}

/// What the entries of one process may take, and how long they are served.
const CAPACITY_BYTES: u64 = 3 << 20;
const TIME_TO_LIVE: Duration = Duration::from_secs(300);

/// How long a caller waits for a user. The load itself may take longer: it goes on for those who ask next.
pub const DEADLINE: Duration = Duration::from_millis(500);

/// The group of one node; every node builds the same.
///
/// # Errors
/// When the node has such a group already.
pub fn users(node: &Node, database: Database) -> Result<Group<Prost<User>>, Error> {
    let users = node
        .group::<Prost<User>>("users")
        .capacity_bytes(CAPACITY_BYTES)
        .time_to_live(TIME_TO_LIVE)
        .loader_with(database, async |database: &Database, id: &str| database.user(id).await)
        .build()?;
    Ok(users.with_deadline(DEADLINE))
}
