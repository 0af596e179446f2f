//! Memory limit of the container in which this process runs, from which limits of the node have their defaults.
//!
//! The kernel ends a process that exceeds the limit. In a container both versions of control groups show the limit in a
//! file of fixed name. Version 2 shows a service of systemd its limit in a folder of its own.

use std::{fs::read_to_string, path::Path, sync::OnceLock};

/// Folder where Linux shows control groups.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// File with the control groups of this process.
const OWN: &str = "/proc/self/cgroup";

/// Returns one of `parts` of the memory limit, and at most `max`. Without a limit, returns `max`.
pub(crate) fn part(parts: u64, max: usize) -> usize {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    let limit = LIMIT.get_or_init(|| read(Path::new(CONTROL_GROUPS), &read_to_string(OWN).unwrap_or_default()));
    part_of(*limit, parts, max)
}

fn part_of(limit: Option<u64>, parts: u64, max: usize) -> usize {
    limit.map_or(max, |limit| usize::try_from(limit / parts).map_or(max, |part| part.min(max)))
}

/// Returns the lowest limit below `root`, in bytes. `own` are the lines of [`OWN`]. A process of a machine without a
/// limit reads `max`, or a number near 2^63.
fn read(root: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    let ancestors = Path::new(path).ancestors().map(|folder| root.join(folder).join("memory.max"));
    let files = ancestors.chain([root.join("memory/memory.limit_in_bytes")]);
    files.filter_map(|file| read_to_string(file).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;

    #[test]
    fn lowest_limit_of_all_ancestors_counts() {
        let root = std::env::temp_dir().join(format!("groupcache-memory-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        let own = "1:cpu:/elsewhere\n0::/system.slice/service\n";
        assert_eq!(read(&root, own), None);
        write("system.slice/service/memory.max", "max\n");
        assert_eq!(read(&root, own), None, "no number is no limit");
        write("system.slice/memory.max", "1000\n");
        write("memory.max", "3000\n");
        assert_eq!(read(&root, own), Some(1000));
        assert_eq!(read(&root, ""), Some(3000), "a container has its limit at the root");
        write("memory/memory.limit_in_bytes", "500\n");
        assert_eq!(read(&root, own), Some(500), "version 1");
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn part_of_a_large_limit_is_the_maximum() {
        assert_eq!(part_of(None, 4, 100), 100);
        assert_eq!(part_of(Some(1 << 62), 4, 100), 100);
        assert_eq!(part_of(Some(80), 4, 100), 20);
    }
}
