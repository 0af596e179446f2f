//! The service of `examples/cluster`, built with the feature `nats`: its processes find each other over a NATS server,
//! with no list of peers.
use std::process::ExitCode;

// Named for its features only.
use groupcache_discovery as _;

fn main() -> ExitCode {
    cluster_service::main()
}
