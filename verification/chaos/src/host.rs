//! Where a node runs: a host of its own, or loopback.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use process::{Pid, local};
use segment::{Host, Segment};

/// One place for one node.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A host of a segment.
    Host(Arc<Segment>, usize),
    /// A port of loopback, where there can be no segment.
    Port(u16),
}

/// Of every node on a host of its own.
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

    /// The host, if it has one of its own.
    pub(crate) fn host(&self) -> Option<&Host> {
        match self {
            Self::Host(segment, n) => segment.hosts().get(*n),
            Self::Port(_) => None,
        }
    }
}

/// What a process has of the machine; zeros when it has ended.
pub(crate) fn resident_kib(pid: Pid) -> u64 {
    let status = fs::read_to_string(of(pid, "status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// How many descriptors it has open.
pub(crate) fn descriptors(pid: Pid) -> usize {
    fs::read_dir(of(pid, "fd")).map_or(0, Iterator::count)
}

fn of(pid: Pid, what: &str) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join(what)
}

/// A control group with a limit of memory; the processes in it go back to where ours is when it is dropped.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    group: PathBuf,
    outside: PathBuf,
}

impl MemoryLimit {
    /// Makes one.
    ///
    /// # Errors
    /// Why there can be none.
    pub(crate) fn new(bytes: u64) -> Result<Self, String> {
        // The second version of control groups, or the first.
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

    /// Puts a process into it.
    pub(crate) fn holds(&self, pid: Pid) {
        fs::write(self.group.join("cgroup.procs"), pid.as_raw_nonzero().to_string())
            .expect("a process enters the group");
    }

    /// The most that it had at once, and how often the kernel had to take memory back.
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
