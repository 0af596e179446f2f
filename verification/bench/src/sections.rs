//! The measurements, each a table or some lines of it.

pub mod cluster;
pub mod local;
pub mod membership;
pub mod remote;
