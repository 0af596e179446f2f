//! What is compared: one `get` each, and nothing that the others would not have to do.

pub mod ours;
pub mod rival;
pub mod text;
pub mod unary;

use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::Result;

/// A client of one contestant.
pub trait Contestant: Send + Sync + 'static {
    /// Gets a value for one of the callers, and returns how long it is.
    ///
    /// # Errors
    /// Whatever the contestant says; the load counts it.
    fn get(&self, caller: usize, key: &str) -> impl Future<Output = Result<usize>> + Send;

    /// Sets a value.
    ///
    /// # Errors
    /// As `get`.
    fn set(&self, _caller: usize, _key: &str, _value: &[u8]) -> impl Future<Output = Result<()>> + Send {
        async { Err("this contestant has no set".into()) }
    }
}

/// Who can be asked over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Remote {
    /// Two nodes of this project; the client owns no keys.
    Ours,
    /// The crate `groupcache`, 0.3.
    Rival,
    /// A unary call of tonic that answers with a value made beforehand.
    Unary,
    /// A connection for each caller.
    Memcached,
    /// All callers on one connection, matched in order.
    MemcachedPipelined,
    /// A connection for each caller.
    Redis,
    /// All callers on one connection, matched in order.
    RedisPipelined,
    /// The bytes of memcached's answer from a server that looks nothing up, a connection for each caller.
    Echo,
    /// As `Echo`, all callers on one connection.
    EchoPipelined,
}

impl Remote {
    /// Everyone, in the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::Ours,
        Self::Rival,
        Self::Unary,
        Self::Memcached,
        Self::MemcachedPipelined,
        Self::Redis,
        Self::RedisPipelined,
        Self::Echo,
        Self::EchoPipelined,
    ];

    /// As the tables say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Rival => "groupcache 0.3",
            Self::Unary => "tonic unary",
            Self::Memcached => "memcached",
            Self::MemcachedPipelined => "memcached, pipelined",
            Self::Redis => "redis",
            Self::RedisPipelined => "redis, pipelined",
            Self::Echo => "TCP echo",
            Self::EchoPipelined => "TCP echo, pipelined",
        }
    }

    /// The program that it needs and that is not ours.
    pub const fn program(self) -> Option<&'static str> {
        match self {
            Self::Memcached | Self::MemcachedPipelined => Some("memcached"),
            Self::Redis | Self::RedisPipelined => Some("redis-server"),
            _ => None,
        }
    }
}

/// The value of every key: so many bytes.
pub fn value(bytes: usize) -> bytes::Bytes {
    bytes::Bytes::from(vec![b'v'; bytes])
}

/// The keys of a measurement: 20 bytes each.
pub fn keys(count: usize) -> Vec<std::sync::Arc<str>> {
    (0..count).map(|n| format!("key-{n:016}").into()).collect()
}
