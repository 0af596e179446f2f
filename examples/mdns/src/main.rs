//! Program: the service of `examples/cluster` with the feature `mdns`. The processes find each other on the network
//! segment, without a list of peers and without a server.
use std::process::ExitCode;

// The crate is named only to enable its features.
use groupcache_discovery as _;

fn main() -> ExitCode {
    cluster_service::main()
}
