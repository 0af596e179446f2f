//! Program for one process of the service. The program `launch` starts several.
use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_service::main()
}
