//! Target `groupcache_rs`: the crate `groupcache` 0.3 with the value type that costs it least, which is bytes that are
//! shared and not copied.

use std::net::SocketAddr;

use bytes::Bytes;
use groupcache_rs::{Groupcache, GroupcachePeer, ValueLoader};
use moka::future::Cache;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::{Target, value};
use crate::Result;

/// Bytes that MessagePack encodes as bytes and not as a list of numbers.
#[derive(Clone, Debug)]
pub struct Blob(pub Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Blob;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> std::result::Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> std::result::Result<Blob, E> {
                Ok(Blob(Bytes::from(bytes)))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

struct AtOnce(Blob);

#[groupcache_core::async_trait]
impl ValueLoader for AtOnce {
    type Value = Blob;

    async fn load(&self, _: &str) -> std::result::Result<Blob, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}

/// A process with the crate `groupcache`.
#[derive(Clone)]
pub struct GroupcacheRs {
    cache: Groupcache<Blob>,
    me: SocketAddr,
}

impl std::fmt::Debug for GroupcacheRs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupcacheRs").finish_non_exhaustive()
    }
}

impl GroupcacheRs {
    /// Creates a process for this address. Without `hot_cache`, each get of a key that a peer owns is a request.
    ///
    /// The process listens only after [`serve`](Self::serve).
    pub fn new(me: SocketAddr, bytes: usize, hot_cache: bool) -> Self {
        let mut builder = Groupcache::builder(me.into(), AtOnce(Blob(value(bytes))));
        if !hot_cache {
            builder = builder.hot_cache(Cache::builder().max_capacity(0).build());
        }
        Self { cache: builder.build(), me }
    }

    /// Listens on the address of the process.
    ///
    /// # Errors
    /// An error if the address is taken.
    pub async fn serve(&self) -> Result<()> {
        listen(&self.cache, self.me).await
    }

    /// Connects to a peer.
    ///
    /// # Errors
    /// An error if no peer answers at the address.
    pub async fn add(&self, peer: SocketAddr) -> Result<()> {
        Ok(self.cache.add_peer(GroupcachePeer::from(peer)).await?)
    }
}

/// Serves the peers of a cache at this address.
///
/// # Errors
/// An error if the address is taken.
pub async fn listen(cache: &Groupcache<Blob>, at: SocketAddr) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a server of another project, outside of any simulation")]
    let incoming = TcpListenerStream::new(TcpListener::bind(at).await?);
    // Without TCP_NODELAY some of the responses are 40 ms late.
    let incoming = tokio_stream::StreamExt::map(incoming, |accepted| {
        accepted.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
    });
    tokio::spawn(Server::builder().add_service(cache.grpc_service()).serve_with_incoming(incoming));
    Ok(())
}

impl Target for GroupcacheRs {
    async fn get(&self, _caller: usize, key: &str) -> Result<usize> {
        Ok(self.cache.get(key).await?.0.len())
    }
}
