//! Read-along: checks the log of every test. A key, a value or a secret at INFO or above ends the process with that
//! line.
//!
//! A test program takes part through one line, `use read_along as _;`, so that no single test can forget to.
//!
//! Keys and values are learnt from the log itself, because at TRACE the core logs each key and value of a load or a
//! write. Tests pass the passwords, private keys and similar secrets that they make to [`is_secret`].

use std::io::Write;

mod layer;
mod line;
mod secrets;

pub use layer::reader;
pub use line::says;
pub use secrets::is_secret;

/// Value of `RUST_LOG` for a separate process, with the TRACE events from which [`says`] learns.
pub const RUST_LOG: &str = "info,groupcache_core::engine=trace";

/// Ends this process. A panic would be caught together with the panics of loaders and tasks. Output of `eprintln` would
/// be lost, because the test harness keeps it until the end of the test.
fn abort(secret: &str, how: std::fmt::Arguments<'_>) -> ! {
    let _ = writeln!(std::io::stderr(), "{secret:?} is a key, a value or a secret {how}");
    std::process::abort();
}

/// Module of the core that logs keys and values, followed by the names of the fields.
const TELLER: &str = "groupcache_core::engine";
const KEY: &str = "key";
const VALUE: &str = "value";
