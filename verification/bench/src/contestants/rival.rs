//! The crate `groupcache`, 0.3, with a value type that costs it as little as can be: bytes that are shared, not copied.

use std::net::SocketAddr;

use bytes::Bytes;
use moka::future::Cache;
use rival::{Groupcache, GroupcachePeer, ValueLoader};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::{Contestant, value};
use crate::Result;

/// Bytes that MessagePack takes as bytes, and not as a list of numbers.
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

/// One process of the rival.
#[derive(Clone)]
pub struct Rival {
    cache: Groupcache<Blob>,
    me: SocketAddr,
}

impl std::fmt::Debug for Rival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rival").finish_non_exhaustive()
    }
}

impl Rival {
    /// A process that would listen there; without hot copies, what peers own is asked for each time.
    pub fn new(me: SocketAddr, bytes: usize, hot_copies: bool) -> Self {
        let mut builder = Groupcache::builder(me.into(), AtOnce(Blob(value(bytes))));
        if !hot_copies {
            builder = builder.hot_cache(Cache::builder().max_capacity(0).build());
        }
        Self { cache: builder.build(), me }
    }

    /// Listens where it said.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn serve(&self) -> Result<()> {
        listen(&self.cache, self.me).await
    }

    /// Connects to a peer.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn add(&self, peer: SocketAddr) -> Result<()> {
        Ok(self.cache.add_peer(GroupcachePeer::from(peer)).await?)
    }
}

/// Answers its peers at that address.
///
/// # Errors
/// When the address is taken.
pub async fn listen(cache: &Groupcache<Blob>, at: SocketAddr) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the rival's server, which no simulation knows")]
    let incoming = TcpListenerStream::new(TcpListener::bind(at).await?);
    // Without it the rival waits 40 ms here and there.
    let incoming = tokio_stream::StreamExt::map(incoming, |accepted| {
        accepted.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
    });
    tokio::spawn(Server::builder().add_service(cache.grpc_service()).serve_with_incoming(incoming));
    Ok(())
}

impl Contestant for Rival {
    async fn get(&self, _caller: usize, key: &str) -> Result<usize> {
        Ok(self.cache.get(key).await?.0.len())
    }
}
