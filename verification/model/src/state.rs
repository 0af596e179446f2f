//! State of a whole cluster: its nodes, the messages in flight, and what the verdict remembers.

use crate::bits::Bits;

/// Largest number of nodes in a scene.
pub const NODES: usize = 4;

/// Writer of the write that is judged.
pub const W: usize = 0;
/// Owner of the key.
pub const Q: usize = 1;
/// Node that asks the owner and keeps a replica.
pub const X: usize = 2;
/// Fourth node: a previous owner, a second writer or the end of a chain.
pub const V: usize = 3;

/// Set of nodes.
pub type Nodes = Bits;
/// Set of nodes in one incarnation each; the second incarnation of node `n` has the number `n + NODES`.
pub type Members = Bits;
/// Set of writes. Each node writes once at most, in its first incarnation, so that write `n` is the whole log of node
/// `n`, and a position in that log is whether the set contains `n`.
pub type Writes = Bits;
/// Set of links, numbered by [`link`].
pub type Links = Bits;

/// All links.
pub const ALL_LINKS: Links = Links::of(&[0, 1, 2, 3, 4, 5]);

/// Returns the number of the link between two nodes.
pub const fn link(a: usize, b: usize) -> usize {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    match (low, high) {
        (0, _) => high - 1,
        (1, _) => high + 1,
        _ => 5,
    }
}

/// Returns the links of one node.
pub const fn links_of(node: usize) -> Links {
    let mut links = Links::EMPTY;
    let mut other = 0;
    while other < NODES {
        if other != node {
            links = links.and(Links::one(link(node, other)));
        }
        other += 1;
    }
    links
}

/// Time of an event as its age in ticks, so that runs of any length have finitely many states. Ages end at a limit of
/// the scene, beyond which all are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Age(pub u8);

impl Age {
    /// Age of what happens now.
    pub const NOW: Self = Self(0);

    /// Returns whether this event came after `other`, in a later tick.
    pub fn is_later_than(self, other: Self) -> bool {
        self.0 < other.0
    }

    /// Returns the later of two times.
    pub fn later_of(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// Returns the earlier of two times.
    pub fn earlier_of(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
}

/// Value, or an answer that nothing is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    /// Writes that the value truly contains.
    pub contains: Writes,
    /// Label under test: the node believes that the value contains each write before this time.
    pub as_of: Age,
    /// Time at which the request left that brought the value from another node; the oldest time for a load.
    pub taken: Age,
    /// Writes of which the protocol promises nothing here, because nobody in reach had met the writer.
    pub exempt: Writes,
}

/// Writes that a get must see: judged when the get begins, and compared when its value arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Due {
    /// Settled writes.
    pub settled: Writes,
    /// Writes made more than S before.
    pub aged: Writes,
}

/// Stage of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchStage {
    /// The names are read, and the flight is not registered: only without [`crate::Rule::FlightBeforeNames`].
    Named,
    /// The request is on its way.
    Sent,
    /// The value is read and the names are not compared: only without [`crate::Rule::ComparedBeforeRead`].
    Held(Value),
    /// The answerer has compared the names and read its horizon.
    Compared {
        /// Horizon of the answerer at that moment.
        horizon: Age,
        /// Arrival of the request.
        arrived: Age,
    },
    /// The answer is on its way.
    Answered(Value),
}

/// Request of one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// Answerer.
    pub to: usize,
    /// Stage of the request.
    pub stage: FetchStage,
    /// Writes that the request names.
    pub names: Writes,
    /// Departure of the request.
    pub left: Age,
    /// Beginning of the last get that joined.
    pub start: Age,
    /// Writes that this get must see.
    pub due: Due,
    /// Whether a write has detached the flight.
    pub is_detached: bool,
}

/// Stage of a page of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageStage {
    /// The sender has read its positions.
    Positions(Writes),
    /// The sender has read its value first: only without [`crate::Rule::PageOrder`].
    Value(Value),
    /// The page is on its way.
    Sent(Writes, Value),
    /// The receiver has judged the page, and has not stored the value.
    Judged(Value),
}

/// Page of a hand-over with the one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// Sender.
    pub from: usize,
    /// Receiver.
    pub to: usize,
    /// Stage of the page.
    pub stage: PageStage,
}

/// Value of a `set` on its way to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetMessage {
    /// Writer, and so the number of the write.
    pub from: usize,
    /// Owner.
    pub to: usize,
    /// Positions of the writer at the call.
    pub positions: Writes,
    /// Value of the call.
    pub value: Value,
}

/// Ping, and later its pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ping {
    /// Asker.
    pub from: usize,
    /// Answerer.
    pub to: usize,
    /// Departure of the ping.
    pub left: Age,
    /// Positions and company that the pong shows, once it is answered.
    pub shown: Option<(Writes, Nodes)>,
}

/// First of the two values that a lookup reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// The horizon.
    Horizon(Age),
    /// The entry: only without [`crate::Rule::HorizonFirst`].
    Entry(Value),
}

/// Get that is between its two reads of local memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// Node of the get.
    pub at: usize,
    /// Result of the first read.
    pub seen: Seen,
    /// Beginning of the get.
    pub start: Age,
    /// Writes that the get must see.
    pub due: Due,
}

/// Node in its present incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Whether the process runs.
    pub is_up: bool,
    /// Number of restarts, at most one.
    pub incarnation: u8,
    /// Nodes that discovery lists.
    pub listed: Nodes,
    /// Nodes that have connected and are not known to be gone.
    pub met: Nodes,
    /// Nodes met in their second incarnation.
    pub met_again: Nodes,
    /// Writes that the node has applied, or that its base covers.
    pub position: Writes,
    /// Writes that it was sent as entries. Kept apart from the position only where a rule about bases is left out.
    pub received: Writes,
    /// Writes that a request has named and that the position has not reached.
    pub remembered: Writes,
    /// Write that was applied last. Kept only without [`crate::Rule::NamedWrites`].
    pub newest: Writes,
    /// Whether the node's own write is in the log and not yet applied: only without [`crate::Rule::ApplyFirst`].
    pub is_unapplied: bool,
    /// Positions that each other node has shown in the incarnation of this connection.
    pub known: [Writes; NODES],
    /// Entry of the key.
    pub value: Option<Value>,
    /// Attached load, with the value that it will bring.
    pub load: Option<Value>,
    /// Fetch of the node.
    pub fetch: Option<Fetch>,
    /// For each other node, the time by which everything was applied that this node had written or heard.
    pub heard: [Age; NODES],
    /// Horizon: the node has applied everything from before this time.
    pub horizon: Age,
    /// Last time at which a node left the company or returned in another incarnation.
    pub left_at: Age,
    /// Company after the last step.
    pub company: Nodes,
}

/// Outcome of the judged write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// Incarnations that the writer knows to have acknowledged.
    pub acknowledged: Members,
    /// Company that came with each acknowledgement.
    pub shown: [Members; NODES],
    /// Company that each node truly had at its acknowledgement.
    pub truly: [Members; NODES],
    /// Peers with a discovery that listed the writer when they were last heard.
    pub listers: Nodes,
    /// Whether nothing is pending.
    pub is_settled: bool,
    /// Nodes that the settled write promises something about.
    pub counted: Nodes,
}

/// Acknowledgement on its way to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Acknowledgement {
    /// Node that acknowledges.
    pub node: usize,
    /// Number of this node in its incarnation.
    pub member: usize,
    /// Company that the acknowledgement shows.
    pub shown: Members,
    /// Company that the node truly has.
    pub truly: Members,
}

/// State of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Nodes.
    pub nodes: [Node; NODES],
    /// Links that work.
    pub links: Links,
    /// Cuts and repairs so far.
    pub faults: u8,
    /// Age of each write that was made.
    pub made: [Option<Age>; NODES],
    /// Ping or pong in flight.
    pub ping: Option<Ping>,
    /// Page in flight.
    pub page: Option<Page>,
    /// Value of a `set` in flight.
    pub set: Option<SetMessage>,
    /// Get between two reads.
    pub lookup: Option<Lookup>,
    /// Acknowledgement in flight.
    pub acknowledgement: Option<Acknowledgement>,
    /// Outcome of the judged write.
    pub outcome: Outcome,
    /// Whether a get received a value without a settled write.
    pub has_lost_settled: bool,
    /// Whether a get received a value without a write that was made more than S before it.
    pub has_lost_aged: bool,
}

impl State {
    /// Returns the writes that were made.
    pub fn written(&self) -> Writes {
        (0..NODES).filter(|&write| self.made[write].is_some()).collect()
    }

    /// Returns the nodes that run.
    pub fn living(&self) -> Nodes {
        (0..NODES).filter(|&node| self.nodes[node].is_up).collect()
    }
}
