//! `haf-dist eval --best-of`: the expected reference reward of the best of k answers, as picked by each head.
//!
//! Not here: the expectation (`evaluate/best_of.rs`).

use super::alike;
use super::scored::{Scored, open};
use crate::cli::Scoring;
use crate::comm::CommThread;
use crate::data::prepared::{LabeledPair, PreparedData};
use crate::data::tokenize::{Encoded, Encoder};
use crate::data::{Message, Pair, TemplateInputs};
use crate::error::{Error, Result};
use crate::evaluate::best_of::{self, curves, curves_table};
use crate::evaluate::heads::heads;
use crate::evaluate::scoring::{ToScore, score_pairs};
use crate::terminal;
use std::path::Path;
use tracing::warn;

/// Runs the command on every rank; `file` must be on this machine.
///
/// # Errors
/// A folder without a reward model, or rows that are not prompts with scored answers.
pub(crate) fn run(scoring: &Scoring, file: &Path, json: bool, comm: &CommThread) -> Result<()> {
    let opened = open(scoring, comm)?;
    let machine = opened.machine(comm)?;
    let work = comm.at_work(format!("reading {}", file.display()));
    let rows = comm.agree(best_of::read(file, opened.config.data.max_row_bytes))?;
    let encoded = rows.iter().enumerate().flat_map(|(number, row)| {
        let encoder = &opened.encoder;
        row.responses.iter().map(move |response| encode(encoder, (file, number + 1), row, response))
    });
    let sequences: Vec<LabeledPair> = comm.agree(encoded.collect())?;
    let cut = sequences.iter().filter(|one| one.pair.prompt_cut || one.pair.answer_cut).count();
    let data = comm.agree(PreparedData::from_pairs(sequences))?;
    alike::data("best of", &data, comm)?;
    drop(work);
    let references = opened.references(&data, &machine, comm)?;
    let Scored { mut engine, reported } = opened.model(references.is_some(), &machine, comm)?;
    let all: Vec<usize> = (0..data.len()).collect();
    let budget = scoring.tokens_per_micro_batch;
    let to_score = ToScore { data: &data, pairs: &all, tokens_per_micro_batch: budget, log_probs: reported.policy };
    let scores = score_pairs(&mut engine, to_score, comm, "best of")?;
    if comm.rank() != 0 {
        return Ok(());
    }
    if cut > 0 {
        let length = opened.encoder.rules().max_length;
        warn!("{cut} of {} answers are truncated to {length} tokens and scored without the rest", data.len());
    }
    let mut first = 0;
    let prompts: Vec<u64> = rows
        .iter()
        .map(|row| {
            let hash = data.pair(first).prompt_hash;
            first += row.responses.len();
            hash
        })
        .collect();
    if reported.weights.is_some() {
        opened.warn_of_dev_prompts("prompts", &prompts);
    }
    let curves = curves(&rows, &heads(&scores, &references.unwrap_or_default(), reported), &prompts);
    if json {
        return terminal::lines(curves.iter().filter_map(|point| serde_json::to_string(point).ok()));
    }
    terminal::out(format_args!(
        "expected gold reward of the best of k answers that each head picks, of {} prompts (95% by prompt); `gold` picks by \
         the gold reward itself, an upper bound\n{}",
        rows.len(),
        curves_table(&curves)
    ))
}

fn encode(
    encoder: &Encoder,
    (file, line): (&Path, usize),
    row: &best_of::Scored,
    response: &str,
) -> Result<LabeledPair> {
    let pair = Pair {
        prompt: row.prompt.clone(),
        inputs: TemplateInputs::default(),
        chosen: Message::answer(response),
        rejected: None,
        margin: None,
        tied: false,
        domain: None,
        line,
    };
    match encoder.encode(&pair).map_err(|error| error.at(file.display()))? {
        Encoded::Dropped(reason) => {
            Err(Error::input(format!("{}: row {line}: an answer cannot be scored: {reason}", file.display()))
                .hint("correct the row or leave it out: without the answer the result would differ"))
        }
        Encoded::Kept(pair) => Ok(LabeledPair { pair, margin: 0.0, tied: false, domain: "best of".to_owned() }),
    }
}
