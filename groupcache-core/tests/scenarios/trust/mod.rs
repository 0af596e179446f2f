//! Trust between nodes: certificates and cluster keys, their replacement, and the refusal of all others.

mod clusters;
mod matrix;
mod mounted;
mod rotation;
mod unlisted_clients;
