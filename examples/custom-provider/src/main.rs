//! Program: three nodes find each other through a registry, and keep each other while the registry fails.
use std::time::Duration;

use custom_provider::{Entry, Mood, Registry, registry};
use groupcache_discovery::{BoxError, Identity, Node};
use tokio::time::{sleep, timeout};

/// Maximum time in which the nodes find each other.
const MEETING: Duration = Duration::from_secs(10);
/// Time for which the registry fails: long enough for each node to read the registry.
const FAILING: Duration = Duration::from_secs(3);
/// Interval between two looks at the members.
const LOOK: Duration = Duration::from_millis(20);
/// Maximum time in which a node leaves, hand-over included.
const ENDING: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let list = Registry::default();
    let (address, serving) = list.serve().await?;
    let url = format!("http://{address}/peers");
    println!("the registry serves {url}");
    let story = async {
        let [a, b] = [start("a", &url, &list).await?, start("b", &url, &list).await?];
        timeout(MEETING, async { tokio::try_join!(a.ready(2), b.ready(2)) }).await??;
        println!("the registry lists a and b: {}, {}", seen_by(&a), seen_by(&b));

        let c = start("c", &url, &list).await?;
        timeout(MEETING, async { tokio::try_join!(a.ready(3), b.ready(3), c.ready(3)) }).await??;
        println!("the registry lists a, b and c: {}, {}, {}", seen_by(&a), seen_by(&b), seen_by(&c));

        list.feels(Mood::Failing);
        sleep(FAILING).await;
        let age = a.discovery().last_set_age.unwrap_or_default();
        println!("the registry answers 500: {}, from a list that is {} s old", seen_by(&a), age.as_secs());

        list.feels(Mood::Well);
        list.remove("c");
        c.shutdown_within(ENDING).await?;
        timeout(MEETING, until_each_knows(2, [&a, &b])).await?;
        println!("the registry works again, and c has left: {}, {}", seen_by(&a), seen_by(&b));
        tokio::try_join!(a.shutdown_within(ENDING), b.shutdown_within(ENDING))?;
        Ok(())
    };
    tokio::select! {
        ended = story => ended,
        served = serving => Ok(served?),
    }
}

/// Starts a node and registers it. In production a node starts in its own process, and its deployment registers it.
async fn start(name: &str, url: &str, list: &Registry) -> Result<Node, BoxError> {
    let node = Node::builder().identity(Identity::default().with_id(name)?).provider(registry(url)).start().await?;
    list.add(Entry { id: name.to_owned(), address: node.address().to_string() });
    Ok(node)
}

/// Waits until each node has `count` members. A node that has left owns no keys, and stays a member for a moment more.
async fn until_each_knows(count: usize, nodes: [&Node; 2]) {
    while nodes.iter().any(|node| node.members().len() != count) {
        sleep(LOOK).await;
    }
}

/// Returns the name of a node and the number of its members, itself included.
fn seen_by(node: &Node) -> String {
    format!("{} sees {}", node.id(), node.members().len())
}
