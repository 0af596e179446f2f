//! What the measurements share: the contestants, the load, and how a figure of several rounds is told.
//!
//! Every contestant is asked by the same callers, for the same keys, in processes of its own that are pinned to a
//! core each; what differs is only what stands behind [`Contestant`](contestants::Contestant).

pub mod churn;
pub mod contestants;
pub mod figures;
pub mod load;
pub mod machine;
pub mod processes;
pub mod report;
pub mod sections;

/// Whatever went wrong: a measurement that fails ends the program, and says why.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// See [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
