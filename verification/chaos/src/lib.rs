//! Five real processes under load, and fault after fault.
//!
//! Each process is a node whose loader counts its calls, and which gets keys of itself all the time
//! (`src/bin/chaos-node`). The driver, here, starts them on hosts of their own where there may be namespaces, else on
//! loopback; it does something to one of them, ends that, and waits until all are well again. What it found is printed,
//! and kept as JSON in the directory of the build.
//!
//! What is judged are counts: gets that failed at nodes that nothing was done to, loads of a key, values older than a
//! write that had reached everyone, descriptors and flights that are left. Times are reported.
#![expect(clippy::disallowed_methods, reason = "drives processes from outside, in real time")]

pub mod clock;
mod cluster;
mod fault;
mod histogram;
mod host;
mod impostor;
mod report;
mod run;
mod sample;

pub use crate::{
    cluster::{Cluster, NODES},
    fault::Fault,
    histogram::Histogram,
    report::{Figures, Finding, Report},
    run::{Plan, run},
    sample::Sample,
};
