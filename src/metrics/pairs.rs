//! `test-pairs.jsonl`: what a finished run's two heads say of each test pair, so that runs can be compared pair by pair.
//!
//! The first line tells what run it was ([`RunFacts`]) after a hash of all that follows the hash, then a line a pair
//! ([`PairOutcome`]) in the order of the data. It is written last, and whole or not at all: a run that has this file is
//! complete.
//!
//! Not here: what the outcomes of several runs come to (`evaluate/comparison/`).

use crate::checkpoint::{Changed, Weights};
use crate::config::Config;
use crate::error::{Error, Result, file_error};
use crate::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// The file, inside a run's folder.
pub const TEST_PAIRS: &str = "test-pairs.jsonl";

/// What stands before the hash.
const HASH: &str = "{\"xxh3\":\"";

/// What run the outcomes are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFacts {
    /// Updates done before the test.
    pub step: usize,
    /// Hash of what the order of the training pairs depends on.
    pub data_key: String,
    /// Hash of the starting model's files.
    pub model_key: String,
    /// The two heads' sum as it was fitted on the run's dev pairs; absent where there are no dev pairs or not both heads.
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
    /// Hash of its prompt: pairs of one prompt are not independent.
    pub prompt: String,
    /// The name it is reported under.
    pub domain: String,
    /// Difference of reward, chosen minus rejected.
    pub margin: Option<f64>,
    /// Difference of the policy's implicit reward, chosen minus rejected.
    pub implicit_margin: Option<f64>,
}

/// Writes the file of a run. One that is there, of the same run before it was resumed, is replaced.
///
/// # Errors
/// A failed write.
pub fn write_pairs(run: &Path, facts: &RunFacts, outcomes: &[PairOutcome]) -> Result<()> {
    let path = run.join(TEST_PAIRS);
    let failed = |error: serde_json::Error| file_error(&path, "write", &error.into());
    // Without its opening brace, which stands before the hash.
    let mut hashed = serde_json::to_string(facts).map_err(failed)?.split_off(1) + "\n";
    for outcome in outcomes {
        hashed += &serde_json::to_string(outcome).map_err(failed)?;
        hashed.push('\n');
    }
    files::write_atomic(&path, format!("{}{hashed}", hash_of(&hashed)).as_bytes())
}

/// How the file begins: the hash (XXH3, 64 bits) of the text behind it.
fn hash_of(text: &str) -> String {
    format!("{HASH}{:016x}\",", xxh3_64(text.as_bytes()))
}

/// Reads the file of a run.
///
/// # Errors
/// [`Error::input`] for a folder that holds no finished run, a file that has changed since it was written (a warning where
/// `changed` allows it), or a line that this program has not written.
pub fn read_pairs(run: &Path, changed: Changed) -> Result<(RunFacts, Vec<PairOutcome>)> {
    let path = run.join(TEST_PAIRS);
    let text = files::read_to_string(&path).map_err(|error| {
        file_error(&path, "read", &error).hint(
            "a run writes it at its very end: go on with --resume, and name test pairs ([data] test) in its config",
        )
    })?;
    // Without a hash: of a version that wrote none.
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
