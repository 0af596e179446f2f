//! Nodes of this project, as users build them.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use discovery_static::Static;
use groupcache_core::{Group, Identity, Node};

use super::{Contestant, value};
use crate::Result;

/// Far more than any measurement fills.
const CAPACITY: u64 = 2 << 30;

/// Starts a node among those that are listed; with weight 0 it asks and owns nothing.
///
/// # Errors
/// When it cannot listen.
pub async fn node(id: &str, weight: u8, peers: &[(String, SocketAddr)]) -> Result<Node> {
    let listen = peers.iter().find(|(peer, _)| peer == id).map(|(_, address)| *address);
    let identity = Identity::new(listen.ok_or("the node is not in its own list")?).with_id(id)?.with_weight(weight)?;
    let listed: Vec<_> = peers.iter().map(|(id, address)| format!("{id}@{address}")).collect();
    Ok(Node::builder().identity(identity).provider(listed.join(",").parse::<Static>()?).start().await?)
}

/// A group whose loader answers at once, with so many bytes.
///
/// # Errors
/// When the node has it already.
pub fn group(node: &Node, bytes: usize, hot_copies: bool) -> Result<Group<Bytes>> {
    let group = node.group::<Bytes>("data").capacity_bytes(CAPACITY).hot_copies(hot_copies);
    let load = async |value: &Bytes, _: &str| Ok::<_, Infallible>(value.clone());
    Ok(group.loader_with(value(bytes), load).build()?)
}

/// A node that asks, with its group.
#[derive(Debug)]
pub struct Ours {
    /// The node.
    pub node: Node,
    /// Its group.
    pub group: Group<Bytes>,
}

impl Contestant for Ours {
    async fn get(&self, _caller: usize, key: &str) -> Result<usize> {
        Ok(self.group.get(key).await?.len())
    }

    async fn set(&self, _caller: usize, key: &str, value: &[u8]) -> Result<()> {
        let done = self.group.set(key, Bytes::copy_from_slice(value)).await?;
        if done.is_complete() { Ok(()) } else { Err("a node did not hear of it".into()) }
    }
}
