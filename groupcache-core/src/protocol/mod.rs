//! Protocol: the messages between nodes, and their encoding.
//!
//! [`message`] has the messages as the rest of the crate uses them, [`wire`] encodes and decodes them, and [`codec`]
//! connects [`wire`] to the generated service in [`proto`]. Nothing here sends or receives: that is the work of `peer`.

pub(crate) mod chain;
pub(crate) mod codec;
pub(crate) mod message;
pub(crate) mod proto;
pub(crate) mod wire;
