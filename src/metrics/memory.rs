//! Memory: what this process holds, and what the machine or a limit leaves it.

use std::fs;
use std::path::Path;

/// The most memory this process has ever held (VmHWM), in bytes; 0 where the system does not tell.
pub fn peak() -> u64 {
    own("VmHWM:")
}

/// The memory this process holds now (VmRSS), in bytes; 0 where the system does not tell.
pub fn now() -> u64 {
    own("VmRSS:")
}

fn own(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes < 10 * unit => format!("{:.1} {name}", bytes as f64 / unit as f64),
        Some((unit, name)) => format!("{:.0} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// A machine's memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// All there is.
    pub total: u64,
    /// What new work could take without swapping.
    pub available: u64,
    /// The tightest limit of the containers or Slurm jobs around this process, if below the total.
    pub limit: Option<u64>,
    /// What a limit of this process's addresses (`ulimit -v`) leaves it.
    pub addresses: Option<u64>,
}

impl Machine {
    /// What each of `ranks` equal ranks of this machine may still take, when this one holds `own` bytes: a limit holds
    /// for all of them together.
    pub fn room(&self, own: u64, ranks: u64) -> u64 {
        let below_limit = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(ranks * own));
        (self.available.min(below_limit) / ranks).min(self.addresses.unwrap_or(u64::MAX))
    }
}

/// The memory of this machine, where the system tells.
pub fn machine() -> Option<Machine> {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let (total, available) = (meminfo(&info, "MemTotal")?, meminfo(&info, "MemAvailable")?);
    let limit = memory_limit(Path::new("/sys/fs/cgroup"), &groups).filter(|limit| *limit < total);
    Some(Machine {
        total,
        available,
        limit,
        addresses: addresses(),
    })
}

/// What `ulimit -v` leaves of addresses, where it is set.
fn addresses() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: it writes to the struct only.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    let set = asked == 0 && limit.rlim_cur != libc::RLIM_INFINITY;
    set.then(|| limit.rlim_cur.saturating_sub(own("VmSize:")))
}

/// A value of /proc/meminfo in bytes.
fn meminfo(info: &str, name: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The smallest memory limit in bytes from the process's control group up to the root, of version 2 or 1.
fn memory_limit(root: &Path, groups: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:path; version 2 has no controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            named if named.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = root.join(path.trim_start_matches('/'));
        for folder in group.ancestors().take_while(|folder| folder.starts_with(&root)) {
            let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
            // "max" in version 2, a number near 2^63 in version 1, mean no limit.
            limits.extend(text.trim().parse::<u64>().ok().filter(|limit| *limit < 1 << 60));
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_machine_hold_something() {
        let held = now();
        assert!(held > 0 && peak() >= held);
        let machine = machine().unwrap();
        assert!(machine.available > 0 && machine.available < machine.total);
        let info = "MemTotal:       32 kB\nMemAvailable:   16 kB\n";
        assert_eq!(
            (meminfo(info, "MemTotal"), meminfo(info, "MemAvailable")),
            (Some(32768), Some(16384))
        );
        assert_eq!(meminfo(info, "MemFree"), None);
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(
            [size(5), size(2048), size(15 << 20), size(3 << 29)],
            ["5 bytes", "2.0 KiB", "15 MiB", "1.5 GiB"]
        );
    }

    #[test]
    fn a_limit_is_shared_by_all_ranks() {
        let machine = Machine {
            total: 100,
            available: 80,
            limit: None,
            addresses: None,
        };
        assert_eq!(machine.room(10, 4), 20);
        assert_eq!(
            Machine {
                limit: Some(60),
                ..machine
            }
            .room(10, 4),
            5
        );
        assert_eq!(
            Machine {
                limit: Some(30),
                ..machine
            }
            .room(10, 4),
            0
        );
        assert_eq!(
            Machine {
                limit: Some(1000),
                ..machine
            }
            .room(10, 4),
            20
        );
        // Addresses are each process's own.
        assert_eq!(
            Machine {
                addresses: Some(15),
                ..machine
            }
            .room(10, 4),
            15
        );
    }

    #[test]
    fn the_tightest_memory_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |folder: &str, file: &str, text: &str| {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
        };
        put("slurm/job_1", "memory.max", "4096\n");
        put("slurm/job_1/step_0", "memory.max", "max\n");
        put("memory/box", "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory_limit(root.path(), "0::/slurm/job_1/step_0\n"), Some(4096));
        assert_eq!(memory_limit(root.path(), "5:cpu,memory:/box\n4:pids:/box\n"), None);
        put("memory/box", "memory.limit_in_bytes", "1024\n");
        assert_eq!(memory_limit(root.path(), "5:cpu,memory:/box\n0::/\n"), Some(1024));
        assert_eq!(memory_limit(root.path(), "nonsense"), None);
    }
}
