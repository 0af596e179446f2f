//! Scripts of what discovery and peers do, and who is a member then.
//!
//! A word such as `a` in a set is a peer that is known by name at `a:1`; `a=x:1` is known by name at `x:1`;
//! `@x:1` is an address only. The node itself is `me`, at `me:1`, in its life 1,000.

mod cluster;
mod hellos;
mod leaving;
mod random;
mod ready;
mod script;
mod sets;
