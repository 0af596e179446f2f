//! Program: the service of `examples/cluster` with the feature `nats`. The processes find each other over a NATS
//! server, without a list of peers.
use std::process::ExitCode;

// The crate is named only to enable its features.
use groupcache_discovery as _;

fn main() -> ExitCode {
    cluster_service::main()
}
