//! Log lines and progress bars on stderr, without disturbing each other; and the trace of `--trace`.
//!
//! Not here: metrics, which are data and go to files; results, which go to stdout; the progress of work (`progress.rs`); the
//! form of a trace (`trace.rs`).

mod pace;
mod progress;
mod trace;

pub(crate) use progress::{Progress, Unit};

use crate::error::{Error, Result};
use crate::terminal;
use indicatif::{MultiProgress, ProgressDrawTarget};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::{Event, Level, Subscriber, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// All bars of the process: it alone draws on stderr, so log lines go through it.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Bars are drawn at most this often.
const REDRAWS_PER_SECOND: u8 = 20;

/// What is shown on stderr, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Showing {
    /// This process's rank if there are several: each line then has `rank=N`.
    pub rank: Option<usize>,
    /// Whether spans can go to a file: see [`trace_to`]. If not, a span costs one comparison.
    pub traced: bool,
    /// How much is logged.
    pub detail: Detail,
    /// Whether lines are colored.
    pub color: Color,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Detail {
    /// Warnings and errors, no progress.
    Quiet,
    /// Messages and progress on rank 0, warnings and errors on the others.
    #[default]
    Normal,
    /// Debug messages on every rank.
    Verbose,
}

/// Whether lines are colored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// In files and pipes too.
    Always,
    /// Not even on a terminal.
    Never,
}

/// Starts logging and decides whether this process shows progress. Call it once, before any other thread logs; a second
/// call changes nothing.
///
/// Rank 0 and a process on its own log from `info`, the others from `warn`, unless `showing` says otherwise. `HAF_LOG`, else
/// `RUST_LOG`, set another filter.
///
/// # Errors
/// An invalid filter in the environment.
pub fn init(showing: Showing) -> Result<()> {
    let Showing { rank, traced, detail, color } = showing;
    let filter = filter(rank, detail, |name| std::env::var(name).ok())?;
    let shown = rank.unwrap_or(0) == 0 && detail != Detail::Quiet;
    let target = match terminal::Bars::of_stderr().filter(|_| shown) {
        Some(terminal) => ProgressDrawTarget::term_like_with_hz(Box::new(terminal), REDRAWS_PER_SECOND),
        None => ProgressDrawTarget::hidden(),
    };
    if BARS.set(MultiProgress::with_draw_target(target)).is_err() {
        return Ok(());
    }
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = match color {
        Color::Auto => io::stderr().is_terminal() && !plain,
        Color::Always => true,
        Color::Never => false,
    };
    // It fails only if a program that uses this library has its own subscriber, which then gets our events.
    let _ = tracing::subscriber::set_global_default(subscriber(rank, filter, color, || AboveBars, traced));
    Ok(())
}

/// This rank's trace file if `--trace` names `file`: that file, or one with the rank in its name if there are several ranks
/// (`trace.json`, `trace.rank-1.json`).
///
/// # Errors
/// It exists already: nothing is overwritten.
pub fn trace_path(file: &Path, rank: usize, world_size: usize) -> Result<PathBuf> {
    let path = trace::path_of(file, rank, world_size);
    if path.symlink_metadata().is_ok() {
        return Err(Error::input(format!("cannot write the trace: {} exists already", path.display()))
            .hint("nothing is overwritten: name another file for --trace, or move this one away"));
    }
    Ok(path)
}

/// From now on, every span that ends is written to a new file as an event of process `rank`; the file is created with the
/// first one. [`init`] must have been called with `traced`.
///
/// # Errors
/// The file cannot be created.
pub fn trace_to(path: &Path, rank: usize) -> Result<()> {
    trace::open(path, rank)
}

/// Completes the trace, if there is one; warns if it could not be written completely. Call it before the process ends, also
/// after an error.
pub fn finish_trace() {
    if let Err(error) = trace::close() {
        warn!("{error}");
    }
}

/// Whether bars are visible: on rank 0 if stderr is a terminal. If not, plain lines should report the progress.
pub(crate) fn shows_progress() -> bool {
    BARS.get().is_some_and(|bars| !bars.is_hidden())
}

/// Runs `print`, which writes to the terminal, with the bars hidden.
pub(crate) fn above_progress<T>(print: impl FnOnce() -> T) -> T {
    match BARS.get() {
        Some(bars) => bars.suspend(print),
        None => print(),
    }
}

/// The first filter set in the environment, else the rank's default.
fn filter(rank: Option<usize>, detail: Detail, variable: impl Fn(&str) -> Option<String>) -> Result<EnvFilter> {
    for name in ["HAF_LOG", "RUST_LOG"] {
        if let Some(text) = variable(name).filter(|text| !text.trim().is_empty()) {
            return EnvFilter::try_new(&text).map_err(|error| {
                Error::input(format!("{name}={text}: not a log filter: {error}"))
                    .hint("a level (error, warn, info, debug, trace), or haf_dist=debug, or several with commas")
            });
        }
    }
    Ok(EnvFilter::new(match detail {
        Detail::Quiet => "warn",
        Detail::Normal if rank.unwrap_or(0) == 0 => "info",
        Detail::Normal => "warn",
        Detail::Verbose => "info,haf_dist=debug",
    }))
}

fn subscriber<W>(
    rank: Option<usize>,
    filter: EnvFilter,
    color: bool,
    writer: W,
    traced: bool,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(color).event_format(Line { rank }).with_writer(writer);
    // Each layer has a filter of its own: HAF_LOG applies to log lines only.
    let mut layers = vec![lines.with_filter(filter).boxed()];
    if traced {
        layers.push(trace::layer::<Registry>().boxed());
    }
    Registry::default().with(layers)
}

/// stderr, above the bars. A log line is written in one piece, or not at all if stderr cannot be written.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above_progress(|| terminal::note_bytes(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `16:04:05Z INFO  rank=0 message key=value`; below info also the module.
struct Line {
    rank: Option<usize>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(to, "{hour:02}:{minute:02}:{second:02}Z ")?;
        if to.has_ansi_escapes() {
            write!(to, "\x1b[{}m{level:<5}\x1b[0m ", color(level))?;
        } else {
            write!(to, "{level:<5} ")?;
        }
        if let Some(rank) = self.rank {
            write!(to, "rank={rank} ")?;
        }
        if level > Level::INFO {
            write!(to, "{}: ", event.metadata().target())?;
        }
        context.format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}

/// The ANSI code of a level's color.
fn color(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A writer that keeps what is written.
    #[derive(Debug, Clone, Default)]
    pub(super) struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Memory {
        pub(crate) fn add(&self, bytes: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().write_all(bytes)
        }
        pub(crate) fn clear(&self) {
            self.0.lock().unwrap().clear();
        }
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that a process logs for one event at each level, without the time.
    fn lines(rank: Option<usize>, color: bool, variables: &[(&str, &str)]) -> Vec<String> {
        lines_of(rank, color, variables, false)
    }

    fn lines_of(rank: Option<usize>, color: bool, variables: &[(&str, &str)], traced: bool) -> Vec<String> {
        let memory = Memory::default();
        let writer = memory.clone();
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| v.to_string());
        let subscriber =
            subscriber(rank, filter(rank, Detail::Normal, variable).unwrap(), color, move || writer.clone(), traced);
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::trace_span!("not for the terminal").entered();
            tracing::debug!("detail");
            tracing::info!(step = 3, "saved");
            tracing::warn!("slow");
        });
        let text = memory.text();
        text.lines().map(|line| line.split_once("Z ").unwrap().1.to_string()).collect()
    }

    #[test]
    fn rank_0_logs_from_info_and_others_from_warn() {
        assert_eq!(lines(Some(0), false, &[]), ["INFO  rank=0 saved step=3", "WARN  rank=0 slow"]);
        assert_eq!(lines(Some(1), false, &[]), ["WARN  rank=1 slow"]);
        assert_eq!(lines(None, false, &[]), ["INFO  saved step=3", "WARN  slow"]);
    }

    #[test]
    fn haf_log_wins_over_rust_log() {
        let variables = [("RUST_LOG", "error"), ("HAF_LOG", "debug")];
        assert_eq!(lines(Some(1), false, &variables)[0], "DEBUG rank=1 haf_dist::logging::tests: detail");
        assert!(lines(None, false, &variables[..1]).is_empty(), "RUST_LOG alone counts");
    }

    #[test]
    fn a_trace_changes_no_log_line() {
        for level in ["error", "info", "debug", "trace"] {
            let variables = [("HAF_LOG", level)];
            assert_eq!(lines_of(None, false, &variables, true), lines(None, false, &variables), "{level}");
        }
    }

    #[test]
    fn color_only_where_asked_for() {
        assert!(lines(None, true, &[])[0].contains('\x1b'));
        assert!(!lines(None, false, &[]).concat().contains('\x1b'));
    }

    #[test]
    fn an_unreadable_filter_is_named() {
        let error = filter(None, Detail::Normal, |name| (name == "HAF_LOG").then(|| String::from("haf_dist=loud")))
            .unwrap_err();
        assert!(error.message.starts_with("HAF_LOG=haf_dist=loud: not a log filter"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
