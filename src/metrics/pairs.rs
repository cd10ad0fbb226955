//! `test-pairs.jsonl`: both heads' margins on each test pair of a finished run, so that runs can be compared pair by pair.
//!
//! The first line describes the run ([`RunFacts`]), after a hash of all that follows the hash; then comes one line per pair
//! ([`PairOutcome`]) in the order of the data. It is written last, and whole or not at all: a run that has this file is
//! complete.
//!
//! Not here: comparing the outcomes of several runs (`evaluate/comparison/`).

use crate::checkpoint::{Changed, Weights};
use crate::config::Config;
use crate::error::{Error, Result, file_error};
use crate::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// The file, inside a run's folder.
pub(crate) const TEST_PAIRS: &str = "test-pairs.jsonl";

/// The text before the hash.
const HASH: &str = "{\"xxh3\":\"";

/// The run that the outcomes are from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFacts {
    /// Updates done before the test.
    pub step: usize,
    /// Hash of what the order of the training pairs depends on.
    pub data_key: String,
    /// Hash of the starting model's files.
    pub model_key: String,
    /// The two heads' weighted sum as fitted on the run's dev pairs; absent without dev pairs or without both heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combined: Option<Weights>,
    /// The resolved configuration.
    pub config: Config,
}

/// The result of one test pair. A number that is not computed, or not finite, is null in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairOutcome {
    /// Hash of the pair's tokens.
    pub pair: String,
    /// Hash of its prompt: pairs with the same prompt are not independent.
    pub prompt: String,
    /// The name it is reported under.
    pub domain: String,
    /// Difference of reward, chosen minus rejected.
    pub margin: Option<f64>,
    /// Difference of the policy's implicit reward, chosen minus rejected.
    pub implicit_margin: Option<f64>,
}

/// Writes a run's file, and replaces one that the same run wrote before it was resumed.
///
/// # Errors
/// A failed write.
pub fn write_pairs(run: &Path, facts: &RunFacts, outcomes: &[PairOutcome]) -> Result<()> {
    let path = run.join(TEST_PAIRS);
    let failed = |error: serde_json::Error| file_error(&path, "write", &error.into());
    // Without the opening brace, which comes before the hash.
    let mut hashed = serde_json::to_string(facts).map_err(failed)?.split_off(1) + "\n";
    for outcome in outcomes {
        hashed += &serde_json::to_string(outcome).map_err(failed)?;
        hashed.push('\n');
    }
    files::write_atomic(&path, format!("{}{hashed}", hash_of(&hashed)).as_bytes())
}

/// The start of the file: the hash (XXH3, 64 bits) of the text after it.
fn hash_of(text: &str) -> String {
    format!("{HASH}{:016x}\",", xxh3_64(text.as_bytes()))
}

/// Reads a run's file.
///
/// # Errors
/// [`Error::input`] for a folder without a finished run, a file that has changed since it was written (a warning if
/// `changed` allows it), or a line that this program did not write.
pub fn read_pairs(run: &Path, changed: Changed) -> Result<(RunFacts, Vec<PairOutcome>)> {
    let path = run.join(TEST_PAIRS);
    let text = files::read_to_string(&path).map_err(|error| {
        file_error(&path, "read", &error).hint(
            "a run writes it at its very end: continue it with --resume, and name test pairs ([data] test) in its config",
        )
    })?;
    // Earlier versions wrote no hash.
    let (hash, text) = match text.split_at_checked(hash_of("").len()) {
        Some((hash, rest)) if hash.starts_with(HASH) => (Some(hash.to_owned()), format!("{{{rest}")),
        _ => (None, text),
    };
    if hash.is_some_and(|hash| hash != hash_of(&text[1..])) {
        changed.judge(Err(Error::input(format!("{} has changed since it was written", path.display()))))?;
    }
    let mut lines = text.lines().enumerate();
    let facts = match lines.next() {
        Some(first) => parse(&path, first)?,
        None => return Err(Error::input(format!("{} is empty", path.display())).hint("repeat the run")),
    };
    Ok((facts, lines.map(|line| parse(&path, line)).collect::<Result<_>>()?))
}

fn parse<T: DeserializeOwned>(path: &Path, (index, line): (usize, &str)) -> Result<T> {
    serde_json::from_str(line).map_err(|error| {
        Error::input(format!("{}:{}: not a line of a run's test pairs: {error}", path.display(), index + 1))
            .hint("runs of another version of haf-dist, or edited files, cannot be compared: repeat the run")
    })
}
