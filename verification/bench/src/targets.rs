//! Targets: the caches and servers that are compared. Each offers a `get` and does no work that the others need not do.

pub mod groupcache_rs;
pub mod memcached_redis;
pub mod this_crate;
pub mod unary;

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::Result;

/// A client of one target.
pub trait Target: Send + Sync + 'static {
    /// Gets a value for one of the callers, and returns the length of the value.
    ///
    /// # Errors
    /// Any error of the target, which the load counts.
    fn get(&self, caller: usize, key: &str) -> impl Future<Output = Result<usize>> + Send;

    /// Sets a value.
    ///
    /// # Errors
    /// Any error of the target, or the absence of sets.
    fn set(&self, _caller: usize, _key: &str, _value: &[u8]) -> impl Future<Output = Result<()>> + Send {
        async { Err("the target has no set".into()) }
    }
}

/// A target behind a network connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Remote {
    /// Two nodes of this project. The client owns no keys.
    ThisCrate,
    /// The crate `groupcache` 0.3.
    GroupcacheRs,
    /// A unary call of tonic that answers with a value made beforehand.
    Unary,
    /// memcached with a connection for each caller.
    Memcached,
    /// memcached with one connection for all callers, matched in order.
    MemcachedPipelined,
    /// Redis with a connection for each caller.
    Redis,
    /// Redis with one connection for all callers, matched in order.
    RedisPipelined,
    /// A server that sends the bytes of memcached's answer without a lookup, with a connection for each caller.
    Echo,
    /// The server of `Echo` with one connection for all callers.
    EchoPipelined,
}

impl Remote {
    /// All targets, in the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::ThisCrate,
        Self::GroupcacheRs,
        Self::Unary,
        Self::Memcached,
        Self::MemcachedPipelined,
        Self::Redis,
        Self::RedisPipelined,
        Self::Echo,
        Self::EchoPipelined,
    ];

    /// Returns the name in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ThisCrate => "ours",
            Self::GroupcacheRs => "groupcache 0.3",
            Self::Unary => "tonic unary",
            Self::Memcached => "memcached",
            Self::MemcachedPipelined => "memcached, pipelined",
            Self::Redis => "redis",
            Self::RedisPipelined => "redis, pipelined",
            Self::Echo => "TCP echo",
            Self::EchoPipelined => "TCP echo, pipelined",
        }
    }

    /// Returns the program of another project that the target needs.
    pub const fn program(self) -> Option<&'static str> {
        match self {
            Self::Memcached | Self::MemcachedPipelined => Some("memcached"),
            Self::Redis | Self::RedisPipelined => Some("redis-server"),
            _ => None,
        }
    }
}

/// Returns the value of every key, which has this many bytes.
pub fn value(bytes: usize) -> bytes::Bytes {
    bytes::Bytes::from(vec![b'v'; bytes])
}

/// Returns the keys of a measurement, of 20 bytes each.
pub fn keys(count: usize) -> Vec<std::sync::Arc<str>> {
    (0..count).map(|n| format!("key-{n:016}").into()).collect()
}
