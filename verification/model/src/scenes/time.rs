//! Scenes with an S of one tick: horizons and ages.

use crate::{
    scene::{BASE, FOUR, Scene, THREE, WQ, WX},
    state::{Links, NODES, Nodes, Q, V, W, X, links_of},
};

/// X has a horizon, and both links of W fail.
pub const HORIZON: Scene = Scene {
    name: "horizon",
    holders: Nodes::of(&[Q, X]),
    cuts: &[WX, links_of(W)],
    faults: 2,
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    judges_settling: false,
    ..BASE
};

/// X fetches from Q, which has a horizon.
pub const AGE: Scene = Scene {
    name: "age",
    fetches: &[(X, Q)],
    staleness: Some(1),
    pingers: Nodes::of(&[Q]),
    judges_settling: false,
    ..BASE
};

/// the writer dies after it has told Q.
pub const WRITER_DIES: Scene = Scene {
    name: "writer dies",
    holders: Nodes::of(&[X]),
    loaders: Nodes::EMPTY,
    crashes: Nodes::of(&[W]),
    cuts: &[WX],
    faults: 1,
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    judges_settling: false,
    ..BASE
};

/// X knows Q only, and Q knows W.
pub const OTHER_COMPANY: Scene = Scene {
    name: "other company",
    lists: [Nodes::of(&[W, Q]), THREE, Nodes::of(&[Q, X]), Nodes::EMPTY],
    final_lists: [Nodes::of(&[W, Q]), THREE, Nodes::of(&[Q, X]), Nodes::EMPTY],
    broken: WX,
    holders: Nodes::of(&[X]),
    loaders: Nodes::EMPTY,
    cuts: &[WQ],
    faults: 2,
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    judges_settling: false,
    ..BASE
};

/// W lists X, and X never lists W.
pub const UNLISTED: Scene = Scene {
    name: "unlisted",
    up: Nodes::of(&[W, X]),
    lists: [Nodes::of(&[W, X]), Nodes::EMPTY, Nodes::of(&[X]), Nodes::EMPTY],
    final_lists: [Nodes::of(&[W, X]), Nodes::EMPTY, Nodes::of(&[X]), Nodes::EMPTY],
    holders: Nodes::of(&[X]),
    loaders: Nodes::EMPTY,
    cuts: &[WX],
    faults: 2,
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    judges_settling: false,
    ..BASE
};

/// W lists X, X never lists W, a minute passes, and writes settle after S.
pub const UNLISTED_MINUTE: Scene =
    Scene { name: "unlisted minute", minute_passes: true, settles_by_age: true, ..UNLISTED };

/// writes settle after S among nodes that list one another.
pub const SETTLED_BY_AGE: Scene = Scene { name: "settled by age", settles_by_age: true, ..HORIZON };

/// gets join the flight of X.
pub const JOINED: Scene = Scene {
    name: "joined",
    loaders: Nodes::EMPTY,
    fetches: &[(X, Q)],
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    joins: true,
    judges_settling: false,
    ..BASE
};

/// gets of X read the horizon and the entry one after the other.
pub const TWO_READS: Scene = Scene {
    name: "two reads",
    up: Nodes::of(&[W, X]),
    lists: [Nodes::of(&[W, X]); NODES],
    final_lists: [Nodes::of(&[W, X]); NODES],
    holders: Nodes::of(&[X]),
    loaders: Nodes::EMPTY,
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    lookups: Nodes::of(&[X]),
    judges_settling: false,
    ..BASE
};

/// X and V, which know each other only, meet Q, which holds a value and cannot hear W.
pub const MERGED: Scene = Scene {
    name: "merged",
    up: FOUR,
    lists: [Nodes::of(&[W, Q]), Nodes::of(&[W, Q]), Nodes::of(&[X, V]), Nodes::of(&[X, V])],
    final_lists: [Nodes::of(&[W, Q]), Nodes::of(&[W, Q]), Nodes::of(&[X, Q, V]), Nodes::of(&[X, V])],
    loaders: Nodes::EMPTY,
    fetches: &[(X, Q)],
    cuts: &[links_of(W)],
    faults: 1,
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    judges_settling: false,
    ..BASE
};

/// X meets W after both have met Q.
pub const MET_LATER: Scene = Scene {
    name: "met later",
    final_lists: [Nodes::of(&[W, Q]), THREE, THREE, Nodes::EMPTY],
    broken: Links::EMPTY,
    cuts: &[WX],
    ..OTHER_COMPANY
};

/// X starts after the write, and takes a value from Q, which has not heard W.
pub const LATE_TAKER: Scene = Scene {
    name: "late taker",
    up: Nodes::of(&[W, Q]),
    late: Nodes::of(&[X]),
    lists: [Nodes::of(&[W, Q]), Nodes::of(&[W, Q]), Nodes::of(&[X]), Nodes::EMPTY],
    loaders: Nodes::EMPTY,
    fetches: &[(X, Q)],
    staleness: Some(1),
    pingers: Nodes::of(&[X]),
    judges_settling: false,
    ..BASE
};

/// the writer restarts after it has told Q.
pub const WRITER_RETURNS: Scene =
    Scene { name: "writer returns", crashes: Nodes::EMPTY, restarts: Nodes::of(&[W]), ..WRITER_DIES };
