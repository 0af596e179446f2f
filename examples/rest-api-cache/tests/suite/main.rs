//! The service as a whole, against a recorded upstream: what it answers when all is well, and when it is not.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests, helpers included, that drive processes from outside in real time"
)]

use read_along as _;

mod cached;
mod cases;
mod operator;
mod passed_on;
mod support;
