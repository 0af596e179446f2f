//! Membership: from the peer sets of providers to the view that requests use.
//!
//! - [`discovery`] re-exports the public names of this module.
//! - [`provider`] is the interface between a node and its provider. [`poll`], [`stream`] and [`merge`] are providers
//!   made of a function, a stream and two providers.
//! - [`supervise`] runs a provider and restarts it after failures.
//! - [`stabilizer`] decides from peer sets and answers about the members.
//! - [`view`] is the immutable list of members with their ring.
//!
//! The task that connects them is in `node::membership`.

pub mod discovery;
pub(crate) mod merge;
pub(crate) mod poll;
pub(crate) mod provider;
pub(crate) mod stabilizer;
pub(crate) mod stream;
pub(crate) mod supervise;
pub(crate) mod view;
