//! One process of the service; `launch` starts several.
use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_service::main()
}
