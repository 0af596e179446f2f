//! What the two sides of a connection learn of each other before a word is said: who is there, or why it came to nothing.

mod caller;
#[cfg(feature = "tls")]
mod explain;
mod trouble;

#[cfg(feature = "tls")]
pub(crate) use self::explain::explain;
pub(crate) use self::{caller::Caller, trouble::Trouble};
