//! The service as a whole, with a recorded upstream that works or fails.
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
