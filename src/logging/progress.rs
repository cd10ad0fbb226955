//! The progress of work: a bar if this process shows one, else a plain line now and then, both with the time left.
//!
//! Not here: the estimate (`pace.rs`).

use super::pace::{Pace, in_words};
use super::{BARS, shows_progress};
use indicatif::style::ProgressTracker;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt;
use std::time::{Duration, Instant};

/// Time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// Terminals of fewer columns get a short bar, so that speed and time left have room.
const WIDE: u16 = 120;

/// The unit of the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Updates of a run.
    Steps,
    /// Pairs.
    Pairs,
    /// Bytes of a file.
    Bytes,
}

/// The progress of one piece of work. On ranks other than 0 it shows nothing; their lines are filtered out.
///
/// Dropping it removes its bar.
#[derive(Debug)]
pub(crate) struct Progress {
    title: String,
    unit: Unit,
    bar: ProgressBar,
    pace: Pace,
    done: u64,
    /// Number of units; `None` if it is not known.
    all: Option<u64>,
    /// When a plain line was last due.
    said: Instant,
}

impl Progress {
    /// Work called `title` of `all` units, of which `done` were done in an earlier run: these fill the bar, but do not count for
    /// the speed.
    pub(crate) fn new(title: &str, unit: Unit, done: u64, all: impl Into<Option<u64>>) -> Self {
        let (all, now) = (all.into(), Instant::now());
        let pace = Pace::new(now, done);
        let columns = console::Term::stderr().size_checked().map_or(u16::MAX, |(_, columns)| columns);
        let bar = bar(&pace, (title, unit, all), columns);
        let bar = match BARS.get() {
            Some(bars) => bars.add(bar),
            None => bar,
        };
        // Draw the bar now, not only after the first unit.
        bar.tick();
        Self { title: title.to_owned(), unit, bar, pace, done, all, said: now }
    }

    /// Records that `done` units are done in total, and shows `message` after the bar.
    pub(crate) fn at_with(&mut self, done: u64, message: impl Into<String>) {
        self.bar.set_message(message.into());
        self.set(done, Instant::now());
    }

    /// Records that `done` units are done in total, and logs a plain line if one is due.
    pub(crate) fn at(&mut self, done: u64) {
        let now = Instant::now();
        self.set(done, now);
        if let Some(line) = self.plain_line(now) {
            tracing::info!("{line}");
        }
    }

    /// Records `more` units, as [`at`](Self::at) does.
    pub(crate) fn add(&mut self, more: u64) {
        self.at(self.done + more);
    }

    fn set(&mut self, done: u64, now: Instant) {
        self.done = done;
        self.pace.at(now, done);
        self.bar.set_position(done);
    }

    /// Whether a plain line is due: no bar is shown, and the last line was a while ago. If so, the next one is not due for a
    /// while.
    pub(crate) fn due(&mut self, now: Instant) -> bool {
        let due = !shows_progress() && now.duration_since(self.said) >= PLAIN_EVERY;
        if due {
            self.said = now;
        }
        due
    }

    fn plain_line(&mut self, now: Instant) -> Option<String> {
        self.due(now).then(|| {
            let of = self.all.map_or(String::new(), |all| format!(" of {}", self.unit.count(all)));
            let left = self.left(now).map_or(String::new(), |left| format!(", {left} left"));
            let (done, name, speed) = (self.unit.count(self.done), self.unit.name(), self.unit.speed(&self.pace));
            format!("{}: {done}{of} {name}{speed}{left}", self.title)
        })
    }

    /// The time left in words; `None` before the first unit, at the end, and if the number of units is not known.
    pub(crate) fn left(&self, now: Instant) -> Option<String> {
        let all = self.all.filter(|all| *all > self.done)?;
        self.pace.left(now, all).map(in_words)
    }

    /// Leaves the bar on the screen.
    pub(crate) fn keep(&self) {
        self.bar.abandon();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Pairs => "pairs",
            Self::Bytes => "MB",
        }
    }

    fn count(self, count: u64) -> String {
        match self {
            Self::Bytes => format!("{:.1}", count as f64 / 1e6),
            _ => count.to_string(),
        }
    }

    /// ", 12 pairs/s"; empty for steps, whose callers report their own speed.
    fn speed(self, pace: &Pace) -> String {
        match (self, pace.rate()) {
            (Self::Pairs, Some(rate)) if rate >= 10.0 => format!(", {rate:.0} pairs/s"),
            (Self::Pairs, Some(rate)) => format!(", {rate:.2} pairs/s"),
            (Self::Bytes, Some(rate)) => format!(", {:.1} MB/s", rate / 1e6),
            _ => String::new(),
        }
    }
}

/// A bar for a terminal of `columns` columns, not shown yet.
fn bar(pace: &Pace, (title, unit, all): (&str, Unit, Option<u64>), columns: u16) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(all, ProgressDrawTarget::hidden());
    let style = style(unit, all.is_some(), columns >= WIDE);
    bar.set_style(style.with_key("pace", Shown { unit, pace: pace.clone() }));
    bar.set_prefix(title.to_owned());
    bar.set_position(pace.done());
    bar
}

/// Title, bar, count, then times and speed, and last the message, which may be cut off.
fn style(unit: Unit, known: bool, wide: bool) -> ProgressStyle {
    let length = if wide { 30 } else { 10 };
    let count = if unit == Unit::Bytes { ("{bytes}", "{total_bytes}") } else { ("{pos}", "{len}") };
    let template = match known {
        true => format!("{{prefix}} {{bar:{length}}} {}/{} [{{elapsed}}{{pace}}] {{wide_msg}}", count.0, count.1),
        false => format!("{{prefix}} {} {} [{{elapsed}}{{pace}}] {{wide_msg}}", count.0, unit.name()),
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Time left and speed within a bar.
#[derive(Clone)]
struct Shown {
    unit: Unit,
    pace: Pace,
}

impl ProgressTracker for Shown {
    fn clone_box(&self) -> Box<dyn ProgressTracker> {
        Box::new(self.clone())
    }

    fn tick(&mut self, state: &ProgressState, now: Instant) {
        self.pace.at(now, state.pos());
    }

    fn reset(&mut self, _: &ProgressState, _: Instant) {}

    fn write(&self, state: &ProgressState, to: &mut dyn fmt::Write) {
        let all = state.len().filter(|all| *all > state.pos());
        if let Some(left) = all.and_then(|all| self.pace.left(Instant::now(), all)) {
            let _ = write!(to, ", {} left", in_words(left));
        }
        let _ = to.write_str(&self.unit.speed(&self.pace));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::tests::Memory;
    use indicatif::TermLike;
    use std::io;

    /// A terminal that keeps what is written.
    #[derive(Debug, Clone)]
    struct Screen(u16, Memory);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            self.0
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.1.add(text.as_bytes())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The bar in the middle of a run on a terminal of `columns` columns.
    fn drawn(columns: u16) -> String {
        let start = Instant::now() - Duration::from_secs(3600);
        let mut pace = Pace::new(start, 0);
        pace.at(start + Duration::from_secs(3600), 12_000);
        let bar = bar(&pace, ("train", Unit::Steps, Some(30_000)), columns);
        let screen = Screen(columns, Memory::default());
        bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        bar.set_message("12.34 pairs/s, loss 0.6931, accuracy 0.500, gradient norm 12.345, 1234 tokens/s");
        screen.1.clear();
        bar.force_draw();
        screen.1.text()
    }

    #[test]
    fn speed_and_time_left_have_room_in_80_columns() {
        let narrow = drawn(80);
        let shown = narrow.trim_end();
        assert!(shown.contains("12000/30000") && shown.contains("90 min left] 12.34 pairs/s"), "{shown}");
        assert!(console::measure_text_width(shown) <= 80, "{shown}");
        let wide = drawn(WIDE);
        assert!(wide.contains("90 min left] 12.34 pairs/s, loss 0.6931, accuracy 0.500"), "{wide}");
        assert!(console::measure_text_width(wide.trim_end()) <= usize::from(WIDE));
    }

    #[test]
    fn what_an_earlier_run_did_is_not_speed() {
        let mut progress = Progress::new("train", Unit::Steps, 1_000_000, 1_000_010);
        assert_eq!((progress.bar.position(), progress.bar.length()), (1_000_000, Some(1_000_010)));
        let later = progress.said + Duration::from_secs(2);
        progress.set(1_000_001, later);
        assert_eq!(progress.left(later).as_deref(), Some("18 s"));
    }

    #[test]
    fn a_process_that_shows_nothing_still_counts_and_says_a_line_every_half_minute() {
        // A test has not called `init`, like a program that uses the library alone.
        let mut progress = Progress::new("score", Unit::Pairs, 0, 100);
        assert!(progress.bar.is_hidden() && !shows_progress());
        let start = progress.said;
        progress.set(3, start + Duration::from_secs(6));
        assert_eq!(progress.plain_line(start + Duration::from_secs(29)), None);
        let line = progress.plain_line(start + Duration::from_secs(30)).unwrap();
        assert_eq!(line, "score: 3 of 100 pairs, 0.50 pairs/s, 3 min left");
        assert_eq!(progress.plain_line(start + Duration::from_secs(31)), None);
        let mut counting = Progress::new("tokenizing", Unit::Pairs, 0, None);
        let start = counting.said;
        counting.set(3000, start + Duration::from_secs(2));
        let line = counting.plain_line(start + Duration::from_secs(40)).unwrap();
        assert_eq!(line, "tokenizing: 3000 pairs, 1500 pairs/s");
    }
}
