//! Membership: what providers say, what is believed of it, and the view that readers use.

pub mod discovery;
pub(crate) mod merge;
pub(crate) mod poll;
pub(crate) mod provider;
pub(crate) mod stabilizer;
pub(crate) mod stream;
pub(crate) mod supervise;
pub(crate) mod view;
