//! Scenes with more nodes, faults or ticks, for runs of minutes.

use super::{AGE, HORIZON, JOINED, LATE_TAKER};
use crate::{
    scene::{BASE, FOUR, QV, QX, Scene, WQ, WX, XV},
    state::{Links, NODES, Nodes, Q, V, W, X, link, links_of},
};

/// Each link by itself.
const ALL: &[Links] = &[WQ, WX, Links::one(link(W, V)), QX, QV, XV];

/// Four nodes that list one another.
const FOUR_NODES: Scene = Scene { up: FOUR, lists: [FOUR; NODES], final_lists: [FOUR; NODES], ..BASE };

/// Larger scenes.
pub const LARGER: &[Scene] = &[
    Scene {
        name: "fetch of four",
        fetches: &[(X, Q), (Q, V)],
        cuts: ALL,
        faults: 2,
        holders: Nodes::of(&[V]),
        slow_acknowledgements: true,
        ..FOUR_NODES
    },
    Scene {
        name: "two writers of four",
        writers: Nodes::of(&[W, V]),
        fetches: &[(X, Q)],
        cuts: &[WQ, WX, QV, XV],
        faults: 2,
        ..FOUR_NODES
    },
    Scene {
        name: "restarts of four",
        restarts: Nodes::of(&[Q, X]),
        holders: Nodes::of(&[V]),
        loaders: Nodes::EMPTY,
        fetches: &[(X, Q), (Q, V)],
        pages: &[(V, Q)],
        cuts: &[WQ, WX],
        faults: 1,
        ..FOUR_NODES
    },
    Scene {
        name: "pages and fetches",
        up: Nodes::of(&[W, Q, V]),
        late: Nodes::of(&[X]),
        pages: &[(V, X)],
        fetches: &[(X, Q), (Q, V)],
        holders: Nodes::of(&[V]),
        ..FOUR_NODES
    },
    Scene {
        name: "set of four",
        writers: Nodes::of(&[W, X]),
        set: Some((X, Q)),
        fetches: &[(V, Q)],
        restarts: Nodes::of(&[Q]),
        ..FOUR_NODES
    },
    Scene { name: "horizon of two ticks", staleness: Some(2), cuts: &[WX, WQ, links_of(W)], faults: 3, ..HORIZON },
    Scene { name: "age of two ticks", staleness: Some(2), cuts: &[WQ], faults: 1, ..AGE },
    Scene {
        name: "two horizons",
        loaders: Nodes::EMPTY,
        crashes: Nodes::of(&[W]),
        cuts: &[WX],
        faults: 1,
        pingers: Nodes::of(&[Q, X]),
        ..HORIZON
    },
    Scene {
        name: "horizon of four",
        up: FOUR,
        lists: [FOUR; NODES],
        final_lists: [FOUR; NODES],
        holders: Nodes::of(&[X]),
        loaders: Nodes::EMPTY,
        crashes: Nodes::of(&[W]),
        cuts: &[WX],
        faults: 1,
        ..HORIZON
    },
    Scene { name: "joined load", loaders: Nodes::of(&[Q]), ..JOINED },
    Scene { name: "late takers", pingers: Nodes::of(&[Q, X]), ..LATE_TAKER },
];
