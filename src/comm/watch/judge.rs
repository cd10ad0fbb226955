//! Judges the states of the ranks: all is well, a rank is late, or the ranks are at different collectives.
//!
//! Only time between the watchdog's own polls counts, not that of a suspended job or a sleeping machine. Not here: how
//! other ranks' states arrive (`link.rs`).

use super::super::apart;
use super::super::progress::Doing;
use crate::error::Error;
use std::time::Duration;

/// Time before the first notice about a rank that others wait for; half the limit if that is less.
const NOTICE: Duration = Duration::from_secs(30);
/// A rank that has been silent for this long counts as stopped or cut off, whatever it reported before; half the limit if
/// that is less.
const SILENCE: Duration = Duration::from_secs(5);
/// How long ranks must have been at different collectives of the same number: the backend may notice it first, and its
/// error says more.
const DESYNC: Duration = Duration::from_secs(1);

/// What is known of one rank.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Its last report; none if it has never reported.
    pub(crate) doing: Option<Doing>,
    /// Time since that report.
    pub(crate) silent: Duration,
}

/// What the watchdog is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Well,
    /// Log which ranks are waited for.
    Notice(String),
    /// End the job: a rank is too late, or gone.
    Stalled(String),
    /// End the job: ranks are at different collectives.
    Apart(Error),
}

/// Measures how long no rank has moved.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Collectives that each rank had begun, and whether it was inside its last one.
    places: Vec<(u64, bool)>,
    stood: Duration,
    noticed: bool,
}

/// A rank that has never reported.
static UNHEARD: Doing = Doing { begun: 0, inside: false, purpose: String::new(), work: String::new() };

impl Seen {
    fn doing(&self) -> &Doing {
        self.doing.as_ref().unwrap_or(&UNHEARD)
    }
}

impl Judge {
    /// Judges ranks by their numbers and states, `passed` after the last call.
    pub(crate) fn judge(&mut self, ranks: &[(usize, &Seen)], passed: Duration, limit: Duration) -> Verdict {
        let places: Vec<_> = ranks.iter().map(|(_, seen)| (seen.doing().begun, seen.doing().inside)).collect();
        if places != self.places {
            *self = Self { places, ..Self::default() };
        }
        let waiting = || ranks.iter().filter(|(_, seen)| seen.doing().inside);
        let Some((front, seen)) = waiting().max_by_key(|(_, seen)| seen.doing().begun) else {
            self.rest();
            return Verdict::Well;
        };
        let at_front = seen.doing();
        let silent = |seen: &Seen| seen.silent >= silence(limit);
        let missing = |seen: &Seen| seen.doing().begun < at_front.begun || silent(seen);
        let late: Vec<_> = ranks.iter().filter(|(_, seen)| missing(seen)).collect();
        let waited_for = if late.is_empty() { ranks.iter().collect() } else { late.clone() };
        if waited_for.iter().all(|(_, seen)| !silent(seen) && !seen.doing().work.is_empty()) {
            self.rest();
            return Verdict::Well;
        }
        self.stood += passed;
        let elsewhere = |doing: &Doing| doing.begun == at_front.begun && doing.purpose != at_front.purpose;
        if self.stood >= DESYNC.min(limit / 2)
            && let Some((other, seen)) = waiting().find(|(_, seen)| elsewhere(seen.doing()))
        {
            return Verdict::Apart(apart(&[(*other, &seen.doing().purpose), (*front, &at_front.purpose)]));
        }
        let whom = match late.is_empty() {
            true => "the network".to_owned(),
            false => listed(&late.iter().map(|(rank, _)| *rank).collect::<Vec<_>>()),
        };
        let text = format!("waiting for {whom} at {} for {} s", at_front.purpose, self.stood.as_secs());
        if self.stood >= limit {
            let why = late.iter().take(3).map(|(rank, seen)| why(*rank, seen, silent(seen))).collect::<Vec<_>>();
            let all_are_there = || "every rank has reached it, but it does not end".to_owned();
            let why = if late.is_empty() { all_are_there() } else { why.join("; ") };
            return Verdict::Stalled(format!("{text}: {why}"));
        }
        if !self.noticed && self.stood >= NOTICE.min(limit / 2) {
            self.noticed = true;
            return Verdict::Notice(text);
        }
        Verdict::Well
    }

    /// The same for a rank that knows only rank 0 and itself. Until rank 0 is silent, it judges all ranks.
    pub(crate) fn judge_rank_0(
        &mut self,
        rank_0: &Seen,
        own: (usize, &Seen),
        passed: Duration,
        limit: Duration,
    ) -> Verdict {
        let verdict = self.judge(&[(0, rank_0), own], passed, limit);
        if rank_0.silent < silence(limit) {
            // Once rank 0 is silent, only the time of its silence counts.
            (self.stood, self.noticed) = (self.stood.min(silence(limit)), false);
            return Verdict::Well;
        }
        verdict
    }

    /// No rank waits, or the ranks waited for are at announced work.
    fn rest(&mut self) {
        (self.stood, self.noticed) = (Duration::ZERO, false);
    }
}

/// When a rank counts as silent.
fn silence(limit: Duration) -> Duration {
    SILENCE.min(limit / 2)
}

/// The known reason why a rank is late.
fn why(rank: usize, seen: &Seen, silent: bool) -> String {
    let cause = "its process is stopped, or the network is cut";
    match &seen.doing {
        None => format!("rank {rank} has never reported: {cause}"),
        Some(_) if silent => format!("rank {rank} has been silent for {} s: {cause}", seen.silent.as_secs()),
        Some(Doing { inside: true, purpose, .. }) => format!("rank {rank} is itself waiting, at {purpose}"),
        Some(_) => format!("rank {rank} is running but has not reached it"),
    }
}

/// `rank 1`, `ranks 1 and 3`, `ranks 1, 2, 3 and 9 more`.
pub(in super::super) fn listed(ranks: &[usize]) -> String {
    const SHOWN: usize = 4;
    match ranks {
        [] => "no rank".to_owned(),
        [rank] => format!("rank {rank}"),
        _ if ranks.len() > SHOWN => {
            let shown: Vec<_> = ranks[..SHOWN - 1].iter().map(usize::to_string).collect();
            format!("ranks {} and {} more", shown.join(", "), ranks.len() + 1 - SHOWN)
        }
        [most @ .., last] => {
            format!("ranks {} and {last}", most.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(100);
    const POLL: Duration = Duration::from_secs(1);

    fn at(begun: u64, inside: bool, purpose: &str) -> Seen {
        let doing = Doing { begun, inside, purpose: purpose.into(), work: String::new() };
        Seen { doing: Some(doing), silent: Duration::ZERO }
    }

    /// The verdicts while nothing moves, each with its second.
    fn verdicts(ranks: &[Seen]) -> Vec<(u32, Verdict)> {
        let mut judge = Judge::default();
        let numbered: Vec<_> = ranks.iter().enumerate().collect();
        let verdicts = (1..=100).map(|second| (second, judge.judge(&numbered, POLL, LIMIT)));
        verdicts.filter(|(_, verdict)| *verdict != Verdict::Well).collect()
    }

    #[test]
    fn a_late_rank_is_named_after_30_seconds_and_ends_the_job_at_the_limit() {
        let ranks = [at(5, true, "bucket 12 of step 40"), at(4, false, "bucket 11 of step 40")];
        let text = "waiting for rank 1 at bucket 12 of step 40 for";
        assert_eq!(
            verdicts(&ranks),
            [
                (30, Verdict::Notice(format!("{text} 30 s"))),
                (100, Verdict::Stalled(format!("{text} 100 s: rank 1 is running but has not reached it")))
            ]
        );
    }

    #[test]
    fn a_silent_rank_is_waited_for_even_if_it_was_at_the_collective_or_at_work() {
        let mut stopped = at(5, true, "x");
        stopped.silent = Duration::from_secs(40);
        let found = verdicts(&[at(5, true, "x"), stopped.clone()]);
        assert!(matches!(&found[1].1, Verdict::Stalled(text) if text.contains("rank 1 has been silent for 40 s")));
        stopped.doing = Some(Doing { begun: 4, inside: false, work: "saving".into(), ..Doing::default() });
        assert!(matches!(&verdicts(&[at(5, true, "x"), stopped])[1], (100, Verdict::Stalled(_))));
        let found = verdicts(&[at(5, true, "x"), Seen::default()]);
        assert!(
            matches!(&found[1].1, Verdict::Stalled(text) if text.contains("rank 1 has never reported: its process"))
        );
    }

    #[test]
    fn announced_work_and_ranks_that_compute_are_no_stall() {
        let mut at_work = at(4, false, "x");
        assert_eq!(verdicts(&[at(4, false, "x"), at_work.clone()]), []);
        if let Some(doing) = &mut at_work.doing {
            doing.work = "saving step 40".into();
        }
        assert_eq!(verdicts(&[at(5, true, "x"), at_work]), []);
    }

    #[test]
    fn progress_starts_the_clock_anew() {
        let mut judge = Judge::default();
        for step in 1..300 {
            let (waiting, late) = (at(step, true, "x"), at(step - 1, false, "x"));
            for _ in 0..20 {
                assert_eq!(judge.judge(&[(0, &waiting), (1, &late)], POLL, LIMIT), Verdict::Well);
            }
        }
    }

    #[test]
    fn different_collectives_of_one_number_are_an_error() {
        let found = verdicts(&[at(5, true, "a vote"), at(5, true, "bucket 1")]);
        assert!(
            matches!(&found[0], (1, Verdict::Apart(error)) if error.message.contains("rank 0 at a vote")
            && error.message.contains("rank 1 at bucket 1")),
            "{found:?}"
        );
        // The control: an earlier collective may have another purpose.
        assert!(matches!(verdicts(&[at(5, true, "a vote"), at(4, true, "bucket 1")])[0], (30, Verdict::Notice(_))));
    }

    #[test]
    fn other_ranks_judge_rank_0_only_once_it_is_silent() {
        let mut judge = Judge::default();
        let (waiting, mut rank_0) = (at(5, true, "x"), at(4, false, "x"));
        for _ in 0..200 {
            assert_eq!(judge.judge_rank_0(&rank_0, (3, &waiting), POLL, LIMIT), Verdict::Well);
        }
        rank_0.silent = SILENCE;
        let verdicts = (1..=95).map(|_| judge.judge_rank_0(&rank_0, (3, &waiting), POLL, LIMIT));
        let found: Vec<_> = verdicts.filter(|verdict| *verdict != Verdict::Well).collect();
        assert_eq!(found[0], Verdict::Notice("waiting for rank 0 at x for 30 s".into()));
        assert!(
            matches!(&found[1..], [Verdict::Stalled(text)] if text.starts_with("waiting for rank 0 at x for 100 s"))
        );
    }

    #[test]
    fn the_network_is_blamed_if_every_rank_is_at_the_collective() {
        let found = verdicts(&[at(5, true, "bucket 1"), at(5, true, "bucket 1")]);
        assert!(matches!(&found[1].1, Verdict::Stalled(text) if text.contains("waiting for the network at bucket 1")));
    }

    #[test]
    fn ranks_are_listed_in_words() {
        assert_eq!(listed(&[3]), "rank 3");
        assert_eq!(listed(&[0, 2, 5]), "ranks 0, 2 and 5");
        assert_eq!(listed(&[0, 1, 2, 3]), "ranks 0, 1, 2 and 3");
        assert_eq!(listed(&[0, 1, 2, 3, 4]), "ranks 0, 1, 2 and 2 more");
    }
}
