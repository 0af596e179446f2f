//! Chaos: five real processes under load, and one fault after another.
//!
//! Each process (`src/bin/chaos-node`) is a node that makes gets of its own all the time and counts the calls of its
//! loader. The driver in this crate starts the processes on hosts of their own if the machine has network namespaces,
//! otherwise on loopback. The driver applies a fault to one process, ends the fault, and waits until all processes are
//! healthy again. The findings are printed, and saved as JSON in the directory of the build.
//!
//! Counts are judged: failed gets at nodes without a fault, loads of a key, values older than a write that had reached
//! every node, and descriptors and flights that remain. Times are reported. Two kinds of times are judged: the age of
//! what a value lacks in a group with a bound, and, with ample room for a busy machine, the time until a write settles.
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
mod settling;

pub use crate::{
    cluster::{Cluster, NODES},
    fault::Fault,
    histogram::Histogram,
    report::{Figures, Finding, Report},
    run::{Plan, run},
    sample::Sample,
    settling::{GROUPS, Lack, Settled, Settling, Stage, WriteEvent},
};
