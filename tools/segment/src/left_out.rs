//! Where there can be no segment, and how that is told.

use std::{io::Write, path::Path, process::Command, sync::OnceLock};

use crate::{Families, Segment, ip};

/// How the names of our namespaces begin.
pub(crate) const PREFIX: &str = "gcseg-";

/// Says that the test that runs on this thread is left out, and why, in the words in which the harness says it of
/// ignored tests: `tools/test` counts both. The test ends then, and the harness takes it for passed.
pub fn leave_out(why: &str) {
    let thread = std::thread::current();
    let line = format!("\ntest {} ... ignored, {why}\n", thread.name().unwrap_or("of a segment"));
    // Not `println!`, which the harness keeps to itself.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// Why there can be none; found out once.
pub(crate) fn reason() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    REASON.get_or_init(find_out).as_deref()
}

fn find_out() -> Option<String> {
    if cfg!(not(target_os = "linux")) {
        return Some("network namespaces are a thing of Linux".to_owned());
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

/// Removes what processes that were killed have left.
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
