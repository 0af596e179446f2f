//! Discovery: providers, which find the peers of a node.
//!
//! Pass a provider to [`NodeBuilder::provider`](crate::NodeBuilder::provider). A provider is one of these:
//!
//! - [`poll`], made of a function that returns all peers,
//! - [`from_stream`], made of a stream of peer sets,
//! - [`merge`], made of two providers,
//! - an implementation of [`Provider`].
//!
//! The crate `groupcache-discovery` has providers for Kubernetes, mDNS, NATS, DNS and lists.

pub use crate::{
    identity::{Address, Incarnation, MAX_WEIGHT, NodeState, PeerId},
    membership::{
        merge::{MergedProvider, merge},
        poll::{PollProvider, poll},
        provider::{Health, Me, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal, Trust},
        stream::{StreamProvider, from_stream},
    },
};
