//! Which of the job's processes this is, read from the environment before MPI has started.
//!
//! It serves messages only: so that one of N processes prints what all of them have to say. What is computed goes by
//! the communicator's rank.

use std::env;

/// Where Open MPI, PMIx, MPICH and Slurm write a process's number, most specific first.
const RANKS: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

/// This process's number from 0; None if nothing launched it in a group.
pub fn rank() -> Option<usize> {
    rank_from(|name| env::var(name).ok())
}

fn rank_from(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    RANKS.iter().find_map(|name| variable(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mpirun_under_slurm_goes_by_mpirun() {
        let both = |name: &str| match name {
            "OMPI_COMM_WORLD_RANK" => Some(String::from("3")),
            "SLURM_PROCID" => Some(String::from("0")),
            _ => None,
        };
        assert_eq!(rank_from(both), Some(3));
    }

    #[test]
    fn a_process_started_by_hand_has_no_rank() {
        assert_eq!(rank_from(|_| None), None);
        assert_eq!(rank_from(|_| Some(String::from("none"))), None, "nonsense is not a rank");
    }
}
