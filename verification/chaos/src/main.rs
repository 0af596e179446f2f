//! Entry point of `make chaos`: runs all faults, or the ones that `FAULTS` names.

use std::{env, error::Error, path::Path, process::ExitCode, time::Duration};

use chaos::{Fault, Plan, run};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let names = env::var("FAULTS").unwrap_or_default();
    let named =
        |name| Fault::named(name).ok_or_else(|| format!("unknown fault {name}: use the names in chaos::Fault::name"));
    let mut faults =
        names.split([',', ' ']).filter(|name| !name.is_empty()).map(named).collect::<Result<Vec<_>, _>>()?;
    if faults.is_empty() {
        faults = Fault::ALL.to_vec();
    }
    let number = |name: &str, default: u64| env::var(name).map_or(Ok(default), |text| text.parse());
    let seconds = |name: &str, default: u64| number(name, default).map(Duration::from_secs);
    let plan = Plan {
        faults,
        rate: number("RATE", 2000)?,
        before: seconds("BEFORE", 5)?,
        during: seconds("DURING", 30)?,
        after: seconds("AFTER", 5)?,
        bound: seconds("BOUND", 10)?,
    };
    let program = env::current_exe()?.with_file_name("chaos-node");
    let target = program
        .ancestors()
        .nth(2)
        .ok_or("the program is not in the directory of a build: start it with `make chaos`")?;
    let report = run(&program, Path::new(&env::temp_dir()), &plan, |figures| println!("{figures}"));
    let file = target.join("chaos.json");
    report.save(&file)?;
    println!("{}", file.display());
    let findings = report.findings();
    findings.iter().for_each(|finding| eprintln!("finding: {finding}"));
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
