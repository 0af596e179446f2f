//! What a process has used, and what machine this is.

use std::{fs, ops::Sub};

use crate::Result;

/// What a process used since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// On a processor.
    pub nanoseconds: u64,
    /// How often one of its threads slept until it was woken.
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
    /// Of all threads of a process.
    ///
    /// # Errors
    /// When it is gone, or this is not Linux.
    pub fn of(process: u32) -> Result<Self> {
        let mut used = Self::default();
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let task = task?.path();
            let on_processor = fs::read_to_string(task.join("schedstat"))?;
            used.nanoseconds += on_processor.split(' ').next().ok_or("schedstat is empty")?.parse::<u64>()?;
            let status = fs::read_to_string(task.join("status"))?;
            let wakes = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            used.wakes += wakes.ok_or("status has no switches")?.trim().parse::<u64>()?;
        }
        Ok(used)
    }

    /// See [`of`](Self::of).
    ///
    /// # Errors
    /// When this is not Linux.
    pub fn of_this_process() -> Result<Self> {
        Self::of(std::process::id())
    }
}

/// One line about the machine and the programs.
pub fn described() -> String {
    let said = |program: &str, arguments: &[&str]| {
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
        format!("Linux {}", said("uname", &["-r"])),
        said("rustc", &["--version"]),
        said("memcached", &["--version"]),
        said("redis-server", &["--version"]).split(" sha").next().unwrap_or_default().to_owned(),
    ]
    .join("; ")
}

/// How many processors there are.
pub fn processor_count() -> usize {
    #[expect(clippy::disallowed_methods, reason = "the figures are of this machine")]
    std::thread::available_parallelism().map_or(1, usize::from)
}
