//! Chaos in short: every fault for two seconds.
use std::{path::Path, time::Duration};

use chaos::{Fault, Plan, run};
use read_along as _;

/// Runs every fault that this machine can have, and checks that no promise is broken and that no flight or descriptor
/// is left.
#[test]
fn each_fault_ends_without_a_finding() {
    let plan = Plan {
        faults: Fault::ALL.to_vec(),
        rate: 300,
        before: Duration::from_millis(500),
        during: Duration::from_secs(2),
        after: Duration::from_millis(500),
        bound: Duration::from_secs(3),
    };
    let program = Path::new(env!("CARGO_BIN_EXE_chaos-node"));
    let report = run(program, Path::new(env!("CARGO_TARGET_TMPDIR")), &plan, |figures| println!("{figures}"));
    let findings = report.findings();
    assert!(findings.is_empty(), "{findings:#?}");
}
