//! Every fault for a moment.
use std::{path::Path, time::Duration};

use chaos::{Fault, Plan, run};
use read_along as _;

#[test]
fn no_get_fails_where_nothing_was_done_and_nothing_is_left() {
    let plan = Plan {
        faults: Fault::ALL.to_vec(),
        rate: 300,
        before: Duration::from_millis(500),
        during: Duration::from_secs(2),
        after: Duration::from_millis(500),
    };
    let program = Path::new(env!("CARGO_BIN_EXE_chaos-node"));
    let report = run(program, Path::new(env!("CARGO_TARGET_TMPDIR")), &plan, |figures| println!("{figures}"));
    let findings = report.findings();
    assert!(findings.is_empty(), "{findings:#?}");
}
