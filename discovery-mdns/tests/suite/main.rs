//! Tests of the provider on loopback and, where the machine allows it, on a network segment of their own.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests and their helpers may panic, and the tests with avahi drive processes in real time"
)]

use read_along as _;

mod avahi;
mod conforms;
mod nodes;
mod records;
mod support;
