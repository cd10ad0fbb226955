//! `haf-dist score`: a reward for every answer in a file, as JSON lines in the order of the file.
//!
//! Pairs give `reward_chosen, reward_rejected, logp_chosen, logp_rejected, implicit_chosen, implicit_rejected`; single
//! (prompt, answer) rows give `reward, logp, implicit`. `logp` needs a language-model head, `implicit` also the starting model. A
//! row longer than the maximal length also has `"cut": "prompt"`, `"answer"` or `"prompt and answer"`, for the part that lost
//! tokens; a row that the encoder drops has only `"dropped"` with the reason. `--combined` adds the heads' weighted sum,
//! `--tokens` each token's contribution to its answer's implicit reward.

use super::alike;
use super::scored::{Opened, Scored, open};
use crate::checkpoint::Weights;
use crate::cli::{Output, Scoring};
use crate::comm::CommThread;
use crate::config::Source;
use crate::data::Pair;
use crate::data::formats;
use crate::data::prepared::{LabeledPair, PreparedData};
use crate::data::report::unused_keys;
use crate::data::tokenize::{Encoded, Encoder, Unread};
use crate::engine::head::PairScores;
use crate::error::{Error, Result, file_error};
use crate::evaluate::Reported;
use crate::evaluate::scoring::{ToScore, score_pairs};
use crate::evaluate::tokens::{self, TokenLogProbs, token_log_probs};
use crate::files;
use crate::loss::{self, AnswerLogProb};
use crate::machine::Machine;
use crate::terminal;
use serde_json::{Map, Value, json};
use std::io::{self, BufWriter};
use std::ops::Range;
use std::path::Path;
use tempfile::NamedTempFile;
use tracing::{info, warn};

/// A row of the file: its place among the scored pairs and the part that was cut, or why it is not scored.
enum Row {
    Scored { place: usize, pair: bool, cut: Option<&'static str> },
    Dropped(String),
}

/// The rows of a file.
struct FileRows {
    pairs: Vec<Pair>,
    /// One for each of `pairs`.
    rows: Vec<Row>,
    /// The pairs to score.
    kept: Vec<LabeledPair>,
}

/// Fields to add to each line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Added {
    /// The two heads' weighted sum.
    pub(crate) combined: bool,
    /// Each token's contribution to the implicit reward.
    pub(crate) tokens: bool,
}

/// Runs the command on every rank.
///
/// # Errors
/// A folder without a reward model, bad data, or an output file that exists.
pub(crate) fn run(scoring: &Scoring, output: &Output, added: Added, comm: &CommThread) -> Result<()> {
    // First, so that nothing is computed for a file that cannot be written.
    let reserved = comm.agree(if comm.rank() == 0 { reserve(output) } else { Ok(None) })?;
    let opened = open(scoring, comm)?;
    let machine = opened.machine(comm)?;
    let file = read(scoring, &opened, comm)?;
    let count = file.rows.len();
    let cut = file.rows.iter().filter(|row| matches!(row, Row::Scored { cut: Some(_), .. })).count();
    let lines = match file.kept.is_empty() {
        true => file.pairs.iter().zip(&file.rows).map(|(pair, row)| line(pair.line, row, &[], &[], None)).collect(),
        false => scored(&opened, &machine, scoring.tokens_per_micro_batch, file, added, comm)?,
    };
    if comm.rank() == 0 && cut > 0 {
        let length = opened.config.data.max_length;
        let limit = match scoring.max_length {
            Some(_) => format!("--max-length {length}"),
            None => format!("the model's limit of {length} tokens"),
        };
        warn!(
            "{cut} of {count} rows are truncated to {limit} and scored without the rest: \"cut\" in their lines names the part \
             that was truncated"
        );
    }
    comm.agree(match (comm.rank(), output) {
        (0, Output::Stdout) => terminal::lines(&lines),
        (0, Output::File(path)) => reserved.map_or(Ok(()), |file| save(file, &lines, path)),
        _ => Ok(()),
    })
}

/// Reads and tokenizes the file. All ranks must call it.
fn read(scoring: &Scoring, opened: &Opened, comm: &CommThread) -> Result<FileRows> {
    let _work = comm.at_work(format!("reading {}", scoring.data.display()));
    let max_row_bytes = opened.config.data.max_row_bytes;
    let source = Source { columns: scoring.columns(), max_row_bytes, ..Source::new(&scoring.data) };
    let formats::Scorable { pairs, mut unused } = comm.agree(formats::read_for_scoring(&source))?;
    let mut unread = Unread::default();
    pairs.iter().for_each(|pair| opened.encoder.count_unread(pair, &mut unread));
    unused.extend(unread.rows());
    if let Some(keys) = unused_keys(&unused, pairs.len()).filter(|_| comm.rank() == 0) {
        info!("{}: {keys}", scoring.data.display());
    }
    let (rows, kept) = comm
        .agree(encode(&pairs, |pair| opened.encoder.encode(pair)).map_err(|error| error.at(scoring.data.display())))?;
    Ok(FileRows { pairs, rows, kept })
}

/// A line for each row. All ranks must call it.
fn scored(
    opened: &Opened,
    machine: &Machine,
    budget: usize,
    FileRows { pairs, rows, kept }: FileRows,
    added: Added,
    comm: &CommThread,
) -> Result<Vec<Value>> {
    let data = comm.agree(PreparedData::from_pairs(kept))?;
    alike::data("scored", &data, comm)?;
    let references = opened.references(&data, machine, comm)?;
    let by_token = if added.tokens { Some(opened.token_references(&data, machine, comm)?) } else { None };
    let Scored { mut engine, reported } = opened.model(references.is_some(), machine, comm)?;
    let weights = if added.combined { Some(weights(&reported)?) } else { None };
    let reported = Reported { weights, ..reported };
    let log_probs = engine.order.vocabulary().is_some();
    let all: Vec<usize> = (0..data.len()).collect();
    let to_score = ToScore { data: &data, pairs: &all, tokens_per_micro_batch: budget, log_probs };
    let scores = score_pairs(&mut engine, to_score, comm, "score")?;
    let credits = match by_token {
        None => Vec::new(),
        Some(references) if reported.policy => {
            let policy = token_log_probs(&mut engine, &data, comm, budget, "tokens")?;
            credits(reported, &policy, &references.unwrap_or_default())
        }
        Some(_) => {
            return Err(Error::input("--tokens: there are no implicit rewards to split by token")
                .hint("they need a run with a policy loss, and its starting model at the run's model.path"));
        }
    };
    let credits = comm.agree(placed(&pairs, &rows, credits, &opened.encoder))?;
    let references = references.unwrap_or_default();
    let policy = Policy { reported, log_probs };
    let with_credits = |((pair, row), credits): ((&Pair, &Row), Map<String, Value>)| {
        let mut line = line(pair.line, row, &scores, &references, Some(policy));
        if let Some(fields) = line.as_object_mut() {
            fields.extend(credits);
        }
        line
    };
    Ok(pairs.iter().zip(&rows).zip(credits).map(with_credits).collect())
}

#[derive(Clone, Copy)]
struct Policy<'a> {
    reported: Reported<'a>,
    log_probs: bool,
}

/// Each token's contribution to its answer's implicit reward, pair by pair.
fn credits(reported: Reported, policy: &[TokenLogProbs], references: &[TokenLogProbs]) -> Vec<TokenLogProbs> {
    let of = |(pair, policy): (usize, &TokenLogProbs)| {
        let reference = |answer: usize| references.get(pair).map_or(&[][..], |answers| &answers[answer]);
        [0, 1].map(|answer| tokens::credits(reported, &policy[answer], reference(answer)))
    };
    policy.iter().enumerate().map(of).collect()
}

/// A row's fields for its tokens: their credits, and their ranges of characters in the answer.
fn placed(
    pairs: &[Pair],
    rows: &[Row],
    credits: Vec<TokenLogProbs>,
    encoder: &Encoder,
) -> Result<Vec<Map<String, Value>>> {
    let of_row = |(pair, row): (&Pair, &Row)| -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        let Row::Scored { place, .. } = row else { return Ok(fields) };
        let Some(credits) = credits.get(*place) else { return Ok(fields) };
        let answers = match &pair.rejected {
            Some(rejected) => {
                vec![("tokens_chosen", &pair.chosen, &credits[0]), ("tokens_rejected", rejected, &credits[1])]
            }
            None => vec![("tokens", &pair.chosen, &credits[0])],
        };
        for (name, answer, credits) in answers {
            let offsets = encoder.answer_offsets(pair, answer)?;
            let token = |(credit, range): (&f64, Range<usize>)| json!({"start": range.start, "end": range.end, "credit": credit});
            fields.insert(name.to_owned(), credits.iter().zip(offsets).map(token).collect());
        }
        Ok(fields)
    };
    pairs.iter().zip(rows).map(of_row).collect()
}

/// The weights for `--combined`.
fn weights(reported: &Reported) -> Result<Weights> {
    let hint = "train both losses with dev pairs ([data] dev): every checkpoint then has the weights in haf_dist.json";
    match (reported.weights, reported.reward && reported.policy) {
        (Some(weights), true) => Ok(weights),
        (None, _) => Err(Error::input("--combined: the checkpoint has no weights for the sum of its heads").hint(hint)),
        (Some(_), false) => Err(Error::input("--combined: there are no implicit rewards to add")
            .hint("they need the starting model at the run's model.path")),
    }
}

/// A file with a temporary name in the output's folder, which gets its own when it is complete: a command that fails leaves
/// nothing, and what a killed one leaves goes with the next that writes there.
fn reserve(output: &Output) -> Result<Option<NamedTempFile>> {
    let Output::File(path) = output else { return Ok(None) };
    if path.symlink_metadata().is_ok() {
        return Err(exists(path));
    }
    files::clear_unfinished_beside(path);
    files::unfinished_file(path).map(Some).map_err(|error| file_error(path, "create", &error))
}

fn exists(path: &Path) -> Error {
    Error::input(format!("{} exists already", path.display()))
        .hint("nothing is overwritten: name another --output, or move the file away")
}

fn save(file: NamedTempFile, lines: &[Value], path: &Path) -> Result<()> {
    let mut writer = BufWriter::new(file);
    let written = terminal::write_lines(&mut writer, lines)
        .and_then(|()| writer.into_inner().map_err(|error| error.into_error()));
    let file = written.map_err(|error| file_error(path, "write", &error))?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => Err(exists(path)),
        Err(failed) => Err(file_error(path, "write", &failed.error)),
    }
}

fn encode(pairs: &[Pair], encode: impl Fn(&Pair) -> Result<Encoded>) -> Result<(Vec<Row>, Vec<LabeledPair>)> {
    let (mut rows, mut kept) = (Vec::with_capacity(pairs.len()), Vec::new());
    for pair in pairs {
        rows.push(match encode(pair)? {
            Encoded::Dropped(reason) => Row::Dropped(reason.to_string()),
            Encoded::Kept(tokens) => {
                let cut = match (tokens.prompt_cut, tokens.answer_cut) {
                    (true, true) => Some("prompt and answer"),
                    (true, false) => Some("prompt"),
                    (false, true) => Some("answer"),
                    (false, false) => None,
                };
                let domain = pair.domain.clone().unwrap_or_else(|| "score".to_string());
                kept.push(LabeledPair { pair: tokens, margin: pair.margin.unwrap_or(0.0), tied: false, domain });
                Row::Scored { place: kept.len() - 1, pair: pair.rejected.is_some(), cut }
            }
        });
    }
    Ok((rows, kept))
}

fn line(number: usize, row: &Row, scores: &[PairScores], references: &[[f32; 2]], policy: Option<Policy>) -> Value {
    let mut fields = Map::new();
    fields.insert("line".into(), json!(number));
    match (row, policy) {
        (Row::Scored { place, pair, cut }, Some(policy)) => {
            let answers = if *pair { ["_chosen", "_rejected"].as_slice() } else { [""].as_slice() };
            let scores = &scores[*place];
            for (answer, suffix) in answers.iter().enumerate() {
                fields.insert(format!("reward{suffix}"), json!(scores.rewards[answer]));
                if policy.log_probs {
                    fields.insert(format!("logp{suffix}"), json!(scores.log_probs[answer]));
                }
                if policy.reported.policy {
                    let seen = AnswerLogProb {
                        policy: scores.log_probs[answer],
                        reference: references.get(*place).map_or(0.0, |row| f64::from(row[answer])),
                        tokens: scores.tokens[answer],
                    };
                    let implicit = loss::implicit_reward(policy.reported.loss, seen);
                    fields.insert(format!("implicit{suffix}"), json!(implicit));
                    if let Some(weights) = policy.reported.weights {
                        let combined = weights.combine(scores.rewards[answer], implicit);
                        fields.insert(format!("combined{suffix}"), json!(combined));
                    }
                }
            }
            if let Some(cut) = cut {
                fields.insert("cut".into(), json!(cut));
            }
        }
        (Row::Dropped(reason), _) => {
            fields.insert("dropped".into(), json!(reason));
        }
        (Row::Scored { .. }, None) => {}
    }
    Value::Object(fields)
}
