//! The lengths of pairs that a plan assumes: those of all pairs, those of the first pairs, or given ones.
//!
//! Not here: their cost (`plan/`).

use super::subject::Subject;
use crate::cli::Planning;
use crate::commands::setup;
use crate::config::Config;
use crate::data::batch::Packing;
use crate::data::formats;
use crate::data::prepared::PreparedData;
use crate::data::tokenize::{Encoded, Encoder};
use crate::error::Result;
use crate::plan::Job;
use crate::plan::workload::{self, PairTokens, Shape, largest, sum};
use crate::train::total_steps;

/// Pairs of each training file that are read if the data is not tokenized yet.
const LOOKED_AT: usize = 256;

/// Pairs of a run's steps that are looked through for the largest micro-batch.
const LOOKED_THROUGH: usize = 1 << 20;

/// The lengths of a run's pairs.
pub(crate) struct Lengths {
    /// Pairs in training order, repeated as often as needed.
    pub(crate) order: Vec<PairTokens>,
    /// The largest micro-batch of any rank.
    pub(crate) largest: Shape,
    /// Steps of the run, if known.
    pub(crate) steps: Option<usize>,
    /// The origin of the lengths, in words.
    pub(crate) source: String,
}

/// Lengths given on the command line, else those of the data if it and the tokenizer exist, else a guess.
///
/// # Errors
/// Broken data.
pub(crate) fn lengths(planning: &Planning, subject: &Subject, job: &Job) -> Result<Lengths> {
    let (config, ranks) = (&subject.config, planning.gpus);
    if let Some(pair) = planning.pair_tokens {
        return Ok(assumed(&[pair], format!("every pair has {} (--pair-tokens)", words(pair)), config, ranks));
    }
    let guess = |why: String| {
        let data = &config.data;
        let answer = (data.max_length - data.max_prompt_length).div_ceil(2);
        let pair = PairTokens { prefix: data.max_prompt_length / 2, chosen: answer, rejected: answer, apart: false };
        let source = format!("{why}: every pair has {}, half of the allowed lengths", words(pair));
        assumed(&[pair], source, config, ranks)
    };
    let Some(model) = &subject.tokenizer else {
        return Ok(guess("no data was read".to_owned()));
    };
    let tokenizer = model.join("tokenizer.json");
    let mut needed = config.data.train.iter().map(|source| &source.path).chain([&tokenizer]);
    if let Some(missing) = needed.find(|path| !path.exists()) {
        return Ok(guess(format!("{} does not exist", missing.display())));
    }
    let encoder = setup::encoder(config, model, &job.architecture)?;
    match PreparedData::open_if_made(&config.data.train, &encoder, &config.data.cache_dir)? {
        Some(data) => of_data(ranks, config, &data, job),
        None => of_first_pairs(ranks, config, &encoder, job),
    }
}

fn words(pair: PairTokens) -> String {
    format!("{} + {} + {} tokens (common prefix, chosen, rejected)", pair.prefix, pair.chosen, pair.rejected)
}

/// Lengths of the run's pairs, batch by batch, as the sampler draws them.
fn of_data(ranks: usize, config: &Config, data: &PreparedData, job: &Job) -> Result<Lengths> {
    let mut sampler = setup::sampler(config, data)?;
    let steps = total_steps(config, &sampler);
    let packing = Packing::shared(job.architecture.alike());
    let lengths = |pair: usize| workload::lengths(&data.pair(pair), packing);
    let looked = steps.min((LOOKED_THROUGH / config.train.pairs_per_step).max(1));
    let batches: Vec<Vec<PairTokens>> =
        (0..looked).map(|step| sampler.global_batch(step).into_iter().map(lengths).collect()).collect();
    let order: Vec<PairTokens> = batches.iter().flatten().copied().take(sampler.pairs_per_epoch()).collect();
    Ok(Lengths {
        largest: largest(&batches, ranks, job.tokens_per_micro_batch),
        steps: Some(steps),
        source: format!(
            "lengths of the data's pairs, {:.0} tokens on average; the largest micro-batch of {}",
            mean(&order),
            if looked == steps { "the run".to_owned() } else { format!("the first {looked} of {steps} steps") }
        ),
        order,
    })
}

/// Lengths of the first pairs of every training file.
fn of_first_pairs(ranks: usize, config: &Config, encoder: &Encoder, job: &Job) -> Result<Lengths> {
    let packing = Packing::shared(job.architecture.alike());
    let mut order = Vec::new();
    for source in &config.data.train {
        for pair in formats::first(source, LOOKED_AT)? {
            if let Encoded::Kept(pair) = encoder.encode(&pair)? {
                order.push(workload::lengths(&pair.as_token_pair(0.0, 0), packing));
            }
        }
    }
    if order.is_empty() {
        order.push(PairTokens {
            prefix: 0,
            chosen: config.data.max_length,
            rejected: config.data.max_length,
            apart: false,
        });
    }
    let source = format!(
        "lengths of the first {} pairs of the training files, {:.0} tokens on average; after `haf-dist prepare`, of all pairs",
        order.len(),
        mean(&order)
    );
    Ok(assumed(&order, source, config, ranks))
}

fn mean(order: &[PairTokens]) -> f64 {
    sum(order.iter().copied()).tokens as f64 / order.len().max(1) as f64
}

/// Assumes a full micro-batch, or one pair of maximal length without a common prefix, as the largest micro-batch.
fn assumed(order: &[PairTokens], source: String, config: &Config, ranks: usize) -> Lengths {
    let longest =
        PairTokens { prefix: 0, chosen: config.data.max_length, rejected: config.data.max_length, apart: false };
    let budget = config.train.tokens_per_micro_batch;
    let mine = config.train.pairs_per_step.div_ceil(ranks);
    let mut tokens = 0;
    let full = order.iter().cycle().take(mine).take_while(|pair| {
        let before = tokens;
        tokens += pair.total();
        before < budget
    });
    let bound = sum([longest]).or_larger(sum(full.copied()));
    Lengths {
        order: order.to_vec(),
        largest: bound,
        steps: config.train.steps,
        source: format!("{source}; memory for a full micro-batch or a pair of twice data.max_length"),
    }
}
