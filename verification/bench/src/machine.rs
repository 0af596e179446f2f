//! Machine: the processor time of processes, and a description of the machine.

use std::{fs, ops::Sub};

use crate::Result;

/// Processor time and wake-ups of a process since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Processor time in nanoseconds.
    pub nanoseconds: u64,
    /// Number of times that a thread slept until it was woken.
    pub wakes: u64,
}

impl Sub for Used {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            nanoseconds: self.nanoseconds.saturating_sub(earlier.nanoseconds),
            wakes: self.wakes.saturating_sub(earlier.wakes),
        }
    }
}

impl Used {
    /// Returns the sum of all threads of a process.
    ///
    /// # Errors
    /// An error if the process has ended, or the system is not Linux.
    pub fn of(process: u32) -> Result<Self> {
        let mut used = Self::default();
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let task = task?.path();
            let on_processor = fs::read_to_string(task.join("schedstat"))?;
            used.nanoseconds += on_processor.split(' ').next().ok_or("schedstat is empty")?.parse::<u64>()?;
            let status = fs::read_to_string(task.join("status"))?;
            let wakes = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            used.wakes += wakes.ok_or("status has no voluntary_ctxt_switches")?.trim().parse::<u64>()?;
        }
        Ok(used)
    }

    /// Returns the sum of all threads of this process.
    ///
    /// # Errors
    /// An error if the system is not Linux.
    pub fn of_this_process() -> Result<Self> {
        Self::of(std::process::id())
    }
}

/// Describes the machine and the programs in a line.
pub fn described() -> String {
    let first_line = |program: &str, arguments: &[&str]| {
        let out = std::process::Command::new(program).args(arguments).output().ok();
        out.map(|out| String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or_default().trim().to_owned())
            .filter(|line| !line.is_empty())
            .unwrap_or_else(|| format!("no {program}"))
    };
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = processor_count();
    [
        format!("{cores} cores of {}", processor.trim_start_matches(['\t', ':', ' '])),
        format!("Linux {}", first_line("uname", &["-r"])),
        first_line("rustc", &["--version"]),
        first_line("memcached", &["--version"]),
        first_line("redis-server", &["--version"]).split(" sha").next().unwrap_or_default().to_owned(),
    ]
    .join("; ")
}

/// Returns the number of processors.
pub fn processor_count() -> usize {
    #[expect(clippy::disallowed_methods, reason = "the figures are of this machine")]
    std::thread::available_parallelism().map_or(1, usize::from)
}
