//! `haf-dist score`: a reward for every answer of a file, as JSON lines in the order of the file.
//!
//! Pairs give `reward_chosen, reward_rejected, logp_chosen, logp_rejected, implicit_chosen, implicit_rejected`; single
//! (prompt, answer) rows give `reward, logp, implicit`. `logp` needs a language-model head, `implicit` the starting
//! model too. A row that the encoder drops says why instead.

use super::scored::{Scored, open};
use crate::cli::{Output, Scoring};
use crate::comm::CommThread;
use crate::data::Pair;
use crate::data::formats;
use crate::data::prepared::{LabelledPair, PreparedData};
use crate::data::tokenize::Encoded;
use crate::error::{Error, Result, file_error};
use crate::evaluate::Reported;
use crate::head::PairScores;
use crate::loss::{self, AnswerLogProb};
use crate::scoring::score_pairs;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};

/// A row of the file: its place among the scored pairs, or why it is not scored.
enum Row {
    Scored { place: usize, pair: bool },
    Dropped(String),
}

/// Runs the command on every rank.
///
/// # Errors
/// A folder that is no reward model, bad data, or an output file that exists.
pub fn run(scoring: &Scoring, output: &Output, comm: &CommThread) -> Result<()> {
    // Before the work, so that nothing is computed for a file that cannot be written.
    let writer = comm.agree(if comm.rank() == 0 { writer(output).map(Some) } else { Ok(None) })?;
    let opened = comm.agree(open(scoring, comm))?;
    let pairs = comm.agree(formats::read_for_scoring(&scoring.data))?;
    let (rows, kept) = comm.agree(encode(&pairs, |pair| opened.encoder.encode(pair)))?;
    let mut lines = Vec::new();
    if kept.is_empty() {
        lines.extend(pairs.iter().zip(&rows).map(|(pair, row)| line(pair.line, row, &[], &[], None)));
    } else {
        let data = comm.agree(PreparedData::from_pairs(kept))?;
        let references = opened.references(&data, comm)?;
        let Scored { engine, reported } = opened.model(references.is_some(), comm)?;
        let budget = scoring.tokens_per_micro_batch;
        let log_probs = engine.model.vocabulary().is_some();
        let all: Vec<usize> = (0..data.len()).collect();
        let scores = score_pairs(&engine, (&data, &all), comm, budget, log_probs, "score")?;
        let references = references.unwrap_or_default();
        let policy = Policy { reported, log_probs };
        lines.extend(
            pairs.iter().zip(&rows).map(|(pair, row)| line(pair.line, row, &scores, &references, Some(policy))),
        );
    }
    let written = writer.map_or(Ok(()), |mut writer| write(&mut writer, &lines, output));
    comm.agree(written)
}

#[derive(Clone, Copy)]
struct Policy<'a> {
    reported: Reported<'a>,
    log_probs: bool,
}

fn writer(output: &Output) -> Result<Box<dyn Write>> {
    Ok(match output {
        Output::Stdout => Box::new(BufWriter::new(std::io::stdout())),
        Output::File(path) => {
            let file = File::create_new(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => Error::input(format!("{} exists already", path.display()))
                    .hint("nothing is overwritten: name another --output, or move the file away"),
                _ => file_error(path, "create", &error),
            })?;
            Box::new(BufWriter::new(file))
        }
    })
}

fn write(writer: &mut dyn Write, lines: &[Value], output: &Output) -> Result<()> {
    let written = lines.iter().try_for_each(|line| writeln!(writer, "{line}")).and_then(|()| writer.flush());
    match (written, output) {
        // A reader that has seen enough (`| head`) is no error.
        (Err(error), Output::Stdout) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        (Err(error), Output::Stdout) => Err(Error::runtime(format!("cannot write to standard output: {error}"))),
        (Err(error), Output::File(path)) => Err(file_error(path, "write", &error)),
        (Ok(()), _) => Ok(()),
    }
}

fn encode(pairs: &[Pair], encode: impl Fn(&Pair) -> Result<Encoded>) -> Result<(Vec<Row>, Vec<LabelledPair>)> {
    let (mut rows, mut kept) = (Vec::with_capacity(pairs.len()), Vec::new());
    for pair in pairs {
        rows.push(match encode(pair)? {
            Encoded::Dropped(reason) => Row::Dropped(reason.to_string()),
            Encoded::Kept(tokens) => {
                let domain = pair.domain.clone().unwrap_or_else(|| "score".to_string());
                kept.push(LabelledPair { pair: tokens, margin: pair.margin.unwrap_or(0.0), domain });
                Row::Scored { place: kept.len() - 1, pair: pair.rejected.is_some() }
            }
        });
    }
    Ok((rows, kept))
}

fn line(number: usize, row: &Row, scores: &[PairScores], references: &[[f32; 2]], policy: Option<Policy>) -> Value {
    let mut fields = Map::new();
    fields.insert("line".into(), json!(number));
    match (row, policy) {
        (Row::Scored { place, pair }, Some(policy)) => {
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
                }
            }
        }
        (Row::Dropped(reason), _) => {
            fields.insert("dropped".into(), json!(reason));
        }
        (Row::Scored { .. }, None) => {}
    }
    Value::Object(fields)
}
