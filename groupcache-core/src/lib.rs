//! A distributed read-through cache that lives in the processes of your own service.
#![cfg_attr(not(test), forbid(unsafe_code))]

// The helpers of the integration tests name the crate as users do.
#[cfg(test)]
extern crate self as groupcache_core;

mod chain;
mod clock;
mod config;
mod error;
mod flight;
mod group;
mod identity;
mod loader;
mod membership;
mod message;
mod net;
mod node;
mod peer;
mod permits;
mod proto;
mod ring;
mod served;
mod shared;
mod stats;
mod store;
mod sync;
#[cfg(test)]
mod testing;
mod value;
mod wire;

pub use async_trait::async_trait;
pub use bytes;

pub use crate::{
    config::{Limits, MAX_KEY_BYTES},
    error::{BoxError, Error, Result},
    group::{Group, GroupBuilder, Invalidated},
    identity::{Address, Identity, Incarnation, MAX_WEIGHT, NodeState, PeerId},
    loader::{IntoLoadResult, IntoLoaded, Load, LoadError, LoadFn, LoadFnWith, LoadReason, Loaded, Loader},
    membership::{
        poll::{Poll, poll},
        provider::{Health, Me, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal},
    },
    node::{DiscoveryInfo, MemberInfo, Node, NodeBuilder},
    stats::{GroupStats, NodeStats},
    value::{DecodeError, EncodeError, Json, Value},
};
