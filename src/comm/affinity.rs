//! What the operating system lets this process use: its processors, and those of the machine.

use std::fs;
use std::thread::available_parallelism;

use anyhow::{Context, Result};

use super::launch::{Binding, CpuMask};
use super::{gather_texts, Comm};
use crate::metrics::host;

/// The processors that the calling thread is bound to; empty where the system doesn't say.
pub fn mask() -> CpuMask {
    // The kernel refuses a buffer smaller than its own mask: begin with 1,024 processors and double.
    let mut words = vec![0u64; 16];
    while words.len() <= 1 << 14 {
        let bytes = words.len() * size_of::<u64>();
        // SAFETY: the pointer is to `bytes` writable bytes, aligned as cpu_set_t is (an array of 64-bit words), and the
        // call writes no more than `bytes` of them; 0 names the calling thread.
        let failed = unsafe { libc::sched_getaffinity(0, bytes, words.as_mut_ptr().cast::<libc::cpu_set_t>()) } != 0;
        if !failed {
            let is_set = |cpu: &usize| words[cpu / 64] >> (cpu % 64) & 1 == 1;
            return (0..words.len() * 64).filter(is_set).collect();
        }
        words.resize(words.len() * 2, 0);
    }
    CpuMask::default()
}

/// What this process may use, as `rank`. To be called from the main thread, before other threads are bound.
pub fn here(rank: usize) -> Binding {
    let mask = mask();
    let host = host::name();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let online = online
        .and_then(|list| CpuMask::parse(&list).ok())
        .map_or(0, |cpus| cpus.count())
        .max(mask.count());
    // The standard library also knows containers' quotas.
    let quota = available_parallelism()
        .ok()
        .map(usize::from)
        .filter(|usable| *usable < mask.count());
    Binding {
        rank,
        host,
        mask,
        quota,
        online,
    }
}

/// What every rank may use, on every rank, in rank order (collective).
///
/// # Errors
/// When a rank's answer can't be read, which never happens among ranks of one version.
pub fn everybody(comm: &dyn Comm) -> Result<Vec<Binding>> {
    let own = serde_json::to_string(&here(comm.rank()))?;
    let all = gather_texts(comm, &own);
    all.iter()
        .map(|text| serde_json::from_str(text).context("the binding of a rank"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_bound_to_something() {
        let here = here(3);
        assert!(here.rank == 3 && !here.host.is_empty());
        assert!(here.mask.count() >= 1 && here.mask.count() <= here.online, "{here:?}");
        let listed = fs::read_to_string("/proc/thread-self/status").unwrap();
        let listed = listed
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .unwrap();
        assert_eq!(here.mask, CpuMask::parse(listed).unwrap());
    }
}
