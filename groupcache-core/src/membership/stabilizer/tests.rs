//! Scripts of the acts of discovery and peers, with the expected members and actions.
//!
//! In a set, the word `a` is a peer with the id `a` at `a:1`, `a=x:1` a peer with the id `a` at `x:1`, and `@x:1` an
//! address without an id. The local node is `me`, at `me:1`, with the incarnation 1,000.

mod cluster;
mod hellos;
mod inbound;
mod leaving;
mod names;
mod random;
mod ready;
mod script;
mod sets;
mod trust;
