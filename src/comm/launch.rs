//! Who started this process: reads the environment variables of MPI launchers. Never initializes MPI.

/// What an MPI launcher told this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// This process's number.
    pub rank: usize,
    /// Number of processes that were started, if the launcher gives it.
    pub size: Option<usize>,
}

/// What the launcher told this process; none if no launcher started it.
pub fn launch() -> Option<Launch> {
    read(|name| std::env::var(name).ok())
}

/// Whether an MPI launcher (mpirun, mpiexec, or srun with several tasks) started this process.
pub fn under_mpirun() -> bool {
    launch().is_some()
}

/// This process's rank according to its launcher, 0 without one: for messages written before MPI is initialized or after
/// it has ended.
pub fn rank() -> usize {
    launch().map_or(0, |launch| launch.rank)
}

/// The variables with the rank and the number of processes, in the order they are tried. PMIX: Open MPI 5,
/// PRRTE, `srun --mpi=pmix`; it gives no size. PMI: MPICH, Intel MPI, `srun --mpi=pmi2`.
const LAUNCHERS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMIX_RANK", ""),
];

fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    for (rank, size) in LAUNCHERS {
        if let Some(rank) = number(rank) {
            return Some(Launch { rank, size: number(size) });
        }
    }
    // SLURM_PROCID is 0 in every batch script and salloc shell too, where nothing was launched. Only the number of
    // tasks of the *step* shows a launch: batch scripts have none, and interactive steps have one, which needs no MPI.
    let size = number("SLURM_STEP_NUM_TASKS").filter(|&size| size > 1)?;
    Some(Launch { rank: number("SLURM_PROCID")?, size: Some(size) })
}

#[cfg(test)]
mod tests {
    use super::{Launch, read};

    fn with(variables: &[(&str, &str)]) -> Option<Launch> {
        read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_are_distinguished_from_plain_shells() {
        assert_eq!(with(&[]), None);
        let open_mpi = with(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_RANK", "1")]);
        assert_eq!(open_mpi, Some(Launch { rank: 1, size: Some(2) }));
        assert_eq!(with(&[("PMI_RANK", "3"), ("PMI_SIZE", "4")]), Some(Launch { rank: 3, size: Some(4) }));
        assert_eq!(with(&[("PMIX_RANK", "5")]), Some(Launch { rank: 5, size: None }));
    }

    #[test]
    fn slurm_counts_only_inside_a_step_of_several_tasks() {
        let batch_script = [("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")];
        assert_eq!(with(&batch_script), None);
        let interactive = [("SLURM_PROCID", "0"), ("SLURM_STEP_ID", "4294967290"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(with(&interactive), None);
        let step = [("SLURM_PROCID", "6"), ("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "8")];
        assert_eq!(with(&step), Some(Launch { rank: 6, size: Some(8) }));
    }
}
