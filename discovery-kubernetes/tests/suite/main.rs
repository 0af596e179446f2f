//! The provider against a fake API server, and against a real one where there is one.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests, helpers included")]

use read_along as _;

mod access;
mod conforms;
mod doubt;
mod figures;
mod load;
mod nodes;
mod real;
mod scenarios;
mod service;
mod support;
mod trouble;
