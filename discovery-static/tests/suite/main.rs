//! Lists, files and names, with real nodes and with the conformance suite of providers.
#![expect(clippy::unwrap_used, reason = "tests, helpers included")]

use read_along as _;

mod conforms;
#[cfg(feature = "dns")]
mod dns;
#[cfg(feature = "file")]
mod file;
mod nodes;
