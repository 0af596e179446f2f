//! Writes: the logs that carry them, the company that must hear of them, and what a caller learns of one.
//!
//! Each node numbers its writes in a log ([`log`], [`logs`], [`index`]) and sends them to every node that it knows. A node shows its
//! position in each log with its pings and pongs, and asks any peer for the entries that it lacks. The writer learns
//! from the positions which nodes have applied a write ([`peers`], [`settling`]), and each node until which time it has
//! applied everything ([`horizon`]). [`shared`] holds this
//! state. [`crate::engine::write`] makes a write, and
//! `node/pull.rs` asks for entries.

pub(crate) mod delete_hold;
pub(crate) mod horizon;
pub(crate) mod index;
pub(crate) mod knowledge;
pub(crate) mod log;
pub(crate) mod logs;
mod names;
pub(crate) mod outcome;
pub(crate) mod peers;
pub(crate) mod pulls;
pub(crate) mod settling;
pub(crate) mod shared;
mod state;
