//! The watchdog of a rank: a thread that warns when ranks wait long for one another, and ends the job at the limit.
//!
//! Rank 0 receives the reports of all ranks and judges them; the others judge rank 0 alone, and only once it is silent. MPI
//! can block neither. MPI's own start is not watched, because the ranks find one another through it. Not here: collectives
//! between GPUs, which run on after their call (`nccl/watch.rs`).

mod judge;
mod link;

use super::abort::abort;
use super::progress::{Doing, Progress};
use crate::error::{Error, Result};
use crate::terminal;
use judge::{Judge, Seen, Verdict};
use link::{Client, INVITATION, Invitation, Server};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::warn;

pub(super) use judge::listed;

/// Time between two polls, and between two frames.
const POLL: Duration = Duration::from_millis(200);
/// Most time that counts between two polls: a process that was itself stopped knows nothing of the time between.
const MOST_PASSED: Duration = Duration::from_secs(2);
/// How long ranks above 1 wait so that others report first.
const OTHERS_FIRST: Duration = Duration::from_secs(2);
/// How long rank 0 may take to answer before a rank warns that it does not.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// A rank's end of the connections for status reports.
pub(super) struct Line(End);

enum End {
    Server(Server),
    Client(Client),
}

impl Line {
    /// Rank 0 invites the others: `broadcast` gives every rank its bytes.
    pub(crate) fn open(rank: usize, world_size: usize, one_node: bool, broadcast: impl FnOnce(&mut [u8])) -> Self {
        if rank == 0 {
            let (invitation, listener) = Invitation::new(one_node);
            broadcast(&mut invitation.pack());
            return Self(End::Server(Server::new(&invitation, listener, world_size)));
        }
        let mut bytes = [0; INVITATION];
        broadcast(&mut bytes);
        Self(End::Client(Client::new(rank, Invitation::unpack(&bytes))))
    }
}

/// The watchdog's thread. Dropping it ends it.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts the watchdog of `rank` of `world_size`; `progress` says what the rank is doing.
    pub(super) fn start(rank: usize, world_size: usize, line: Line, progress: Arc<Progress>) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let body = move || {
            let mut view = View::new(rank, world_size, line);
            while !until.load(Ordering::Acquire) {
                view.poll(&progress);
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
    /// The state of rank 0 alone, or on rank 0 that of every rank.
    seen: Vec<Seen>,
    judge: Judge,
    polled: Instant,
    /// Whether rank 0 has answered, or a warning said that it does not.
    answer_settled: bool,
}

impl View {
    fn new(rank: usize, world_size: usize, line: Line) -> Self {
        let known = if matches!(line.0, End::Server(_)) { world_size } else { 1 };
        Self {
            rank,
            line,
            seen: vec![Seen::default(); known],
            judge: Judge::default(),
            polled: Instant::now(),
            answer_settled: false,
        }
    }

    fn poll(&mut self, progress: &Progress) {
        let now = Instant::now();
        let limit = progress.limit();
        let passed = (now - self.polled).min(MOST_PASSED).min(limit / 4);
        self.polled = now;
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
            End::Server(server) => {
                server.poll(&own, |rank, doing| self.seen[rank] = heard(doing));
                self.seen[0] = heard(own);
                let ranks: Vec<_> = self.seen.iter().enumerate().collect();
                self.judge.judge(&ranks, passed, limit)
            }
            End::Client(client) => {
                if let Some(doing) = client.poll(&own) {
                    self.seen[0] = heard(doing);
                    self.answer_settled = true;
                }
                if !self.answer_settled && self.seen[0].silent >= FIRST_ANSWER {
                    self.answer_settled = true;
                    warn!(
                        "rank 0 does not answer over TCP at {}: if ranks wait, no message can say which one is late",
                        client.addresses()
                    );
                }
                let own = heard(own);
                self.judge.judge_rank_0(&self.seen[0], (self.rank, &own), passed, limit)
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
