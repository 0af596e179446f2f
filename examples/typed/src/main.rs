//! Program: two nodes get, keep and remove a user. In a service each node has a process.
use std::{error::Error, time::Duration};

use groupcache_discovery::{Group, Identity, Node, Prost, discovery::Peer, list::Static};
use tokio::time::timeout;
use typed::{Database, User, users};

/// Maximum time in which the two nodes find each other.
const MEETING: Duration = Duration::from_secs(10);

/// Maximum time in which a node leaves.
const ENDING: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let database = Database::in_memory()?;
    let mut user = User { id: "12345".to_owned(), name: "Ada Lovelace".to_owned(), age: 36 };
    database.save(&user)?;

    // In a service this list comes from the environment, Kubernetes or NATS.
    let peers = Static::default();
    let a = Node::builder().identity(Identity::default().with_id("a")?).provider(peers.clone()).start().await?;
    let b = Node::builder().identity(Identity::default().with_id("b")?).provider(peers.clone()).start().await?;
    peers.handle().set([&a, &b].map(|node| Peer::member(node.id(), [node.address().into()])));
    let (at_a, at_b) = (users(&a, database.clone())?, users(&b, database.clone())?);
    timeout(MEETING, async { tokio::try_join!(a.ready(2), b.ready(2)) }).await??;

    println!("both nodes get a user that the database has");
    show("a", &at_a, "12345", &database).await?;
    show("b", &at_b, "12345", &database).await?;

    println!("the database changes the age, and the cache keeps its entry");
    user.age += 1;
    database.save(&user)?;
    show("a", &at_a, "12345", &database).await?;
    show("b", &at_b, "12345", &database).await?;

    println!("node a removes the user from the cache of both nodes");
    at_a.remove("12345").await?.log_pending();
    show("b", &at_b, "12345", &database).await?;
    show("a", &at_a, "12345", &database).await?;

    println!("node a gets a user that the database does not have");
    show("a", &at_a, "99999", &database).await?;

    tokio::try_join!(a.shutdown_within(ENDING), b.shutdown_within(ENDING))?;
    Ok(())
}

/// Gets a user at a node and prints the result.
async fn show(node: &str, users: &Group<Prost<User>>, id: &str, database: &Database) -> Result<(), Box<dyn Error>> {
    let result = match users.get(id).await {
        Ok(user) => format!("{}, {}", user.name, user.age),
        Err(e) if e.is_not_found() => format!("there is no user {id}"),
        Err(e) => return Err(e.into()),
    };
    println!("  {node}: {result} (queries of the database so far: {})", database.queries());
    Ok(())
}
