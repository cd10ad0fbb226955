//! Programs under mpirun, and programs that must end in time. Not here: what they are asked to do.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// `program` on `ranks` ranks, one thread each; its arguments are to be added.
pub fn mpirun(ranks: usize, program: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args(["-n", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"])
        .arg(program)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMP_NUM_THREADS", "1");
    command
}

/// The job's exit code, -1 where a signal ended it; none if it had to be stopped after `limit`.
pub fn wait(mut job: Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < limit {
        match job.try_wait() {
            Ok(Some(status)) => return Some(status.code().unwrap_or(-1)),
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => break,
        }
    }
    // Asked to end, mpirun ends its ranks first.
    let _ = Command::new("kill").arg(job.id().to_string()).status();
    let _ = job.wait();
    None
}
