//! `haf-dist eval`: metrics, calibration, effect of length and doubtful pairs, for a checkpoint or any folder with a reward model
//! of a known family, on a file of pairs.
//!
//! Not here: benchmarks (`suites.rs`), best of k (`best_of.rs`).

use super::closing::concise;
use super::scored::{Opened, Scored, open};
use super::setup;
use crate::cli::{Evaluating, Scoring};
use crate::comm::CommThread;
use crate::config::Source;
use crate::data::prepared::PreparedData;
use crate::engine::Engine;
use crate::error::Result;
use crate::evaluate::doubt::{self, Disagreement, Doubts, Mistake, Shown};
use crate::evaluate::heads::{Head, heads, side_by_side, side_by_side_table};
use crate::evaluate::report::{Report, marks, tables};
use crate::evaluate::scoring::{ToScore, score_apart, score_pairs};
use crate::evaluate::swap::{self, Swap};
use crate::evaluate::verdict::verdict;
use crate::evaluate::{self, Reported};
use crate::metrics::{EvaluationMetrics, evaluation_table};
use crate::terminal;
use serde::Serialize;
use std::path::PathBuf;
use tracing::info;

/// The text of a pair: prompt, chosen, rejected.
type Text = [String; 3];

/// Runs the command on every rank; `files` are the data on this machine, each with the name that its pairs are reported under.
///
/// # Errors
/// A folder without a reward model, or bad data; a swap check that fails.
pub(crate) fn run(
    evaluating: &Evaluating,
    scoring: &Scoring,
    files: &[(PathBuf, Option<String>)],
    comm: &CommThread,
) -> Result<()> {
    let opened = open(scoring, comm)?;
    let machine = opened.machine(comm)?;
    let max_row_bytes = opened.config.data.max_row_bytes;
    let source = |(file, domain): &(PathBuf, Option<String>)| {
        let (format, columns, domain) = (evaluating.format, scoring.columns(), domain.clone());
        Source { format, columns, domain, max_row_bytes, ..Source::new(file) }
    };
    let sources: Vec<Source> = files.iter().map(source).collect();
    let data = setup::prepared(&sources, "eval", &opened.config, &opened.encoder, comm)?;
    if comm.rank() == 0 {
        setup::show_report(&[data.report()]);
    }
    let references = opened.references(&data, &machine, comm)?;
    let Scored { mut engine, reported } = opened.model(references.is_some(), &machine, comm)?;
    let budget = scoring.tokens_per_micro_batch;
    let all: Vec<usize> = (0..data.len()).collect();
    let to_score = ToScore { data: &data, pairs: &all, tokens_per_micro_batch: budget, log_probs: reported.policy };
    let scores = score_pairs(&mut engine, to_score, comm, "eval")?;
    let references = references.unwrap_or_default();
    let all_heads = heads(&scores, &references, reported);
    let swaps = match evaluating.check_swap {
        true => {
            let exchanged = exchanged(&mut engine, &data, &references, reported, budget, comm)?;
            let bounds = swap::bounds(engine.model.kind, &heads(&scores, &[], reported), reported.weights);
            let both = all_heads.iter().zip(&exchanged).zip(bounds);
            Some(both.map(|((head, turned), bound)| Swap::of("eval", head, turned, bound)).collect::<Vec<_>>())
        }
        false => None,
    };
    if comm.rank() == 0 {
        let rows = evaluate::metrics("eval", opened.state.step, &data, &scores, &references, reported);
        print(evaluating, &opened, &data, &rows, &all_heads, swaps.as_deref())?;
    }
    // On every rank, so that all end with the same code.
    swap::judge(swaps.as_deref().unwrap_or_default())
}

fn print(
    evaluating: &Evaluating,
    opened: &Opened,
    data: &PreparedData,
    rows: &[EvaluationMetrics],
    heads: &[Head],
    swaps: Option<&[Swap]>,
) -> Result<()> {
    let texts = (0..data.len()).map(|pair| text(opened, data, pair)).collect::<Result<Vec<Text>>>()?;
    let marks: Vec<_> = texts.iter().map(|[_, chosen, rejected]| [marks(chosen), marks(rejected)]).collect();
    let reports: Vec<Report> = evaluate::reports("eval", data, heads, &marks, opened.fitted.as_ref());
    let prompts: Vec<u64> = (0..data.len()).map(|pair| data.pair(pair).prompt_hash).collect();
    opened.warn_of_dev_prompts("pairs", &prompts);
    let fitted_on = opened.fitted_on();
    let combined = heads.iter().any(|head| head.name == "combined");
    let compared = if combined { side_by_side("eval", heads, &prompts, fitted_on.as_ref()) } else { Vec::new() };
    let doubts: Vec<Doubts> = heads.iter().map(|head| Doubts::of("eval", head)).collect();
    let disagreement = Disagreement::of("eval", heads);
    let shown = |pair: usize| {
        let [prompt, chosen, rejected] = texts[pair].clone();
        Shown { pair: pair + 1, domain: data.domains()[data.pair(pair).domain].clone(), prompt, chosen, rejected }
    };
    let disagreed = doubt::disagreed(heads, evaluating.worst, shown);
    let mistakes: Vec<Mistake> = heads.iter().flat_map(|head| doubt::mistakes(head, evaluating.worst, shown)).collect();
    if evaluating.json {
        lines(rows)?;
        lines(&reports)?;
        lines(&compared)?;
        lines(&doubts)?;
        lines(disagreement.as_slice())?;
        lines(&disagreed)?;
        lines(&mistakes)?;
        return lines(swaps.unwrap_or_default());
    }
    terminal::out(format_args!("{}\n\n{}", evaluation_table(&concise(rows)), tables(&reports)))?;
    if let Some(weights) = opened.fitted.as_ref().and_then(|fitted| fitted.combined).filter(|_| combined) {
        let left_out = match compared.first().map_or(Some(data.len()), |row| row.left_out) {
            Some(pairs) => format!("{pairs} pairs with a dev prompt are left out here"),
            None => {
                "dev prompts are not recognized with another --template, so some may be among these pairs".to_owned()
            }
        };
        let text = if compared.is_empty() { "no other pair is left".to_owned() } else { side_by_side_table(&compared) };
        terminal::out(format_args!(
            "\nheads side by side; combined = {:.4} reward + {:.4} implicit, fitted on the run's dev pairs; {left_out}\n\
             {text}",
            weights.reward, weights.implicit
        ))?;
    }
    terminal::out(format_args!("\n{}", doubt::tables(&doubts, disagreement.as_ref(), &disagreed, &mistakes)))?;
    if let Some(swaps) = swaps {
        terminal::out(format_args!("\n{}", swap::text(swaps)))?;
    }
    match rows.first().and_then(verdict) {
        Some(verdict) => terminal::out(format_args!("\n{}", verdict.sentence)),
        None => Ok(()),
    }
}

fn lines(rows: &[impl Serialize]) -> Result<()> {
    terminal::lines(rows.iter().filter_map(|row| serde_json::to_string(row).ok()))
}

/// A pair's texts as the model reads them.
fn text(opened: &Opened, data: &PreparedData, index: usize) -> Result<Text> {
    let pair = data.pair(index);
    let start = pair.spans[0].start.min(pair.spans[1].start);
    let answer = |rest: &[u32], place: usize| {
        let sequence = [pair.prefix, rest].concat();
        let span = pair.spans[place];
        opened.encoder.decode(&sequence[span.start.min(span.end)..span.end])
    };
    let prompt = opened.encoder.decode(&pair.prefix[..start.min(pair.prefix.len())])?;
    Ok([prompt, answer(pair.chosen, 0)?, answer(pair.rejected, 1)?])
}

/// The heads' rewards with the sides of every pair exchanged, computed again in other batches. All ranks must call it.
fn exchanged(
    engine: &mut Engine,
    data: &PreparedData,
    references: &[[f32; 2]],
    reported: Reported,
    budget: usize,
    comm: &CommThread,
) -> Result<Vec<Head>> {
    let turned = comm.agree(data.exchanged())?;
    let all: Vec<usize> = (0..turned.len()).collect();
    let to_score = ToScore { data: &turned, pairs: &all, tokens_per_micro_batch: budget, log_probs: reported.policy };
    let scores = score_apart(engine, to_score, comm, "sides exchanged")?;
    let references: Vec<[f32; 2]> = references.iter().map(|[chosen, rejected]| [*rejected, *chosen]).collect();
    if comm.rank() == 0 {
        info!("computed every pair again with its sides exchanged, each answer with its own copy of the prompt");
    }
    Ok(heads(&scores, &references, reported))
}
