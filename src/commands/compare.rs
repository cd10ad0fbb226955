//! `haf-dist compare`: the results of finished runs of different objectives on the same test pairs.

use crate::checkpoint::Changed;
use crate::error::{Error, Result};
use crate::evaluate::comparison::{ComparedRun, Comparison};
use crate::metrics::read_pairs;
use crate::terminal;
use std::path::{Path, PathBuf};

/// Prints the comparison, as tables or as JSON lines. Needs the runs' files alone: no model, and no other rank.
///
/// # Errors
/// A folder without a finished run, outcomes that have changed since they were written, or runs that are not comparable.
pub fn run(runs: &[PathBuf], changed: Changed, json: bool) -> Result<()> {
    let runs = runs.iter().map(|run| open(run, changed)).collect::<Result<Vec<_>>>()?;
    if runs.len() < 2 {
        return Err(Error::input("one run alone is compared with nothing").hint("name the folders of two or more runs"));
    }
    let comparison = Comparison::of(&runs)?;
    if json { terminal::lines(comparison.json_lines()) } else { terminal::out(comparison.markdown().trim_end()) }
}

fn open(run: &Path, changed: Changed) -> Result<ComparedRun> {
    let (facts, outcomes) = read_pairs(run, changed)?;
    Ok(ComparedRun { name: run.display().to_string(), facts, outcomes })
}
