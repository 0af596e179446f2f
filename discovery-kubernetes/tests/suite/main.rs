//! Tests of the provider against a fake API server and, where one is installed, a real API server.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests, helpers included")]

use read_along as _;

mod access;
mod conforms;
mod doubt;
mod figures;
mod load;
mod nodes;
mod questions;
mod real;
mod restart;
mod scenarios;
mod service;
mod support;
mod trouble;
