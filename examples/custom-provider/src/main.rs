//! Three nodes that find each other by a registry, and what becomes of them when it fails.
use std::time::Duration;

use custom_provider::{Entry, Mood, Registry, registry};
use groupcache_discovery::{BoxError, Identity, Node};
use tokio::time::{sleep, timeout};

/// How long they may take to find each other.
const MEETING: Duration = Duration::from_secs(10);
/// Long enough for each of them to have asked the registry.
const FAILING: Duration = Duration::from_secs(3);
/// How often it is looked whom they know.
const LOOK: Duration = Duration::from_millis(20);
/// What a node may take to leave, its values handed over.
const ENDING: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let list = Registry::default();
    let (address, serving) = list.serve().await?;
    let url = format!("http://{address}/peers");
    println!("a registry answers at {url}");
    let story = async {
        let [a, b] = [start("a", &url, &list).await?, start("b", &url, &list).await?];
        timeout(MEETING, async { tokio::try_join!(a.ready(2), b.ready(2)) }).await??;
        println!("it lists a and b: {}, {}", seen_by(&a), seen_by(&b));

        let c = start("c", &url, &list).await?;
        timeout(MEETING, async { tokio::try_join!(a.ready(3), b.ready(3), c.ready(3)) }).await??;
        println!("it lists c, too: {}, {}, {}", seen_by(&a), seen_by(&b), seen_by(&c));

        list.feels(Mood::Failing);
        sleep(FAILING).await;
        let age = a.discovery().last_set_age.unwrap_or_default();
        println!("it answers 500: {}, by a list that is {} s old", seen_by(&a), age.as_secs());

        list.feels(Mood::Well);
        list.remove("c");
        c.drain_and_shutdown(ENDING).await?;
        timeout(MEETING, until_each_knows(2, [&a, &b])).await?;
        println!("it is well again, and c has left: {}, {}", seen_by(&a), seen_by(&b));
        tokio::try_join!(a.drain_and_shutdown(ENDING), b.drain_and_shutdown(ENDING))?;
        Ok(())
    };
    tokio::select! {
        ended = story => ended,
        served = serving => Ok(served?),
    }
}

/// A node; in real life it starts in a process of its own, and whoever deploys it tells the registry.
async fn start(name: &str, url: &str, list: &Registry) -> Result<Node, BoxError> {
    let node = Node::builder().identity(Identity::default().with_id(name)?).provider(registry(url)).start().await?;
    list.add(Entry { id: name.to_owned(), address: node.address().to_string() });
    Ok(node)
}

/// Who has left owns nothing from then on, and is listed for a moment more.
async fn until_each_knows(count: usize, nodes: [&Node; 2]) {
    while nodes.iter().any(|node| node.members().len() != count) {
        sleep(LOOK).await;
    }
}

/// How many nodes one of them knows, itself included.
fn seen_by(node: &Node) -> String {
    format!("{} sees {}", node.id(), node.members().len())
}
