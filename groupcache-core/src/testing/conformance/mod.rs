//! What every provider must pass; feature `testing`, for the tests of providers.
//!
//! A test implements [`Source`] for what its provider reads: how members appear in it, how it fails. [`conform`] runs
//! the provider as a node would, with no node, and tells which of the scenarios passed. A scenario that a source
//! cannot have is left out, and the source says why.
//!
//! ```
//! use std::{sync::{Arc, Mutex}, time::Duration};
//! use groupcache_core::{BoxError, discovery::{Me, Peer, Provider, poll}, async_trait, conformance::{Cannot, Source, Timing, conform}};
//!
//! #[derive(Default)]
//! struct Table(Arc<Mutex<Option<Vec<Peer>>>>); // None: it cannot be read now
//!
//! impl Table {
//!     fn change(&self, change: impl FnOnce(&mut Vec<Peer>)) {
//!         change(self.0.lock().unwrap().get_or_insert_default());
//!     }
//! }
//!
//! #[async_trait]
//! impl Source for Table {
//!     fn provider(&mut self) -> Arc<dyn Provider> {
//!         let table = Arc::clone(&self.0);
//!         Arc::new(poll("table", Duration::from_millis(50), move || {
//!             let rows = table.lock().unwrap().clone();
//!             async move { rows.ok_or_else(|| BoxError::from("the table cannot be read")) }
//!         }))
//!     }
//!     async fn join(&mut self, member: &Me) -> Result<(), Cannot> {
//!         let peer = Peer::member(member.id.clone(), member.addresses.clone()).with_incarnation(member.incarnation);
//!         self.change(|rows| rows.retain(|row| row.id() != Some(&member.id)));
//!         Ok(self.change(|rows| rows.push(peer)))
//!     }
//!     async fn leave(&mut self, member: &Me) -> Result<(), Cannot> {
//!         Ok(self.change(|rows| rows.retain(|row| row.id() != Some(&member.id))))
//!     }
//!     async fn crash(&mut self, _: &Me) -> Result<(), Cannot> {
//!         Err(Cannot("a table does not know who is alive"))
//!     }
//!     async fn fail(&mut self) -> Result<(), Cannot> {
//!         Err(Cannot("see refuse: this one fails in one way only"))
//!     }
//!     async fn refuse(&mut self) -> Result<(), Cannot> {
//!         *self.0.lock().unwrap() = None;
//!         Ok(())
//!     }
//!     async fn mend(&mut self, members: &[Me]) {
//!         self.change(Vec::clear);
//!         for member in members {
//!             let _ = self.join(member).await;
//!         }
//!     }
//!     async fn garbage(&mut self) -> Result<(), Cannot> {
//!         Err(Cannot("the rows have types"))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let report = conform(async || Table::default()).await;
//! println!("{report}");
//! report.passed().unwrap();
//! # }
//! ```

mod bench;
mod known;
mod scenarios;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    identity::{Address, Incarnation, NodeState, PeerId},
    membership::provider::{Me, Provider},
};

pub use crate::testing::conformance::{bench::Bench, scenarios::conform};

/// The cluster that the node under test and all members are of.
pub const CLUSTER: &str = "conformance";

/// Why a source cannot do something; the scenario that wants it is left out and says this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cannot(pub &'static str);

/// What a provider reads, in the hands of a test.
///
/// Each scenario begins with a fresh one. No method has a default but those that say something of all sources: a
/// source that cannot do something says so with [`Cannot`].
#[async_trait]
pub trait Source: Send {
    /// A provider that reads this source; asked again for each run of it.
    fn provider(&mut self) -> Arc<dyn Provider>;

    /// How fast the provider is.
    fn timing(&self) -> Timing {
        Timing::default()
    }

    /// The member is there, with its addresses and its incarnation; the same id again is a new life of it.
    async fn join(&mut self, member: &Me) -> Result<(), Cannot>;

    /// The member has gone, in order.
    async fn leave(&mut self, member: &Me) -> Result<(), Cannot>;

    /// The member has gone without a word.
    async fn crash(&mut self, member: &Me) -> Result<(), Cannot>;

    /// The source itself is down.
    async fn fail(&mut self) -> Result<(), Cannot>;

    /// The source answers, and refuses the node (or in whatever other way it can fail than by silence).
    async fn refuse(&mut self) -> Result<(), Cannot>;

    /// After [`fail`](Self::fail) or [`refuse`](Self::refuse): the source is well again, and these are its members.
    async fn mend(&mut self, members: &[Me]);

    /// The source holds, or is sent, what nobody can read, beside the members that it has.
    async fn garbage(&mut self) -> Result<(), Cannot>;

    /// Whether the provider can tell a source without members from one that does not answer. Default: yes.
    fn can_be_empty(&self) -> Result<(), Cannot> {
        Ok(())
    }

    /// Whether what the source holds tells one life of an id from the next. Default: yes.
    fn knows_incarnations(&self) -> Result<(), Cannot> {
        Ok(())
    }

    /// Whether the source knows which addresses are of one member. Default: yes.
    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        Ok(())
    }

    /// Whether the provider can look again when the node doubts a set. Default: yes.
    fn can_be_asked(&self) -> Result<(), Cannot> {
        Ok(())
    }
}

/// How fast a provider must be, and for how long a source is down; the defaults suit a local source that pushes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the start to the first complete set. Default 2 s.
    pub first_set: Duration,
    /// From a join, a leave or a new life to the set that shows it. Default 1 s.
    pub change: Duration,
    /// From a crash to the set without the member. Default 10 s.
    pub crash: Duration,
    /// How long the source is down; longer than any expiry of the provider. Default 3 s.
    pub outage: Duration,
    /// From the end of an outage to a right set. Default 5 s.
    pub recovery: Duration,
    /// From the signal to the end of the provider. Default 900 ms: a node drops it after a second.
    pub leaving: Duration,
    /// From the end of the provider until its last task has ended. Default 1 s.
    pub tasks: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let s = Duration::from_secs;
        let leaving = Duration::from_millis(900);
        Self { first_set: s(2), change: s(1), crash: s(10), outage: s(3), recovery: s(5), leaving, tasks: s(1) }
    }
}

/// How the scenarios went.
#[derive(Clone, Debug, Default)]
pub struct Report {
    outcomes: Vec<(&'static str, Outcome)>,
}

#[derive(Clone, Debug)]
enum Outcome {
    Passed(Duration),
    LeftOut(&'static str),
    Failed(String),
}

impl Report {
    /// The report itself, if no scenario has failed.
    ///
    /// # Errors
    /// The report too: its text names those that failed.
    pub fn passed(self) -> Result<Self, Failures> {
        let has_failed = self.outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
        if has_failed { Err(Failures(self)) } else { Ok(self) }
    }

    /// The scenarios that were left out, each with the reason.
    pub fn left_out(&self) -> Vec<(&'static str, &'static str)> {
        let why = |outcome: &Outcome| if let Outcome::LeftOut(why) = outcome { Some(*why) } else { None };
        self.outcomes.iter().filter_map(|(name, outcome)| Some((*name, why(outcome)?))).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.outcomes {
            match outcome {
                Outcome::Passed(took) => writeln!(f, "passed    {name} ({} ms)", took.as_millis())?,
                Outcome::LeftOut(why) => writeln!(f, "left out  {name}: {why}")?,
                Outcome::Failed(what) => writeln!(f, "FAILED    {name}: {what}")?,
            }
        }
        Ok(())
    }
}

/// A report in which some scenario has failed.
#[derive(Clone)]
pub struct Failures(Report);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the provider does not conform:\n{}", self.0)
    }
}

/// As its text: this is what `unwrap` prints.
impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failures {}

/// A member, the first life of its id, at an address of its own. (The name is a good one and the ports are not 0.)
fn member(number: u16) -> Result<Me, crate::Error> {
    Ok(Me {
        id: PeerId::new(format!("member-{number}"))?,
        cluster: CLUSTER.into(),
        incarnation: Incarnation(1_000 + u64::from(number)),
        state: NodeState::Ready,
        addresses: vec![Address::new(format!("127.0.{}.{}:7946", number / 250, 1 + number % 250))?],
        weight: 1,
        zone: "".into(),
        tls: false,
    })
}
