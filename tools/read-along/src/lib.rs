//! Reads along in the log of every test: a key, a value or a secret at INFO or above ends the process with that line.
//!
//! A test program takes part by naming it, once: `use read_along as _;`. No test can forget to.
//!
//! What must not be seen is learnt from the log itself: at TRACE the core tells each key and value that passes
//! through a load or a write. Passwords, private keys and the like are told by the tests that make them.

use std::io::Write;

mod layer;
mod line;
mod secrets;

pub use layer::reader;
pub use line::says;
pub use secrets::is_secret;

/// What a process of its own is given as `RUST_LOG`, so that [`says`] has what to learn from.
pub const RUST_LOG: &str = "info,groupcache_core::group=trace";

/// Ends this process. A panic would be caught with those of loaders and tasks, and what a test prints with `eprintln`
/// is kept until it has ended, which it does not.
fn abort(secret: &str, how: std::fmt::Arguments<'_>) -> ! {
    let _ = writeln!(std::io::stderr(), "{secret:?} is a key, a value or a secret, {how}");
    std::process::abort();
}

/// The module that tells keys and values, and the names of the fields that it tells them in.
const TELLER: &str = "groupcache_core::group";
const KEY: &str = "key";
const VALUE: &str = "value";
