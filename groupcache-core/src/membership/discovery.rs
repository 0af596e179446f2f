//! Discovery: how a node finds its peers. A provider is passed to [`NodeBuilder::provider`](crate::NodeBuilder::provider).

pub use crate::{
    identity::{Address, Incarnation, MAX_WEIGHT, NodeState, PeerId},
    membership::{
        merge::{MergedProvider, merge},
        poll::{PollProvider, poll},
        provider::{Health, Me, Peer, PeerSet, Provider, ProviderContext, ProviderError, Signal},
        stream::{StreamProvider, from_stream},
    },
};
