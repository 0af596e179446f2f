//! Writes: the parts that do not depend on the type of values, which are the outcome of a write, delete holds, and the
//! record of missed writes.
//!
//! Writes are carried out in `engine/write.rs`, and missed writes are delivered by `node/replay.rs`.

pub(crate) mod delete_hold;
pub(crate) mod missed;
pub(crate) mod outcome;
