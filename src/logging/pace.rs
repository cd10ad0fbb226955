//! Estimates the time left for some work from the time that its units took, steadily enough to read.
//!
//! Not here: showing it (`progress.rs`).

use std::time::{Duration, Instant};

/// The rate is an exponentially weighted mean. Its time constant is this share of the time since the start ...
const SHARE: f64 = 1.0;

/// ... but at least this many seconds.
const LEAST: f64 = 120.0;

/// The rate of some work, and the time left.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    started: Instant,
    /// When units were last done, and how many in total by then.
    last: (Instant, u64),
    /// Units and seconds; older ones count less.
    units: f64,
    seconds: f64,
    /// How often [`at`](Self::at) was called with new units.
    changes: u64,
}

impl Pace {
    /// Work that starts `now`, with `done` units done earlier.
    pub(crate) fn new(now: Instant, done: u64) -> Self {
        Self { started: now, last: (now, done), units: 0.0, seconds: 0.0, changes: 0 }
    }

    /// Records that `done` units are done in total.
    pub(crate) fn at(&mut self, now: Instant, done: u64) {
        if done <= self.last.1 {
            return;
        }
        let seconds = now.duration_since(self.last.0).as_secs_f64();
        // The first units take the longest: memory is allocated, files are read. They count only until there are others.
        if self.changes == 1 {
            (self.units, self.seconds) = (0.0, 0.0);
        }
        let horizon = (SHARE * now.duration_since(self.started).as_secs_f64()).max(LEAST);
        let kept = (-seconds / horizon).exp();
        self.units = self.units * kept + (done - self.last.1) as f64;
        self.seconds = self.seconds * kept + seconds;
        self.changes += 1;
        self.last = (now, done);
    }

    /// Units done in total, as last recorded.
    pub(crate) fn done(&self) -> u64 {
        self.last.1
    }

    /// Units per second; `None` before the first.
    pub(crate) fn rate(&self) -> Option<f64> {
        Some(self.units / self.seconds).filter(|rate| rate.is_finite() && *rate > 0.0)
    }

    /// Time until `all` units are done; `None` before the first is.
    pub(crate) fn left(&self, now: Instant, all: u64) -> Option<Duration> {
        let rate = self.rate()?;
        // Between two units the time left shrinks, by the time of one unit at most.
        let begun = (now.duration_since(self.last.0).as_secs_f64() * rate).min(1.0);
        let left = (all.saturating_sub(self.last.1) as f64 - begun).max(0.0);
        Duration::try_from_secs_f64(left / rate).ok()
    }
}

/// "45 s", "12 min", "3 h 05 min", "2 d 4 h": no more precise than an estimate.
pub(super) fn in_words(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let minutes = (time.as_secs_f64() / 60.0).round() as u64;
    let hours = (time.as_secs_f64() / 3600.0).round() as u64;
    match (seconds, minutes, hours) {
        (0..100, ..) => format!("{seconds} s"),
        (_, 0..100, _) => format!("{minutes} min"),
        (.., 0..48) => format!("{} h {:02} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds left after each unit; `units` are their durations in seconds.
    fn lefts(units: &[f64]) -> Vec<f64> {
        let start = Instant::now();
        let (mut now, mut pace) = (start, Pace::new(start, 7));
        let all = 7 + units.len() as u64;
        let left = |(unit, seconds): (usize, &f64)| {
            now += Duration::from_secs_f64(*seconds);
            pace.at(now, 8 + unit as u64);
            pace.left(now, all).unwrap().as_secs_f64()
        };
        units.iter().enumerate().map(left).collect()
    }

    #[test]
    fn time_left_is_right_where_units_are_alike_and_the_first_is_slow() {
        let mut units = vec![2.0; 500];
        units[0] = 30.0;
        let lefts = lefts(&units);
        for (unit, left) in lefts.iter().enumerate().skip(1) {
            let right = 2.0 * (units.len() - unit - 1) as f64;
            assert!((left - right).abs() < 1e-6, "{unit}: {left}, not {right}");
        }
    }

    /// Promise: it does not jump, whether units differ or an evaluation comes in between.
    #[test]
    fn time_left_does_not_jump() {
        let mut units: Vec<f64> = (0..1000).map(|unit| 1.0 + (unit * 7 % 11) as f64 / 5.0).collect();
        units[400] = 60.0;
        let lefts = lefts(&units);
        // After a minute.
        for (unit, two) in lefts.windows(2).enumerate().skip(30) {
            let jump = (two[0] - two[1] - units[unit + 1]).abs();
            // A pause may come again, so it counts; as one of many units, not as the pace.
            let most = if unit + 1 == 400 { 0.22 } else { 0.02 };
            assert!(jump <= most * two[0] + 3.0, "{unit}: from {} to {}", two[0], two[1]);
        }
        // Control: the last unit's time alone would jump.
        let jump = (units[31] - units[30]).abs() * 970.0;
        assert!(jump > 0.1 * lefts[30], "{jump} of {}", lefts[30]);
    }

    #[test]
    fn a_lasting_change_is_followed() {
        let units: Vec<f64> = (0..400).map(|unit| if unit < 100 { 1.0 } else { 3.0 }).collect();
        let left = lefts(&units)[299];
        assert!((left - 300.0).abs() < 40.0, "{left}");
    }

    #[test]
    fn between_two_units_the_clock_runs_on() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 0);
        assert_eq!(pace.left(start, 10), None);
        pace.at(start + Duration::from_secs(10), 1);
        let left = |seconds| pace.left(start + Duration::from_secs(seconds), 10).unwrap().as_secs();
        assert_eq!([left(10), left(15), left(20), left(300)], [90, 85, 80, 80]);
        assert_eq!(pace.left(start + Duration::from_secs(300), 0), Some(Duration::ZERO));
    }

    #[test]
    fn times_are_written_in_two_figures() {
        let in_words = |seconds| in_words(Duration::from_secs(seconds));
        let expected = ["0 s", "99 s", "2 min", "99 min", "1 h 40 min", "3 h 05 min", "2 d 0 h", "10 d 10 h"];
        assert_eq!([0, 99, 100, 5_940, 6_000, 11_100, 172_800, 900_000].map(in_words), expected);
    }
}
