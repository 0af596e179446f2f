//! Tests of the provider with a real nats-server: that of the system, or the one that `NATS_SERVER` names.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests, helpers included")]

use read_along as _;

mod cluster;
mod conforms;
mod crowd;
#[cfg(any(feature = "kv", feature = "micro"))]
mod options;
mod support;
mod trouble;
