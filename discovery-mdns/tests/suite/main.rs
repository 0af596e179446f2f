//! The provider on loopback, and on a network segment of its own where there can be one.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests, helpers included; those beside avahi drive processes in real time"
)]

use read_along as _;

mod avahi;
mod conforms;
mod nodes;
mod records;
mod support;
