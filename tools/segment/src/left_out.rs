//! Left out: decides whether a machine can have segments, and reports a test that was left out.

use std::{io::Write, path::Path, process::Command, sync::OnceLock};

use crate::{Families, Segment, ip};

/// Prefix of the names of namespaces that this crate creates.
pub(crate) const PREFIX: &str = "gcseg-";

/// Prints that the test on this thread is left out, with the reason, and appends the line to the file of the variable
/// `LEFT_OUT`, because runners hide what a test prints that passes.
///
/// `tools/test` prints and counts the lines of the file. The caller then returns from the test, which the harness counts
/// as passed.
pub fn leave_out(why: &str) {
    let thread = std::thread::current();
    let line = format!("left out: {}: {why}\n", thread.name().unwrap_or("a test"));
    // The harness captures the output of `println!`.
    let _ = std::io::stdout().lock().write_all(format!("\n{line}").as_bytes());
    if let Some(file) = std::env::var_os("LEFT_OUT") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Returns the reason why this machine can have no segment; checked once per process.
pub(crate) fn reason() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    REASON.get_or_init(find_out).as_deref()
}

fn find_out() -> Option<String> {
    if cfg!(not(target_os = "linux")) {
        return Some("needs Linux, for network namespaces".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, for network namespaces".to_owned());
    }
    if ip(&["-Version"]).is_err() {
        return Some("needs iproute2: make deps".to_owned());
    }
    remove_leftovers();
    Segment::make(1, Families::Both).err().map(|why| format!("needs network namespaces and a bridge: {why}"))
}

/// Removes namespaces of processes that were killed.
fn remove_leftovers() {
    let Ok(list) = Command::new("ip").args(["netns", "list"]).output() else { return };
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}
