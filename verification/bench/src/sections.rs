//! Sections: the measurements, each of which is a table or some lines of a table.

pub mod cluster;
pub mod local;
pub mod membership;
pub mod remote;
