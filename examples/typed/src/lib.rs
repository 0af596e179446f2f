//! Cached users: protobuf messages, read from a database. A service of your own has this code beside its pages.
mod database;

use std::time::Duration;

use groupcache_discovery::{Error, Group, Node, Prost};

pub use crate::database::Database;

/// User in the database. A message that `prost` generates from a `.proto` file works as well.
#[derive(Clone, PartialEq, prost::Message)]
pub struct User {
    /// Id, which is the key in the cache.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Full name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Age in years.
    #[prost(uint32, tag = "3")]
    pub age: u32,
}

/// Budget of a process for entries.
const CAPACITY_BYTES: u64 = 3 << 20;
/// Time to live of an entry.
const TIME_TO_LIVE: Duration = Duration::from_secs(300);

/// Maximum time that a caller waits for a user. A load may take longer, and goes on for later callers.
pub const DEADLINE: Duration = Duration::from_millis(500);

/// Builds the group of users of a node. Every node of the cluster builds the same group.
///
/// # Errors
/// When the node has a group of this name already.
pub fn users(node: &Node, database: Database) -> Result<Group<Prost<User>>, Error> {
    let users = node
        .group::<Prost<User>>("users")
        .capacity_bytes(CAPACITY_BYTES)
        .time_to_live(TIME_TO_LIVE)
        .loader_with(database, async |database: &Database, id: &str| database.user(id).await)
        .build()?;
    Ok(users.with_deadline(DEADLINE))
}
