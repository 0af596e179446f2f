//! The service of `examples/cluster`, built with the feature `kubernetes`: its pods find each other through the API
//! server, with no list of peers.
use std::process::ExitCode;

// Named for its features only.
use groupcache_discovery as _;

fn main() -> ExitCode {
    cluster_service::main()
}
