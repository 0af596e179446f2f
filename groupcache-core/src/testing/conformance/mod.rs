//! The conformance suite that every provider must pass. Feature `testing`, for the tests of providers.
//!
//! A test implements [`Source`] for the source that its provider reads: how members appear there, and how the source
//! fails. [`conform`] runs the provider as a node does, without a node, and returns a [`Report`] of the scenarios. A
//! scenario that the source cannot have is left out, with a reason from the source. [`Bench`] runs a provider for tests
//! of its own.
//!
//! ```
//! use std::{sync::{Arc, Mutex}, time::Duration};
//! use groupcache_core::{
//!     BoxError, async_trait,
//!     conformance::{Cannot, Source, conform},
//!     discovery::{Me, Peer, Provider, poll},
//! };
//!
//! #[derive(Default)]
//! struct Table(Arc<Mutex<Option<Vec<Peer>>>>); // None: the table cannot be read
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
//!         Err(Cannot("a table does not detect crashes"))
//!     }
//!     async fn fail(&mut self) -> Result<(), Cannot> {
//!         Err(Cannot("a table fails in one way only, see refuse"))
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

/// Cluster of the node under test and of all members.
pub const CLUSTER: &str = "conformance";

/// Reason why a source cannot do something. The scenario that needs it is left out with this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cannot(pub &'static str);

/// The source that a provider reads, under the control of a test.
///
/// Each scenario begins with a fresh source. Methods that change the source have no default, so that each source does
/// the change or returns [`Cannot`] with a reason. Methods that describe a source have the usual answer as default.
#[async_trait]
pub trait Source: Send {
    /// Returns a provider that reads this source. Called once for each run of the provider.
    fn provider(&mut self) -> Arc<dyn Provider>;

    /// Returns the time limits of the provider.
    fn timing(&self) -> Timing {
        Timing::default()
    }

    /// Adds a member, with its addresses and its incarnation. An id that is there already is replaced by the new
    /// incarnation.
    async fn join(&mut self, member: &Me) -> Result<(), Cannot>;

    /// Removes a member that leaves in order.
    async fn leave(&mut self, member: &Me) -> Result<(), Cannot>;

    /// Lets a member crash, so that nothing announces its end.
    async fn crash(&mut self, member: &Me) -> Result<(), Cannot>;

    /// Stops the source, so that it does not answer.
    async fn fail(&mut self) -> Result<(), Cannot>;

    /// Lets the source answer and refuse the node, or fail in any other way than by silence.
    async fn refuse(&mut self) -> Result<(), Cannot>;

    /// Repairs the source after [`fail`](Self::fail) or [`refuse`](Self::refuse), with exactly these members.
    async fn mend(&mut self, members: &[Me]);

    /// Adds unreadable data to the source, beside its members.
    async fn garbage(&mut self) -> Result<(), Cannot>;

    /// Adds these records as a liar would that may write to the source. Nobody answers for them. Default: [`Cannot`],
    /// for a source that only its operator changes.
    async fn lie(&mut self, lies: &[Me]) -> Result<(), Cannot> {
        let _ = lies;
        Err(Cannot("only the operator changes the source"))
    }

    /// Returns `Ok` if the provider can tell a source without members from one that does not answer. Default: `Ok`.
    fn can_be_empty(&self) -> Result<(), Cannot> {
        Ok(())
    }

    /// Returns `Ok` if the source can tell one incarnation of an id from the next. Default: `Ok`.
    fn knows_incarnations(&self) -> Result<(), Cannot> {
        Ok(())
    }

    /// Returns `Ok` if the source knows which addresses belong to one member. Default: `Ok`.
    fn knows_dual_stack(&self) -> Result<(), Cannot> {
        Ok(())
    }

    /// Returns `Ok` if the provider can read its source again when the node doubts a set. Default: `Ok`.
    fn can_be_asked(&self) -> Result<(), Cannot> {
        Ok(())
    }
}

/// Time limits of a provider, and the length of an outage. The defaults suit a local source that pushes changes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Maximum time from the start to the first complete set. Default: 2 s.
    pub first_set: Duration,
    /// Maximum time from a join, a leave or a new incarnation to the set that shows the change. Default: 1 s.
    pub change: Duration,
    /// Maximum time from a crash to the set without the member. Default: 10 s.
    pub crash: Duration,
    /// Length of an outage, which must be longer than any expiry of the provider. Default: 3 s.
    pub outage: Duration,
    /// Maximum time from the end of an outage to a correct set. Default: 5 s.
    pub recovery: Duration,
    /// Maximum time from the signal `Leaving` to the end of the provider. Default: 900 ms, because a node drops the
    /// provider after 1 s.
    pub leaving: Duration,
    /// Maximum time from the end of the provider to the end of its last task. Default: 1 s.
    pub tasks: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let s = Duration::from_secs;
        let leaving = Duration::from_millis(900);
        Self { first_set: s(2), change: s(1), crash: s(10), outage: s(3), recovery: s(5), leaving, tasks: s(1) }
    }
}

/// The outcomes of the scenarios. The text of a report has one line for each of them.
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
    /// Returns the report itself if no scenario has failed.
    ///
    /// # Errors
    /// [`Failures`] if a scenario has failed. The text is that of the report.
    pub fn passed(self) -> Result<Self, Failures> {
        let has_failed = self.outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
        if has_failed { Err(Failures(self)) } else { Ok(self) }
    }

    /// Returns the names of the scenarios that were left out, each with the reason.
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

/// Writes the same text as `Display`, because `unwrap` prints this.
impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failures {}

/// Returns a member in its first incarnation, at an address of its own. An error is impossible, because name and port
/// are valid.
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
