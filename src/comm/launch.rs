//! Launch sanity: did the launcher start one job of N ranks, or N jobs of one rank; and may each rank use its threads?
//!
//! Everything here is decided from numbers and environment variables, so that it is tested without a launcher.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// This process's environment variables, those that are UTF-8.
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Who started this process, as far as the environment tells, and how many processes it says it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's mpirun.
    OpenMpi(usize),
    /// A launcher that speaks PMI: MPICH's or Intel's mpirun.
    Pmi(usize),
    /// A step of Slurm, by srun.
    Srun(usize),
    /// A Slurm job's own script or shell, where nothing was launched; the job has room for so many tasks.
    SlurmScript(usize),
    /// Nobody: a plain start.
    Nobody,
}

impl Launcher {
    /// Judges by the environment. mpirun's variables go first: in a Slurm job it starts its own daemons as a step, whose
    /// variables then count nodes, not ranks.
    pub fn of(environment: &Environment) -> Launcher {
        let number = |name: &str| {
            environment
                .get(name)
                .and_then(|value| value.trim().parse::<usize>().ok())
        };
        let in_step = environment.contains_key("SLURM_STEP_ID");
        let step_tasks = number("SLURM_STEP_NUM_TASKS");
        if let Some(size) = number("OMPI_COMM_WORLD_SIZE") {
            return Launcher::OpenMpi(size);
        }
        if let Some(size) = number("PMI_SIZE") {
            // srun --mpi=pmi2 sets it too.
            return if in_step && step_tasks == Some(size) {
                Launcher::Srun(size)
            } else {
                Launcher::Pmi(size)
            };
        }
        let tasks = number("SLURM_NTASKS").or(number("SLURM_NPROCS"));
        match (in_step, step_tasks, tasks) {
            (true, Some(size), _) | (true, None, Some(size)) => Launcher::Srun(size),
            (false, _, Some(size)) => Launcher::SlurmScript(size),
            _ => Launcher::Nobody,
        }
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Launcher::OpenMpi(size) => write!(f, "Open MPI's mpirun, {size} processes"),
            Launcher::Pmi(size) => write!(f, "a PMI launcher (mpirun of MPICH or Intel MPI), {size} processes"),
            Launcher::Srun(size) => write!(f, "srun, {size} tasks"),
            Launcher::SlurmScript(size) => write!(f, "a plain start inside a Slurm job that has room for {size} tasks"),
            Launcher::Nobody => write!(f, "a plain start"),
        }
    }
}

/// Whether this process is the launcher's first one (or the only one): it speaks for all before MPI knows ranks.
pub fn speaks(environment: &Environment) -> bool {
    launched_rank(environment).is_none_or(|rank| rank == 0)
}

/// The rank that the launcher gave this process.
fn launched_rank(environment: &Environment) -> Option<usize> {
    let names = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];
    names
        .iter()
        .find_map(|name| environment.get(*name)?.trim().parse().ok())
}

/// Holds what the launcher says against what MPI says: `rank` of `size`. Returns warnings.
///
/// # Errors
/// N singletons instead of N ranks: the launcher started several processes, and each is an MPI job of its own. They
/// would all do the whole work and write one output.
pub fn check_size(environment: &Environment, rank: usize, size: usize) -> Result<Vec<String>> {
    let launcher = Launcher::of(environment);
    let mut warnings = Vec::new();
    match launcher {
        Launcher::OpenMpi(started) | Launcher::Pmi(started) if size == 1 && started > 1 => bail!(
            "mpirun started {started} processes, but each is an MPI job of its own (rank 0 of 1): mpirun belongs to \
             another MPI than the one sluice is linked to; use that one's mpirun (`sluice doctor` names it)"
        ),
        Launcher::Srun(started) if size == 1 && started > 1 => bail!(
            "srun started {started} tasks, but each is an MPI job of its own (rank 0 of 1): srun and MPI don't speak \
             the same PMI; start with `srun --mpi=pmix` (`srun --mpi=list` shows what is there), or with mpirun inside \
             the allocation"
        ),
        Launcher::OpenMpi(started) | Launcher::Pmi(started) | Launcher::Srun(started) if started != size => warnings
            .push(format!(
                "the launcher says {started} processes, MPI says {size} ranks; MPI's number is used ({launcher})"
            )),
        Launcher::SlurmScript(tasks) if size == 1 && tasks > 1 => warnings.push(format!(
            "this Slurm job has room for {tasks} tasks, but sluice was started without srun and runs on one rank; for \
             all of them: `srun --mpi=pmix sluice ...`, or mpirun"
        )),
        _ => {}
    }
    // PMIx gives no size, but rank 3 of 1 can't be.
    if let Some(started) = launched_rank(environment).filter(|launched| *launched >= size) {
        ensure!(
            size > 1 || !environment.contains_key("PMIX_RANK"),
            "the launcher calls this process rank {started}, but MPI says rank {rank} of {size}: each process is an MPI \
             job of its own; use the mpirun of the MPI that sluice is linked to, or `srun --mpi=pmix` (`srun \
             --mpi=list` shows what is there)"
        );
    }
    Ok(warnings)
}

/// The processors a process may run on, in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuMask(BTreeSet<usize>);

impl CpuMask {
    /// From a list as Linux writes it: `0-3,8`.
    ///
    /// # Errors
    /// When it is no such list.
    pub fn parse(list: &str) -> Result<CpuMask> {
        let mut cpus = BTreeSet::new();
        for part in list.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<usize>().ok();
            let range = number(first)
                .zip(number(last))
                .filter(|(first, last)| first <= last && *last < 1 << 20);
            let (first, last) = range.with_context(|| format!("{list:?} is no list of processors like 0-3,8"))?;
            cpus.extend(first..=last);
        }
        Ok(CpuMask(cpus))
    }

    /// How many processors.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<usize> for CpuMask {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> CpuMask {
        CpuMask(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuMask {
    /// As Linux writes it: `0-3,8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
                _ => ranges.push((*cpu, *cpu)),
            }
        }
        let text = |(first, last): &(usize, usize)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        };
        f.write_str(&ranges.iter().map(text).collect::<Vec<_>>().join(","))
    }
}

/// What one rank may use of its machine; ranks exchange these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The rank.
    pub rank: usize,
    /// Its machine's name.
    pub host: String,
    /// The processors it is bound to.
    pub mask: CpuMask,
    /// Processors' worth of time that a container's quota leaves all ranks of the machine, where that is less.
    pub quota: Option<usize>,
    /// Processors of the machine.
    pub online: usize,
}

/// The threads `rank` should run by default: each processor it is bound to is shared fairly by the ranks bound to it.
/// At least 1.
pub fn default_threads(bindings: &[Binding], rank: usize) -> usize {
    let Some(own) = bindings.iter().find(|binding| binding.rank == rank) else {
        return 1;
    };
    let neighbours: Vec<&Binding> = bindings.iter().filter(|binding| binding.host == own.host).collect();
    let sharing = |cpu: &usize| neighbours.iter().filter(|binding| binding.mask.0.contains(cpu)).count();
    // A hair is added since three thirds in floating point may fall short of one.
    let fair = own.mask.0.iter().map(|cpu| 1.0 / sharing(cpu) as f64).sum::<f64>() + 1e-9;
    let quota = own.quota.map_or(usize::MAX, |quota| quota / neighbours.len());
    (fair as usize).min(quota).max(1)
}

/// Warnings where `threads[i]` of `bindings[i]` don't fit its processors: one line a machine and fault, with the cure.
pub fn binding_warnings(environment: &Environment, bindings: &[Binding], threads: &[usize]) -> Vec<String> {
    let mut hosts: BTreeMap<&str, Vec<(&Binding, usize)>> = BTreeMap::new();
    for (binding, threads) in bindings.iter().zip(threads) {
        hosts.entry(&binding.host).or_default().push((binding, *threads));
    }
    hosts
        .into_iter()
        .filter_map(|(host, ranks)| host_warning(Launcher::of(environment), host, &ranks))
        .collect()
}

/// The first fault of one machine: too narrow a mask, too many threads in all, or processors left idle.
fn host_warning(launcher: Launcher, host: &str, ranks: &[(&Binding, usize)]) -> Option<String> {
    let union: BTreeSet<usize> = ranks
        .iter()
        .flat_map(|(binding, _)| binding.mask.0.iter().copied())
        .collect();
    let in_all: usize = ranks.iter().map(|(_, threads)| threads).sum();
    let online = ranks.iter().map(|(binding, _)| binding.online).max()?;
    if let Some((binding, threads)) = ranks.iter().find(|(binding, threads)| *threads > binding.mask.count()) {
        return Some(format!(
            "{host}: rank {} runs {threads} threads, but is bound to {} processors ({}): they take turns on them; {}",
            binding.rank,
            binding.mask.count(),
            binding.mask,
            match binding.mask.count() < online {
                true => cure(launcher, *threads),
                false => format!("that is all that this machine has: --threads {online} at most"),
            }
        ));
    }
    if in_all > union.len() {
        let (count, each) = (ranks.len(), union.len() / ranks.len());
        let fewer = match ranks.iter().any(|(_, threads)| *threads > each.max(1)) {
            true => format!(", or --threads {}", each.max(1)),
            false => String::new(),
        };
        return Some(format!(
            "{host}: {count} ranks run {in_all} threads on {} processors: fewer ranks on this machine{fewer}",
            union.len()
        ));
    }
    // One or two ranks are what Open MPI binds to a core each; Slurm's own masks are what the job was given.
    let bound_by_mpirun = matches!(launcher, Launcher::OpenMpi(_) | Launcher::Pmi(_));
    let narrow = ranks.iter().all(|(binding, _)| binding.mask.count() <= 2);
    if bound_by_mpirun && narrow && union.len() * 2 <= online {
        let each = (online / ranks.len()).max(1);
        return Some(format!(
            "{host}: {} ranks are bound to processors {} and leave the other {} idle; {}",
            ranks.len(),
            union.iter().copied().collect::<CpuMask>(),
            online - union.len(),
            cure(launcher, each)
        ));
    }
    None
}

/// What to do where a rank's mask is narrower than `threads`.
fn cure(launcher: Launcher, threads: usize) -> String {
    match launcher {
        Launcher::OpenMpi(_) => format!("start with mpirun --bind-to none (or --map-by slot:PE={threads})"),
        Launcher::Pmi(_) => "start with mpirun -bind-to none".to_owned(),
        Launcher::Srun(_) => {
            format!("start with srun --cpus-per-task={threads} (srun does not take sbatch's), or --threads")
        }
        Launcher::SlurmScript(_) | Launcher::Nobody => {
            "give sluice more processors (taskset, container), or --threads".to_owned()
        }
    }
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
