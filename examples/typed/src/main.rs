//! Two nodes, as two processes of a service would be, and what they know of a user.
use std::{error::Error, time::Duration};

use groupcache_discovery::{Group, Identity, Node, Peer, Prost, fixed::Static};
use tokio::time::timeout;
use typed::{Database, User, users};

/// How long the two may take to find each other.
const MEETING: Duration = Duration::from_secs(10);

/// What a node may take to leave.
const ENDING: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let database = Database::in_memory()?;
    let mut user = User { id: "12345".to_owned(), name: "Ada Lovelace".to_owned(), age: 36 };
    database.save(&user)?;

    // Between processes this list comes from the environment, from Kubernetes, from NATS.
    let peers = Static::default();
    let a = Node::builder().identity(Identity::default().with_id("a")?).provider(peers.clone()).start().await?;
    let b = Node::builder().identity(Identity::default().with_id("b")?).provider(peers.clone()).start().await?;
    peers.handle().set([&a, &b].map(|node| Peer::member(node.id(), [node.address().into()])));
    let (at_a, at_b) = (users(&a, database.clone())?, users(&b, database.clone())?);
    timeout(MEETING, async { tokio::try_join!(a.ready(2), b.ready(2)) }).await??;

    println!("both nodes are asked for a user whom the database has");
    show("a", &at_a, "12345", &database).await?;
    show("b", &at_b, "12345", &database).await?;

    println!("the user has a birthday, and the cache does not know of it");
    user.age += 1;
    database.save(&user)?;
    show("a", &at_a, "12345", &database).await?;
    show("b", &at_b, "12345", &database).await?;

    println!("the user is removed from the cache, at one node");
    at_a.remove("12345").await?.log_unreached();
    show("b", &at_b, "12345", &database).await?;
    show("a", &at_a, "12345", &database).await?;

    println!("a user whom nobody has");
    show("a", &at_a, "99999", &database).await?;

    tokio::try_join!(a.drain_and_shutdown(ENDING), b.drain_and_shutdown(ENDING))?;
    Ok(())
}

/// Asks a node for a user.
async fn show(node: &str, users: &Group<Prost<User>>, id: &str, database: &Database) -> Result<(), Box<dyn Error>> {
    let said = match users.get(id).await {
        Ok(user) => format!("{}, {}", user.name, user.age),
        Err(e) if e.is_not_found() => format!("there is no user {id}"),
        Err(e) => return Err(e.into()),
    };
    println!("  {node}: {said} (queries of the database so far: {})", database.queries());
    Ok(())
}
