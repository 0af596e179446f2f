//! Rules of the protocol, each with a name that code and documents can cite.

use std::fmt;

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $rule:ident = $name:literal,)+) => {
        /// Rule of the protocol. A mutant is the protocol without one rule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule {
            $($(#[doc = $doc])+ $rule,)+
        }

        impl Rule {
            /// All rules, in the order in which the documentation lists them.
            pub const ALL: &[Self] = &[$(Self::$rule,)+];

            /// Returns the name of the rule, as code and documents cite the rule.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$rule => $name,)+
                }
            }
        }
    };
}

rules! {
    /// A write is applied locally first and appended to the log afterwards, so that no node sees a number that its
    /// sender has not applied. Left out: the number is visible first.
    ApplyFirst = "apply before append",
    /// To apply a write is also to detach the running flights, so that no later get joins an old flight and no old
    /// flight is cached. Left out: an old flight is joined and cached.
    DetachedFlights = "detached flights",
    /// A write is complete once each node in the closure of the writer's company has acknowledged the write. Left out:
    /// the company of the writer alone.
    Closure = "closure",
    /// An acknowledgement that another node passes on still shows the company of its sender. Left out: the company is
    /// lost on the way.
    RelayedCompany = "relayed company",
    /// A node that has seen a position of another node tells the writer. Left out: only direct acknowledgements count.
    RelayedAck = "relayed acknowledgement",
    /// An acknowledgement counts for the incarnation that gave the acknowledgement. Left out: for each incarnation.
    PresentIncarnation = "present incarnation",
    /// A listed target that never answered anybody belongs to no company. Left out: listed is enough.
    MetCompany = "met company",
    /// A node that has connected stays in the company until it is known to be gone, listed or not. Left out: an
    /// unlisted node is forgotten with its connection.
    StickyCompany = "sticky company",
    /// A base counts as an entry "all of every group" at its number, in requests and in pages. Left out: as nothing.
    BaseIsAll = "base is all",
    /// A node that takes a base detaches its running flights. Left out: the flights go on.
    BaseDetaches = "base detaches",
    /// A node that is asked for entries that it never received answers "all of every group". Left out: the asker
    /// pulls from the young log as if the log were whole.
    WholeLog = "whole log",
    /// A request names each write that the asker has and that the answerer has not said that it has, of all writers.
    /// Left out: the newest only.
    NamedWrites = "named writes",
    /// A flight is registered before its request reads the names. Left out: the names are read first.
    FlightBeforeNames = "flight before names",
    /// An answerer compares the names before it reads its value. Left out: the value is read first.
    ComparedBeforeRead = "compared before read",
    /// An answerer names the writes that it lacks to each node that it asks itself. Left out: it names only its own.
    NamedOn = "named on",
    /// Knowledge of what a node has ends with the incarnation of that node. Left out: it survives a restart.
    KnowledgeEnds = "knowledge ends with incarnation",
    /// A page is judged by the positions that the page shows. Left out: by a newer pong of its sender.
    PagePositions = "page positions",
    /// A page shows positions that were read before its first value. Left out: positions are read afterwards.
    PageOrder = "page order",
    /// A value of a page is stored only if its stripe has not moved since the judgement began. Left out: in each case.
    PageStripe = "page stripe",
    /// A `set` carries the positions of its caller, and the owner stores nothing if it has an entry beyond them. Left
    /// out: the owner stores the value.
    SetPositions = "set positions",
    /// A pong counts once the positions of the asker reach all those that the pong shows. Left out: at once.
    PositionsReached = "replayed pong",
    /// A pong counts only if it shows the company of the asker. Left out: a pong of another company counts.
    SameCompany = "same company",
    /// The horizon moves on only after all members have answered since a node left the company. Left out: the horizon
    /// jumps to what the remaining members have answered before.
    HeldHorizon = "held horizon",
    /// A member that returns in another incarnation holds the horizon as a node that leaves does. Left out: the return
    /// is not noted.
    HeldAtReturn = "held at return",
    /// A member is unheard until its first pong, and the horizon stands still meanwhile. Left out: the moment of the
    /// meeting counts as a pong.
    NewMember = "new member",
    /// The horizon moves only to a time that is later than the time at which a node left. Left out: equal is enough.
    StrictlyLater = "strictly later",
    /// A get judges the age of a value when the value arrives. Left out: at the join only.
    JudgedAtEnd = "judged at the end",
    /// A value that is sent carries its age. Left out: the value counts as read when the request left.
    PassedAge = "passed-on age",
    /// A lookup reads the horizon before the entry. Left out: the entry first.
    HorizonFirst = "horizon first",
    /// The horizon applies to what a write would still reach. Left out: also to detached flights.
    HorizonOfAttached = "horizon of attached",
    /// A peer that is silent stops being pending after S only if its discovery listed the writer when it was last
    /// heard. Left out: each peer of the company.
    ListedSettle = "listed settle",
    /// The horizon says nothing about a value taken from another node before the horizon is later than the departure
    /// of the request. Left out: a horizon from the time alone, or from the start, covers the value.
    HorizonOfTaken = "horizon of taken",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rules that a run keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules(u64);

impl Rules {
    /// The whole protocol.
    pub const ALL: Self = Self(u64::MAX);

    /// Returns these rules without one.
    #[must_use]
    pub const fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u64))
    }

    /// Returns whether the run keeps `rule`.
    pub const fn keep(self, rule: Rule) -> bool {
        self.0 >> rule as u64 & 1 != 0
    }
}
