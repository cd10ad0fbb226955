//! The watchdog of a rank: a thread that says when ranks wait too long for one another, and ends the job at the limit.
//!
//! Rank 0 hears of all ranks and judges; the others judge rank 0 alone, and only where nothing more is heard of it.
//! Whatever MPI does, it holds up neither. What is not watched is MPI's own start: the ranks' lines are made by it. Not here: collectives between GPUs, which go on after their call
//! (`nccl/watch.rs`).

mod judge;
mod link;

use super::abort::abort;
use super::progress::{Doing, Progress};
use crate::error::{Error, Result};
use crate::terminal;
use judge::{Judge, Seen, Verdict};
use link::{Hub, INVITATION, Invitation, Spoke};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::warn;

pub(super) use judge::listed;

/// Between two looks, and two frames.
const POLL: Duration = Duration::from_millis(200);
/// What may count as passed between two looks: a process that was stopped itself knows nothing of the time between.
const MOST_PASSED: Duration = Duration::from_secs(2);
/// How long ranks above 1 let others report first.
const OTHERS_FIRST: Duration = Duration::from_secs(2);
/// How long rank 0 may take to answer before a rank says that it does not hear it.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// A rank's end of the connections that tell ranks of one another.
pub(super) struct Line(End);

enum End {
    Hub(Hub),
    Spoke(Spoke),
}

impl Line {
    /// Rank 0 invites the others: `broadcast` gives every rank its bytes.
    pub fn open(rank: usize, world_size: usize, one_node: bool, broadcast: impl FnOnce(&mut [u8])) -> Self {
        if rank == 0 {
            let (invitation, listener) = Invitation::new(one_node);
            broadcast(&mut invitation.pack());
            return Self(End::Hub(Hub::new(&invitation, listener, world_size)));
        }
        let mut bytes = [0; INVITATION];
        broadcast(&mut bytes);
        Self(End::Spoke(Spoke::new(rank, Invitation::unpack(&bytes))))
    }
}

/// The watchdog's thread. Dropping it ends it.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `rank` of `world_size`, which is doing what `progress` says.
    pub(super) fn start(rank: usize, world_size: usize, line: Line, progress: Arc<Progress>) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let body = move || {
            let mut view = View::new(rank, world_size, line);
            while !until.load(Ordering::Acquire) {
                view.look(&progress);
                std::thread::park_timeout(POLL);
            }
        };
        let thread = std::thread::Builder::new()
            .name("ranks' watchdog".into())
            .spawn(body)
            .map_err(|error| Error::runtime(format!("cannot start the ranks' watchdog: {error}")))?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// What one rank knows of the others.
struct View {
    rank: usize,
    line: Line,
    /// Of rank 0, or on rank 0 of all.
    seen: Vec<Seen>,
    judge: Judge,
    looked: Instant,
    /// Whether rank 0 has been heard, or said not to be.
    told: bool,
}

impl View {
    fn new(rank: usize, world_size: usize, line: Line) -> Self {
        let known = if matches!(line.0, End::Hub(_)) { world_size } else { 1 };
        Self {
            rank,
            line,
            seen: vec![Seen::default(); known],
            judge: Judge::default(),
            looked: Instant::now(),
            told: false,
        }
    }

    fn look(&mut self, progress: &Progress) {
        let now = Instant::now();
        let limit = progress.limit();
        let passed = (now - self.looked).min(MOST_PASSED).min(limit / 4);
        self.looked = now;
        let verdict = self.verdict(progress.now(), passed, limit);
        let hint = "raise parallel.timeout_seconds if a rank may be that late";
        match verdict {
            Verdict::Well => {}
            Verdict::Notice(text) if self.rank <= 1 => warn!("{text}; the job ends at {} s", limit.as_secs()),
            Verdict::Notice(_) => {}
            Verdict::Stalled(text) => self.end(&Error::runtime(text).hint(hint)),
            Verdict::Apart(error) => self.end(&error),
        }
    }

    fn verdict(&mut self, own: Doing, passed: Duration, limit: Duration) -> Verdict {
        self.seen.iter_mut().for_each(|seen| seen.silent += passed);
        let heard = |doing| Seen { doing: Some(doing), silent: Duration::ZERO };
        match &mut self.line.0 {
            End::Hub(hub) => {
                hub.look(&own, |rank, doing| self.seen[rank] = heard(doing));
                self.seen[0] = heard(own);
                let ranks: Vec<_> = self.seen.iter().enumerate().collect();
                self.judge.look(&ranks, passed, limit)
            }
            End::Spoke(spoke) => {
                if let Some(doing) = spoke.look(&own) {
                    self.seen[0] = heard(doing);
                    self.told = true;
                }
                if !self.told && self.seen[0].silent >= FIRST_ANSWER {
                    self.told = true;
                    warn!(
                        "rank 0 does not answer over TCP at {}: ranks that wait will not know whom for",
                        spoke.addresses()
                    );
                }
                let own = heard(own);
                self.judge.look_at_rank_0(&self.seen[0], (self.rank, &own), passed, limit)
            }
        }
    }

    /// Reports and ends the job.
    fn end(&self, error: &Error) -> ! {
        if self.rank > 1 {
            std::thread::sleep(OTHERS_FIRST);
        }
        match self.rank {
            0 => terminal::note(format_args!("error: {error}")),
            rank => terminal::note(format_args!("error: rank {rank}: {error}")),
        }
        abort(error.exit_code())
    }
}
