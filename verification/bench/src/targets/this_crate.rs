//! Target `this_crate`: nodes of this project, built as users build them.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use discovery_static::Static;
use groupcache_core::{Group, Identity, Node};

use super::{Target, value};
use crate::Result;

/// Budget of the group, far above the bytes of any measurement.
const CAPACITY: u64 = 2 << 30;

/// Starts a node among the listed peers. A node of weight 0 owns no keys.
///
/// # Errors
/// An error if the node cannot listen.
pub async fn node(id: &str, weight: u8, peers: &[(String, SocketAddr)]) -> Result<Node> {
    let listen = peers.iter().find(|(peer, _)| peer == id).map(|(_, address)| *address);
    let identity = Identity::new(listen.ok_or("the node is not in its own list")?).with_id(id)?.with_weight(weight)?;
    let listed: Vec<_> = peers.iter().map(|(id, address)| format!("{id}@{address}")).collect();
    Ok(Node::builder().identity(identity).provider(listed.join(",").parse::<Static>()?).start().await?)
}

/// Builds a group with a loader that returns a value of `bytes` bytes at once, with or without replicas of hot values.
///
/// # Errors
/// An error if the node already has the group.
pub fn group(node: &Node, bytes: usize, replicas: bool) -> Result<Group<Bytes>> {
    let group = node.group::<Bytes>("data").capacity_bytes(CAPACITY).replicas(replicas);
    let load = async |value: &Bytes, _: &str| Ok::<_, Infallible>(value.clone());
    Ok(group.loader_with(value(bytes), load).build()?)
}

/// A client node and its group.
#[derive(Debug)]
pub struct ThisCrate {
    /// Client node.
    pub node: Node,
    /// Group of the client node.
    pub group: Group<Bytes>,
}

impl Target for ThisCrate {
    async fn get(&self, _caller: usize, key: &str) -> Result<usize> {
        Ok(self.group.get(key).await?.len())
    }

    async fn set(&self, _caller: usize, key: &str, value: &[u8]) -> Result<()> {
        let done = self.group.set(key, Bytes::copy_from_slice(value)).await?;
        if done.is_complete() { Ok(()) } else { Err("the set has not reached every node".into()) }
    }
}
