//! What the program says: results on stdout, everything else on stderr. The only file that writes to either.
//!
//! The macros of the standard library panic where nobody can be written to; here a reader that has gone ends no work.
//! Tables are made to fit a terminal; files and pipes get whole lines. Not here: what a log line looks like and what bars
//! show (`logging/`).

mod fitted;
mod table;

pub use table::Table;

use crate::error::{Error, Result};
use console::Term;
use indicatif::TermLike;
use rustix::termios::tcgetwinsize;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

/// Writes a result to stdout, as a line or lines with a newline behind.
///
/// # Errors
/// stdout takes no more, such as a full disk. A reader that has seen enough (`| head`) is no error. Call it when what
/// the result is of has been saved.
pub fn out(text: impl Display) -> Result<()> {
    lines([text])
}

/// [`out`] for many lines.
///
/// # Errors
/// As [`out`].
pub fn lines(lines: impl IntoIterator<Item = impl Display>) -> Result<()> {
    let stdout = io::stdout();
    let width = columns(&stdout);
    let mut writer = BufWriter::new(stdout.lock());
    written(match width {
        Some(width) => write_lines(&mut writer, lines.into_iter().map(|line| fitted::fitted(&line.to_string(), width))),
        None => write_lines(&mut writer, lines),
    })
}

/// The variable that says how wide tables may be, in files and pipes too; 0: whole lines.
pub const COLUMNS: &str = "HAF_COLUMNS";

/// Width that tables have to fit, in columns; `None` for whole lines: in a file or a pipe, and on a terminal that does not
/// say how wide it is.
///
/// `HAF_COLUMNS` says it everywhere, COLUMNS on a terminal.
fn columns(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let number = |name: &str| std::env::var(name).ok()?.trim().parse::<usize>().ok();
    fitting(number(COLUMNS), number("COLUMNS"), width(stream))
}

fn fitting(everywhere: Option<usize>, on_terminal: Option<usize>, terminal: Option<usize>) -> Option<usize> {
    everywhere.or_else(|| terminal.map(|width| on_terminal.unwrap_or(width))).filter(|width| *width > 0)
}

/// Width of a terminal that somebody sees. Open MPI writes to files through terminals of no width.
fn width(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let size = tcgetwinsize(stream).ok().filter(|_| stream.is_terminal())?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// Width that tables have to fit where stdout and stderr are both terminals.
pub fn columns_of_both() -> Option<usize> {
    width(&io::stderr()).and(columns(&io::stdout()))
}

/// Whether stdout is a terminal that somebody sees, which takes colours.
pub fn is_seen() -> bool {
    width(&io::stdout()).is_some()
}

/// Writes lines, each with a newline behind, and flushes.
///
/// # Errors
/// What the writer meets.
pub fn write_lines(writer: &mut impl Write, lines: impl IntoIterator<Item = impl Display>) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(writer, "{line}")).and_then(|()| writer.flush())
}

fn written(outcome: io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::runtime(format!("cannot write to standard output: {error}"))
                .hint("what was to be saved is saved; is the disk full that standard output goes to?"))
        }
        _ => Ok(()),
    }
}

/// Writes to stderr, with a newline behind. Nothing comes of a failure: there is nobody left to tell, and no work ends
/// for want of a reader.
pub fn note(text: impl Display) {
    let mut text = text.to_string();
    if let Some(width) = columns(&io::stderr()) {
        text = fitted::fitted(&text, width);
    }
    // In one piece, or the lines of several ranks mix.
    note_bytes(format!("{text}\n").as_bytes());
}

/// [`note`] for text that brings its newlines along.
pub fn note_bytes(bytes: &[u8]) {
    let _ = io::stderr().write_all(bytes);
}

/// The terminal that stderr is, where bars are drawn: drawing on one that has gone (a session that was closed) is not an
/// error, which indicatif would panic over.
#[derive(Debug)]
pub struct Bars(Term);

impl Bars {
    /// The terminal behind stderr; `None` where it is none that bars can be drawn on.
    pub fn of_stderr() -> Option<Self> {
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

    /// Promise: tables fit a terminal, and files and pipes get whole lines unless they are asked for.
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
