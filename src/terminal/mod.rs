//! The program's output: results on stdout, everything else on stderr. The only file that writes to either.
//!
//! The macros of the standard library panic if a write fails; here a closed pipe does not end the work. Tables are fitted
//! to a terminal; files and pipes get whole lines. Not here: the form of log lines and progress bars (`logging/`).

mod fitted;
mod table;

pub(crate) use table::Table;

use crate::error::{Error, Result};
use console::Term;
use indicatif::TermLike;
use rustix::termios::tcgetwinsize;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

/// Writes a result to stdout, followed by a newline. Call it once the work that it reports is saved.
///
/// # Errors
/// stdout cannot be written, for example because a disk is full. A reader that stops early (`| head`) is not an error.
pub(crate) fn out(text: impl Display) -> Result<()> {
    lines([text])
}

/// [`out`] for many lines.
///
/// # Errors
/// As [`out`].
pub(crate) fn lines(lines: impl IntoIterator<Item = impl Display>) -> Result<()> {
    let stdout = io::stdout();
    let width = columns(&stdout);
    let mut writer = BufWriter::new(stdout.lock());
    written(match width {
        Some(width) => write_lines(&mut writer, lines.into_iter().map(|line| fitted::fitted(&line.to_string(), width))),
        None => write_lines(&mut writer, lines),
    })
}

/// The environment variable with the width of tables, in files and pipes too; 0: whole lines.
pub(crate) const COLUMNS: &str = "HAF_COLUMNS";

/// Width that tables must fit, in columns; `None` for whole lines: in a file or a pipe, and on a terminal of unknown width.
///
/// `HAF_COLUMNS` sets it everywhere, COLUMNS on a terminal.
fn columns(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let number = |name: &str| std::env::var(name).ok()?.trim().parse::<usize>().ok();
    fitting(number(COLUMNS), number("COLUMNS"), width(stream))
}

fn fitting(everywhere: Option<usize>, on_terminal: Option<usize>, terminal: Option<usize>) -> Option<usize> {
    everywhere.or_else(|| terminal.map(|width| on_terminal.unwrap_or(width))).filter(|width| *width > 0)
}

/// Width of a visible terminal. Open MPI writes to files through terminals of width 0.
fn width(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let size = tcgetwinsize(stream).ok().filter(|_| stream.is_terminal())?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// Width that tables must fit if stdout and stderr are both terminals.
pub(crate) fn columns_of_both() -> Option<usize> {
    width(&io::stderr()).and(columns(&io::stdout()))
}

/// Whether stdout is a visible terminal, which can show colors.
pub(crate) fn is_seen() -> bool {
    width(&io::stdout()).is_some()
}

/// Writes lines, each followed by a newline, and flushes.
///
/// # Errors
/// Those of the writer.
pub(crate) fn write_lines(writer: &mut impl Write, lines: impl IntoIterator<Item = impl Display>) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(writer, "{line}")).and_then(|()| writer.flush())
}

fn written(outcome: io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::runtime(format!("cannot write to standard output: {error}"))
                .hint("all files are saved; is the disk full to which standard output is written?"))
        }
        _ => Ok(()),
    }
}

/// Writes to stderr, followed by a newline. A failure is ignored: there is nobody to tell, and the work must not end because
/// nobody reads.
pub(crate) fn note(text: impl Display) {
    let mut text = text.to_string();
    if let Some(width) = columns(&io::stderr()) {
        text = fitted::fitted(&text, width);
    }
    // In one write, or the lines of several ranks mix.
    note_bytes(format!("{text}\n").as_bytes());
}

/// [`note`] for text that already has its newlines.
pub(crate) fn note_bytes(bytes: &[u8]) {
    let _ = io::stderr().write_all(bytes);
}

/// The terminal behind stderr, on which bars are drawn. A failed write (after the session was closed) is not an error, since
/// indicatif would panic on one.
#[derive(Debug)]
pub(crate) struct Bars(Term);

impl Bars {
    /// The terminal behind stderr; `None` if bars cannot be drawn on it.
    pub(crate) fn of_stderr() -> Option<Self> {
        let term = Term::buffered_stderr();
        // As indicatif decides for its own targets.
        (term.is_term() && !console::is_dumb()).then_some(Self(term))
    }

    fn forgive(outcome: io::Result<()>) -> io::Result<()> {
        let _ = outcome;
        Ok(())
    }
}

impl TermLike for Bars {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        Self::forgive(self.0.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        Self::forgive(self.0.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        Self::forgive(self.0.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        Self::forgive(self.0.move_cursor_left(n))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        Self::forgive(self.0.write_line(text))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        Self::forgive(self.0.write_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        Self::forgive(self.0.clear_line())
    }

    fn flush(&self) -> io::Result<()> {
        Self::forgive(self.0.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: tables fit a terminal, and files and pipes get whole lines unless a width is set for them.
    #[test]
    fn tables_fit_a_terminal_and_files_get_whole_lines() {
        assert_eq!(fitting(None, None, Some(80)), Some(80));
        assert_eq!(fitting(None, Some(100), Some(80)), Some(100));
        assert_eq!(fitting(None, Some(100), None), None, "a file");
        assert_eq!(fitting(Some(60), Some(100), None), Some(60));
        assert_eq!(fitting(Some(0), Some(100), Some(80)), None);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(width(&file), None);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is() {
        assert_eq!(written(Err(io::ErrorKind::BrokenPipe.into())), Ok(()));
        let full = written(Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert!(full.exit_code() == 1 && full.message.starts_with("cannot write to standard output"), "{full}");
    }
}
