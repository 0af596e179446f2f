//! Scene: a small cluster with the few events that a rule is about.

use crate::state::{Links, NODES, Nodes, Q, V, W, X, link};

/// Cluster of a run, with what may happen in it.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Name, as tests and documents cite the scene.
    pub name: &'static str,
    /// Nodes that run from the beginning.
    pub up: Nodes,
    /// Nodes that start later.
    pub late: Nodes,
    /// Nodes that discovery lists at the beginning, for each node.
    pub lists: [Nodes; NODES],
    /// Nodes that discovery lists in the end.
    pub final_lists: [Nodes; NODES],
    /// Links that are cut at the beginning.
    pub broken: Links,
    /// Sets of links that are cut and repaired together.
    pub cuts: &'static [Links],
    /// Largest number of cuts and repairs.
    pub faults: u8,
    /// Nodes that write, once each.
    pub writers: Nodes,
    /// Writer and owner of a write that is a `set`; other writes are removes.
    pub set: Option<(usize, usize)>,
    /// Nodes that hold a value at the beginning.
    pub holders: Nodes,
    /// Nodes that load.
    pub loaders: Nodes,
    /// Pairs of an asker and an answerer.
    pub fetches: &'static [(usize, usize)],
    /// Pairs of a sender and a receiver of pages.
    pub pages: &'static [(usize, usize)],
    /// Nodes that restart once.
    pub restarts: Nodes,
    /// Nodes that die.
    pub crashes: Nodes,
    /// S in ticks, for a scene about the horizon.
    pub staleness: Option<u8>,
    /// Nodes that send pings and so have a horizon that moves.
    pub pingers: Nodes,
    /// Whether gets join flights, and are judged one by one.
    pub joins: bool,
    /// Nodes with gets that read memory in two steps.
    pub lookups: Nodes,
    /// Whether a minute may pass, after which an unlisted node without a connection is forgotten.
    pub minute_passes: bool,
    /// Whether a silent peer stops being pending after S.
    pub settles_by_age: bool,
    /// Whether an acknowledgement takes time to reach the writer.
    pub slow_acknowledgements: bool,
    /// Whether the scene judges that nothing is pending for ever.
    pub judges_settling: bool,
}

impl Scene {
    /// Returns whether a node judges values of others by what they have said.
    pub(crate) fn asks(&self, at: usize) -> bool {
        self.fetches.iter().any(|&(asker, _)| asker == at) || self.pages.iter().any(|&(_, receiver)| receiver == at)
    }
}

/// Three nodes.
pub(crate) const THREE: Nodes = Nodes::of(&[W, Q, X]);
/// Four nodes.
pub(crate) const FOUR: Nodes = Nodes::of(&[W, Q, X, V]);
/// The link of the writer and the owner.
pub(crate) const WQ: Links = Links::one(link(W, Q));
/// The link of the writer and the asker.
pub(crate) const WX: Links = Links::one(link(W, X));
/// The link of the owner and the asker.
pub(crate) const QX: Links = Links::one(link(Q, X));
/// The link of the owner and the fourth node.
pub(crate) const QV: Links = Links::one(link(Q, V));
/// The link of the asker and the fourth node.
pub(crate) const XV: Links = Links::one(link(X, V));

/// Three nodes that list one another, and nothing else.
pub(crate) const BASE: Scene = Scene {
    name: "",
    up: THREE,
    late: Nodes::EMPTY,
    lists: [THREE; NODES],
    final_lists: [THREE; NODES],
    broken: Links::EMPTY,
    cuts: &[],
    faults: 0,
    writers: Nodes::of(&[W]),
    set: None,
    holders: Nodes::of(&[Q]),
    loaders: Nodes::of(&[Q]),
    fetches: &[],
    pages: &[],
    restarts: Nodes::EMPTY,
    crashes: Nodes::EMPTY,
    staleness: None,
    pingers: Nodes::EMPTY,
    joins: false,
    lookups: Nodes::EMPTY,
    minute_passes: false,
    settles_by_age: false,
    slow_acknowledgements: false,
    judges_settling: true,
};
