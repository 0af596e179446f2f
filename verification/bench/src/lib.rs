//! Bench: the parts that all measurements share, which are the targets, the load, and the figures of several rounds.
//!
//! All targets get the same keys from the same callers, in processes of their own that are pinned to a core each. Only
//! the implementation of [`Target`](targets::Target) differs.

pub mod churn;
pub mod figures;
pub mod load;
pub mod machine;
pub mod processes;
pub mod report;
pub mod sections;
pub mod targets;

/// Any failure of a measurement, which ends the program with its text.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Result with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
