//! Writes: their outcome, delete holds, and the writes that absent peers have missed.

pub(crate) mod delete_hold;
pub(crate) mod missed;
pub(crate) mod outcome;
