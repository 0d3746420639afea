use super::*;

fn environment(pairs: &str) -> Environment {
    pairs
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

/// `Ok(number of warnings)`, or the error.
fn judge(pairs: &str, rank: usize, size: usize) -> Result<usize, String> {
    check_size(&environment(pairs), rank, size)
        .map(|warnings| warnings.len())
        .map_err(|error| error.to_string())
}

#[test]
fn ranks_that_agree_are_fine() {
    assert_eq!(judge("", 0, 1), Ok(0));
    assert_eq!(
        judge("OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=3 PMIX_RANK=3", 3, 4),
        Ok(0)
    );
    assert_eq!(judge("PMI_SIZE=2 PMI_RANK=1", 1, 2), Ok(0));
    assert_eq!(
        judge(
            "SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4 SLURM_PROCID=2 PMIX_RANK=2",
            2,
            4
        ),
        Ok(0)
    );
    assert_eq!(
        judge(
            "SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=1 SLURM_PROCID=0",
            0,
            1
        ),
        Ok(0)
    );
    // srun -n 1 in a job with room for four is what the user asked for.
    assert_eq!(
        judge(
            "SLURM_STEP_ID=1 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4 SLURM_PROCID=0",
            0,
            1
        ),
        Ok(0)
    );
}

#[test]
fn singletons_under_srun_are_refused_with_the_cure() {
    for rank in 0..4 {
        let pairs = format!("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4 SLURM_PROCID={rank}");
        let error = judge(&pairs, 0, 1).unwrap_err();
        assert!(
            error.contains("srun started 4 tasks") && error.contains("srun --mpi=list"),
            "{error}"
        );
        assert!(error.contains("--mpi=pmix") && !error.contains('\n'), "{error}");
        assert_eq!(speaks(&environment(&pairs)), rank == 0);
    }
    // An older Slurm that doesn't say the step's tasks, and pmi2.
    assert!(judge("SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_PROCID=0", 0, 1).is_err());
    let pmi2 = "SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 PMI_SIZE=2 PMI_RANK=0";
    assert!(judge(pmi2, 0, 1).unwrap_err().contains("srun"));
}

#[test]
fn singletons_under_a_foreign_mpirun_are_refused() {
    for pairs in ["OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0", "PMI_SIZE=2 PMI_RANK=1"] {
        let error = judge(pairs, 0, 1).unwrap_err();
        assert!(
            error.contains("mpirun started 2 processes") && error.contains("sluice doctor"),
            "{error}"
        );
    }
    assert!(judge("PMIX_RANK=1", 0, 1).unwrap_err().contains("rank 1"));
}

#[test]
fn a_plain_start_in_a_batch_script_is_only_a_warning() {
    // Slurm sets SLURM_PROCID=0 in the script itself, too.
    let script = "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_NPROCS=4 SLURM_PROCID=0 SLURM_LOCALID=0";
    assert_eq!(Launcher::of(&environment(script)), Launcher::SlurmScript(4));
    let warnings = check_size(&environment(script), 0, 1).unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].contains("without srun"),
        "{warnings:?}"
    );
    assert_eq!(judge("SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0", 0, 1), Ok(0));
}

#[test]
fn mpirun_in_a_slurm_job_counts_ranks_not_daemons() {
    let daemon = "SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=8 SLURM_PROCID=1";
    let rank = "OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_RANK=5";
    assert_eq!(judge(&format!("{daemon} {rank}"), 5, 8), Ok(0));
}

#[test]
fn several_ranks_that_differ_from_the_launcher_are_a_warning() {
    assert_eq!(
        judge("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=0", 0, 8),
        Ok(1)
    );
    assert_eq!(judge("SLURM_NTASKS=many SLURM_STEP_ID=0", 0, 1), Ok(0));
}

#[test]
fn the_first_process_speaks() {
    assert!(speaks(&environment("")));
    assert!(speaks(&environment("PMI_RANK=0")));
    assert!(!speaks(&environment("PMIX_RANK=1")));
    // mpirun inside a job: its rank counts, not the daemon's.
    assert!(!speaks(&environment("OMPI_COMM_WORLD_RANK=1 SLURM_PROCID=0")));
}

#[test]
fn masks_are_read_and_written_as_linux_does() {
    for list in ["0-3,8", "5", "", "0,2,4"] {
        assert_eq!(CpuMask::parse(list).unwrap().to_string(), list);
    }
    assert_eq!(CpuMask::parse("0-3,8\n").unwrap().count(), 5);
    for list in ["x", "3-1", "1-", "0-99999999999"] {
        assert!(CpuMask::parse(list).is_err(), "{list}");
    }
}

fn bindings(masks: &[&str], online: usize) -> Vec<Binding> {
    let binding = |(rank, mask): (usize, &&str)| Binding {
        rank,
        host: "n1".to_owned(),
        mask: CpuMask::parse(mask).unwrap(),
        quota: None,
        online,
    };
    masks.iter().enumerate().map(binding).collect()
}

#[test]
fn threads_share_what_masks_share() {
    let threads = |masks: &[&str]| -> Vec<usize> {
        let bindings = bindings(masks, 64);
        (0..masks.len()).map(|rank| default_threads(&bindings, rank)).collect()
    };
    assert_eq!(threads(&["0-7"]), [8]);
    assert_eq!(threads(&["0-7", "0-7"]), [4, 4]);
    assert_eq!(threads(&["0-3", "4-7"]), [4, 4]);
    assert_eq!(threads(&["0-2", "0-2", "0-2"]), [1, 1, 1]);
    assert_eq!(threads(&["0-1"; 4]), [1; 4]);
    let mut apart = bindings(&["0-7", "0-7"], 8);
    apart[1].host = "n2".to_owned();
    assert_eq!(default_threads(&apart, 0), 8);
    apart[0].quota = Some(3);
    assert_eq!(default_threads(&apart, 0), 3);
    assert_eq!(default_threads(&apart, 9), 1);
}

#[test]
fn narrow_masks_are_told_with_the_launchers_cure() {
    let warn = |pairs: &str, masks: &[&str], threads: &[usize], online| {
        binding_warnings(&environment(pairs), &bindings(masks, online), threads)
    };
    let mpirun = "OMPI_COMM_WORLD_SIZE=2";
    let pinned = warn(mpirun, &["0", "1"], &[2, 2], 2);
    assert!(
        pinned.len() == 1 && pinned[0].contains("2 threads") && pinned[0].contains("--bind-to none"),
        "{pinned:?}"
    );
    let idle = warn(mpirun, &["0", "1"], &[1, 1], 64);
    assert!(
        idle.len() == 1 && idle[0].contains("62 idle") && idle[0].contains("--bind-to none"),
        "{idle:?}"
    );
    let slurm = warn("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2", &["0", "1"], &[4, 4], 64);
    assert!(slurm[0].contains("--cpus-per-task=4"), "{slurm:?}");
    let crowded = warn(mpirun, &["0-1"; 4], &[2; 4], 2);
    assert!(
        crowded[0].contains("8 threads on 2 processors") && crowded[0].contains("--threads 1"),
        "{crowded:?}"
    );
    // Advice that is followed already is none.
    let ranks = warn(mpirun, &["0-1"; 3], &[1; 3], 2);
    assert!(
        ranks[0].contains("fewer ranks") && !ranks[0].contains("--threads"),
        "{ranks:?}"
    );
    let threads = warn(mpirun, &["0-1"], &[9], 2);
    assert!(
        threads[0].contains("--threads 2") && !threads[0].contains("--bind-to"),
        "{threads:?}"
    );
    assert!(warn(mpirun, &["0-1", "0-1"], &[1, 1], 2).is_empty());
    assert!(warn("", &["0-7"], &[8], 8).is_empty());
    // A Slurm job that was given one processor a task has what it asked for.
    assert!(warn("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2", &["0", "1"], &[1, 1], 64).is_empty());
}
