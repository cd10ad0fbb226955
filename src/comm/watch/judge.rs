//! From what is known of the ranks to a verdict: all is well, somebody is late, the ranks have lost one another.
//!
//! Time is what the watchdog has seen pass in looks of its own, so that a job which was suspended as a whole, or a
//! machine that slept, counts for nothing. Not here: how other ranks' states arrive (`link.rs`).

use super::super::apart;
use super::super::progress::Doing;
use crate::error::Error;
use std::time::Duration;

/// Before the first notice about a rank that others wait for; half of the limit where that is less.
const NOTICE: Duration = Duration::from_secs(30);
/// A rank that has said nothing for so long is taken for stopped or cut off, whatever it said before; half of the limit
/// where that is less.
const SILENCE: Duration = Duration::from_secs(5);
/// How long ranks must have been at different collectives of one number: they may notice it themselves, and say more.
const DESYNC: Duration = Duration::from_secs(1);

/// What is known of one rank.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// What it was doing when it was last heard of; nothing where it never was.
    pub doing: Option<Doing>,
    /// Since when nothing has been heard of it.
    pub silent: Duration,
}

/// What the watchdog is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Well,
    /// Say who is waited for.
    Notice(String),
    /// End the job: a rank is too late, or gone.
    Stalled(String),
    /// End the job: ranks are at different collectives.
    Apart(Error),
}

/// Remembers how long nothing has moved.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Collectives that each rank had begun, and whether it was inside its last one.
    places: Vec<(u64, bool)>,
    stood: Duration,
    noticed: bool,
}

/// A rank of which nothing is known.
static UNHEARD: Doing = Doing { begun: 0, inside: false, purpose: String::new(), work: String::new() };

impl Seen {
    fn doing(&self) -> &Doing {
        self.doing.as_ref().unwrap_or(&UNHEARD)
    }
}

impl Judge {
    /// Judges what is known of the ranks whose numbers and states these are, `passed` after the last look.
    pub fn look(&mut self, ranks: &[(usize, &Seen)], passed: Duration, limit: Duration) -> Verdict {
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
        let text = format!("waiting for {whom} at {} since {} s", at_front.purpose, self.stood.as_secs());
        if self.stood >= limit {
            let why = late.iter().take(3).map(|(rank, seen)| why(*rank, seen, silent(seen))).collect::<Vec<_>>();
            let all_have_come = || "every rank has come to it, and it does not end".to_owned();
            let why = if late.is_empty() { all_have_come() } else { why.join("; ") };
            return Verdict::Stalled(format!("{text}: {why}"));
        }
        if !self.noticed && self.stood >= NOTICE.min(limit / 2) {
            self.noticed = true;
            return Verdict::Notice(text);
        }
        Verdict::Well
    }

    /// The same for a rank that knows of rank 0 and itself alone. As long as rank 0 is heard, it judges.
    pub fn look_at_rank_0(&mut self, rank_0: &Seen, own: (usize, &Seen), passed: Duration, limit: Duration) -> Verdict {
        let verdict = self.look(&[(0, rank_0), own], passed, limit);
        if rank_0.silent < silence(limit) {
            // Once it is silent, the time that it has been so counts, and no more.
            (self.stood, self.noticed) = (self.stood.min(silence(limit)), false);
            return Verdict::Well;
        }
        verdict
    }

    /// Nobody waits, or for good reasons.
    fn rest(&mut self) {
        (self.stood, self.noticed) = (Duration::ZERO, false);
    }
}

/// When a rank counts as silent.
fn silence(limit: Duration) -> Duration {
    SILENCE.min(limit / 2)
}

/// What is known of why a rank is not there.
fn why(rank: usize, seen: &Seen, silent: bool) -> String {
    match &seen.doing {
        None => format!("nothing has been heard of rank {rank} at all"),
        Some(_) if silent => {
            let seconds = seen.silent.as_secs();
            format!(
                "nothing has been heard of rank {rank} for {seconds} s: its process is stopped, or the network is cut"
            )
        }
        Some(Doing { inside: true, purpose, .. }) => format!("rank {rank} is itself waiting, at {purpose}"),
        Some(_) => format!("rank {rank} is running and has not come"),
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
    const LOOK: Duration = Duration::from_secs(1);

    fn at(begun: u64, inside: bool, purpose: &str) -> Seen {
        let doing = Doing { begun, inside, purpose: purpose.into(), work: String::new() };
        Seen { doing: Some(doing), silent: Duration::ZERO }
    }

    /// What is said while nothing moves, with the seconds.
    fn verdicts(ranks: &[Seen]) -> Vec<(u32, Verdict)> {
        let mut judge = Judge::default();
        let numbered: Vec<_> = ranks.iter().enumerate().collect();
        let looks = (1..=100).map(|second| (second, judge.look(&numbered, LOOK, LIMIT)));
        looks.filter(|(_, verdict)| *verdict != Verdict::Well).collect()
    }

    #[test]
    fn a_late_rank_is_named_after_30_seconds_and_ends_the_job_at_the_limit() {
        let ranks = [at(5, true, "bucket 12 of step 40"), at(4, false, "bucket 11 of step 40")];
        let told = "waiting for rank 1 at bucket 12 of step 40 since";
        assert_eq!(
            verdicts(&ranks),
            [
                (30, Verdict::Notice(format!("{told} 30 s"))),
                (100, Verdict::Stalled(format!("{told} 100 s: rank 1 is running and has not come")))
            ]
        );
    }

    #[test]
    fn a_rank_that_is_silent_is_waited_for_even_where_it_came_or_is_at_work() {
        let mut stopped = at(5, true, "x");
        stopped.silent = Duration::from_secs(40);
        let told = verdicts(&[at(5, true, "x"), stopped.clone()]);
        assert!(
            matches!(&told[1].1, Verdict::Stalled(text) if text.contains("nothing has been heard of rank 1 for 40 s"))
        );
        stopped.doing = Some(Doing { begun: 4, inside: false, work: "saving".into(), ..Doing::default() });
        assert!(matches!(&verdicts(&[at(5, true, "x"), stopped])[1], (100, Verdict::Stalled(_))));
        let told = verdicts(&[at(5, true, "x"), Seen::default()]);
        assert!(
            matches!(&told[1].1, Verdict::Stalled(text) if text.ends_with("nothing has been heard of rank 1 at all"))
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
                assert_eq!(judge.look(&[(0, &waiting), (1, &late)], LOOK, LIMIT), Verdict::Well);
            }
        }
    }

    #[test]
    fn different_collectives_of_one_number_are_told_apart() {
        let told = verdicts(&[at(5, true, "a vote"), at(5, true, "bucket 1")]);
        assert!(
            matches!(&told[0], (1, Verdict::Apart(error)) if error.message.contains("rank 0 has come to a vote")
            && error.message.contains("rank 1 to bucket 1")),
            "{told:?}"
        );
        // Behind the front one may be called otherwise.
        assert!(matches!(verdicts(&[at(5, true, "a vote"), at(4, true, "bucket 1")])[0], (30, Verdict::Notice(_))));
    }

    #[test]
    fn other_ranks_judge_rank_0_only_once_it_is_silent() {
        let mut judge = Judge::default();
        let (waiting, mut rank_0) = (at(5, true, "x"), at(4, false, "x"));
        for _ in 0..200 {
            assert_eq!(judge.look_at_rank_0(&rank_0, (3, &waiting), LOOK, LIMIT), Verdict::Well);
        }
        rank_0.silent = SILENCE;
        let looks = (1..=95).map(|_| judge.look_at_rank_0(&rank_0, (3, &waiting), LOOK, LIMIT));
        let told: Vec<_> = looks.filter(|verdict| *verdict != Verdict::Well).collect();
        assert_eq!(told[0], Verdict::Notice("waiting for rank 0 at x since 30 s".into()));
        assert!(
            matches!(&told[1..], [Verdict::Stalled(text)] if text.starts_with("waiting for rank 0 at x since 100 s"))
        );
    }

    #[test]
    fn where_every_rank_has_come_the_network_is_to_blame() {
        let told = verdicts(&[at(5, true, "bucket 1"), at(5, true, "bucket 1")]);
        assert!(matches!(&told[1].1, Verdict::Stalled(text) if text.contains("waiting for the network at bucket 1")));
    }

    #[test]
    fn ranks_are_listed_in_words() {
        assert_eq!(listed(&[3]), "rank 3");
        assert_eq!(listed(&[0, 2, 5]), "ranks 0, 2 and 5");
        assert_eq!(listed(&[0, 1, 2, 3]), "ranks 0, 1, 2 and 3");
        assert_eq!(listed(&[0, 1, 2, 3, 4]), "ranks 0, 1, 2 and 2 more");
    }
}
