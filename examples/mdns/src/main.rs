//! The service of `examples/cluster`, built with the feature `mdns`: its processes find each other on the network segment,
//! with no list of peers and no server.
use std::process::ExitCode;

// Named for its features only.
use groupcache_discovery as _;

fn main() -> ExitCode {
    cluster_service::main()
}
