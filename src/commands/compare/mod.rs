//! `haf-dist compare`: compares runs on the same test pairs, which are finished or which it trains first.

mod rates;
mod train;

use crate::checkpoint::Changed;
use crate::cli::{Compared, Comparing};
use crate::error::{Error, Result, expect_folder};
use crate::evaluate::comparison::{ComparedRun, Comparison};
use crate::metrics::read_pairs;
use crate::terminal;
use std::path::{Path, PathBuf};

/// Prints the comparison, as tables or as JSON lines. Needs only the runs' files: no model, and no other rank.
///
/// # Errors
/// A folder without a finished run, outcomes that have changed since they were written, runs that are not comparable; a failed
/// training.
pub(crate) fn run(comparing: &Comparing) -> Result<()> {
    let changed = Changed::allowed_if(comparing.allow_changed);
    match &comparing.runs {
        Compared::Finished(runs) if runs.len() < 2 => {
            Err(Error::input("there is only one run to compare").hint("name the folders of two or more runs"))
        }
        Compared::Finished(runs) => {
            let comparison = compare(runs, changed)?;
            if comparing.json {
                terminal::lines(comparison.json_lines())
            } else {
                terminal::out(comparison.markdown().trim_end())
            }
        }
        Compared::Trained(training) => train::run(training, changed, comparing.json),
    }
}

fn compare(runs: &[PathBuf], changed: Changed) -> Result<Comparison> {
    Comparison::of(&runs.iter().map(|run| open(run, changed)).collect::<Result<Vec<_>>>()?)
}

fn open(run: &Path, changed: Changed) -> Result<ComparedRun> {
    expect_folder(run)?;
    let (facts, outcomes) = read_pairs(run, changed)?;
    Ok(ComparedRun { name: run.display().to_string(), facts, outcomes })
}
