//! Host: the location of a node, which is a host of its own or a port of loopback.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use process::{Pid, local};
use segment::{Host, Segment};

/// Location of one node.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A host of a segment.
    Host(Arc<Segment>, usize),
    /// A port of loopback, on machines without network namespaces.
    Port(u16),
}

/// Port of every node that has a host of its own.
const PORT: u16 = 7946;

impl Place {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Host(segment, n) => (segment.hosts()[*n].address(), PORT).into(),
            Self::Port(port) => local(*port),
        }
    }

    pub(crate) fn command(&self, program: &Path) -> Command {
        self.host().map_or_else(|| Command::new(program), |host| host.command(program))
    }

    pub(crate) fn listen(&self) -> std::io::Result<TcpListener> {
        let bind = || TcpListener::bind(self.address());
        self.host().map_or_else(bind, |host| host.enter(bind))
    }

    /// Returns the host, if the node has one of its own.
    pub(crate) fn host(&self) -> Option<&Host> {
        match self {
            Self::Host(segment, n) => segment.hosts().get(*n),
            Self::Port(_) => None,
        }
    }
}

/// Returns the resident memory of a process in KiB, or 0 if the process has ended.
pub(crate) fn resident_kib(pid: Pid) -> u64 {
    let status = fs::read_to_string(of(pid, "status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Returns the number of open descriptors of a process, or 0 if the process has ended.
pub(crate) fn descriptors(pid: Pid) -> usize {
    fs::read_dir(of(pid, "fd")).map_or(0, Iterator::count)
}

fn of(pid: Pid, what: &str) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join(what)
}

/// A control group with a limit of memory. On drop, its processes move to the root group.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    group: PathBuf,
    outside: PathBuf,
}

impl MemoryLimit {
    /// Creates a group with a limit of `bytes`.
    ///
    /// # Errors
    /// The reason why this machine cannot have the group.
    pub(crate) fn new(bytes: u64) -> Result<Self, String> {
        // Version 2 of control groups if the machine has it, otherwise version 1.
        let (root, limit) = match fs::exists("/sys/fs/cgroup/cgroup.controllers") {
            Ok(true) => (PathBuf::from("/sys/fs/cgroup"), "memory.max"),
            _ => (PathBuf::from("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        };
        let group = root.join(format!("groupcache-chaos-{}", std::process::id()));
        let made = fs::create_dir_all(&group).and_then(|()| fs::write(group.join(limit), bytes.to_string()));
        let made = made.map_err(|e| format!("needs a control group for memory ({}: {e})", group.display()));
        let made = made.map(|()| Self { group: group.clone(), outside: root });
        made.inspect_err(|_| drop(fs::remove_dir(&group)))
    }

    /// Moves a process into the group.
    pub(crate) fn holds(&self, pid: Pid) {
        fs::write(self.group.join("cgroup.procs"), pid.as_raw_nonzero().to_string())
            .expect("a process enters the group");
    }

    /// Returns the peak memory in bytes, and how often the kernel had to take memory back.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let number = |name: &str| fs::read_to_string(self.group.join(name)).ok()?.trim().parse().ok();
        let most = number("memory.max_usage_in_bytes").or_else(|| number("memory.peak"));
        let events = fs::read_to_string(self.group.join("memory.events")).unwrap_or_default();
        let events = events.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok());
        (most.unwrap_or(0), number("memory.failcnt").or(events).unwrap_or(0))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let inside = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            let _ = fs::write(self.outside.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}
