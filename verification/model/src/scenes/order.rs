//! Scenes without time: what is settled, and what is pending.

use crate::{
    scene::{BASE, FOUR, QX, Scene, THREE, WQ, WX, XV},
    state::{Links, NODES, Nodes, Q, V, W, X, link},
};

/// Three nodes: W writes, Q owns and loads, X fetches from Q, and the links of W fail.
pub const FETCH: Scene = Scene {
    name: "fetch",
    fetches: &[(X, Q), (Q, X)],
    cuts: &[WQ, WX, QX],
    faults: 3,
    slow_acknowledgements: true,
    ..BASE
};

/// The writer owns the key, and the two others fetch from it.
pub const WRITER_OWNS: Scene = Scene {
    name: "writer owns",
    holders: Nodes::of(&[W]),
    loaders: Nodes::of(&[W]),
    fetches: &[(X, W), (Q, W)],
    cuts: &[WX, WQ],
    faults: 2,
    ..BASE
};

/// Two writers: W, and the owner Q.
pub const TWO_WRITERS: Scene =
    Scene { name: "two writers", writers: Nodes::of(&[W, Q]), fetches: &[(X, Q)], cuts: &[WQ, WX], faults: 2, ..BASE };

/// A chain: W and X do not know each other, and Q knows both.
pub const CHAIN: Scene = Scene {
    name: "chain",
    slow_acknowledgements: true,
    lists: [Nodes::of(&[W, Q]), THREE, Nodes::of(&[Q, X]), Nodes::EMPTY],
    final_lists: [Nodes::of(&[W, Q]), THREE, Nodes::of(&[Q, X]), Nodes::EMPTY],
    broken: WX,
    cuts: &[WQ],
    faults: 2,
    holders: Nodes::of(&[Q, X]),
    ..BASE
};

/// Four nodes, where only X knows V and the link of W and X is cut.
pub const LONG_CHAIN: Scene = Scene {
    name: "long chain",
    slow_acknowledgements: true,
    cuts: &[WQ, QX, XV],
    faults: 3,
    up: FOUR,
    lists: [THREE, THREE, FOUR, Nodes::of(&[X, V])],
    final_lists: [THREE, THREE, FOUR, Nodes::of(&[X, V])],
    broken: Links::of(&[link(W, X), link(W, V), link(Q, V)]),
    holders: Nodes::of(&[V]),
    loaders: Nodes::EMPTY,
    ..BASE
};

/// A dead target stays in the list of W.
pub const DEAD_TARGET: Scene = Scene {
    name: "dead target",
    lists: [FOUR, THREE, THREE, Nodes::EMPTY],
    final_lists: [FOUR, THREE, THREE, Nodes::EMPTY],
    ..BASE
};

/// X starts late, and fetches from Q.
pub const JOINER: Scene = Scene {
    name: "joiner",
    up: Nodes::of(&[W, Q]),
    late: Nodes::of(&[X]),
    fetches: &[(X, Q)],
    cuts: &[WQ, WX],
    faults: 1,
    ..BASE
};

/// X restarts while Q lags.
pub const HOLDER_RESTARTS: Scene = Scene {
    name: "holder restarts",
    restarts: Nodes::of(&[X]),
    fetches: &[(X, Q)],
    cuts: &[WQ, WX],
    faults: 1,
    ..BASE
};

/// The owner restarts and fetches from a previous owner that lags, while X fetches from the owner.
pub const OWNER_RESTARTS: Scene = Scene {
    name: "owner restarts",
    up: FOUR,
    lists: [FOUR; NODES],
    final_lists: [FOUR; NODES],
    restarts: Nodes::of(&[Q]),
    holders: Nodes::of(&[V]),
    loaders: Nodes::EMPTY,
    fetches: &[(X, Q), (Q, V)],
    judges_settling: false,
    ..BASE
};

/// The owner asks a previous owner before it loads.
pub const PREVIOUS_OWNER: Scene = Scene {
    name: "previous owner",
    up: FOUR,
    lists: [FOUR; NODES],
    final_lists: [FOUR; NODES],
    holders: Nodes::of(&[V]),
    fetches: &[(X, Q), (Q, V)],
    judges_settling: false,
    ..BASE
};

/// The previous owner Q sends pages to X.
pub const PAGES: Scene = Scene { name: "pages", pages: &[(Q, X)], cuts: &[WQ, WX], faults: 2, ..BASE };

/// X sets a value at the owner Q while W removes.
pub const SET: Scene =
    Scene { name: "set", writers: Nodes::of(&[W, X]), set: Some((X, Q)), cuts: &[WQ, WX], faults: 1, ..BASE };

/// The writer restarts after it has told some nodes.
pub const WRITER_RESTARTS: Scene = Scene {
    name: "writer restarts",
    restarts: Nodes::of(&[W]),
    fetches: &[(X, Q)],
    cuts: &[WQ, WX],
    faults: 1,
    ..BASE
};

/// X runs alone with an old value until discovery finds the others.
pub const LATE_DISCOVERY: Scene = Scene {
    name: "late discovery",
    lists: [Nodes::of(&[W, Q]), Nodes::of(&[W, Q]), Nodes::of(&[X]), Nodes::EMPTY],
    holders: Nodes::of(&[Q, X]),
    loaders: Nodes::EMPTY,
    fetches: &[(Q, X), (X, Q)],
    cuts: &[WQ, WX],
    faults: 2,
    slow_acknowledgements: true,
    ..BASE
};

/// Four nodes: acknowledgements travel, companies grow and links are cut meanwhile.
pub const COMPANIES_GROW: Scene = Scene {
    name: "companies grow",
    up: FOUR,
    lists: [THREE, THREE, THREE, Nodes::of(&[V])],
    final_lists: [THREE, THREE, FOUR, Nodes::of(&[X, V])],
    broken: Links::of(&[link(W, V), link(Q, V)]),
    cuts: &[WX, XV],
    faults: 2,
    holders: Nodes::of(&[Q, V]),
    loaders: Nodes::EMPTY,
    fetches: &[(X, V)],
    slow_acknowledgements: true,
    ..BASE
};
