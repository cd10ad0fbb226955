//! The log-probs of every answer's tokens, and each token's contribution to the answer's implicit reward.
//!
//! Not here: the tokens' positions in the text (`data/tokenize/offsets.rs`).

use super::Reported;
use super::parts;
use super::scoring::{FEWEST, Progress};
use crate::comm::CommThread;
use crate::config::PolicyLoss;
use crate::data::batch::{PackedBatch, Packing, PairToPack};
use crate::data::prepared::PreparedData;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Log-probs of the tokens of a pair's two answers; empty for the second answer of a row that has one.
pub(crate) type TokenLogProbs = [Vec<f64>; 2];

/// Log-probs of every answer's tokens, pair by pair in the data's order, on every rank. All ranks must call it.
///
/// # Errors
/// A lost rank, a model without a language-model head, or log-probs that are not finite.
pub(crate) fn token_log_probs(
    engine: &mut Engine,
    data: &PreparedData,
    comm: &CommThread,
    tokens_per_micro_batch: usize,
    title: &str,
) -> Result<Vec<TokenLogProbs>> {
    let packing = Packing::shared(engine.model.architecture.alike());
    let rows: Vec<usize> = (0..data.len()).map(|pair| packing.rows(&data.pair(pair))).collect();
    engine.reserve(parts::most_rows(&rows, comm, tokens_per_micro_batch));
    // A place for every token of every answer; the other ranks' places stay 0.
    let counts: Vec<[usize; 2]> = (0..data.len()).map(|pair| predicted(data, pair)).collect();
    let mut starts = vec![0; data.len() + 1];
    for (pair, [chosen, rejected]) in counts.iter().enumerate() {
        starts[pair + 1] = starts[pair] + chosen + rejected;
    }
    let mut numbers = vec![0f64; starts[data.len()]];
    let mut progress = Progress::new(title, data.len());
    let parts = parts::parts(&rows, engine, comm, tokens_per_micro_batch, FEWEST);
    let mut score = |members: &Vec<usize>| -> Result<()> {
        let items = members.iter().map(|&pair| PairToPack { index: pair, pair: data.pair(pair), reference: [0.0; 2] });
        let batch = PackedBatch::new(items, packing, engine.model.device);
        let log_probs = engine.token_log_probs(&batch)?;
        for (&pair, answers) in members.iter().zip(log_probs) {
            let flat: Vec<f64> = answers.concat();
            let place = &mut numbers[starts[pair]..starts[pair + 1]];
            if flat.len() != place.len() || !flat.iter().all(|number| number.is_finite()) {
                return Err(Error::runtime(format!("{title}: pair {} has log-probs that are not finite", pair + 1))
                    .hint("are the weight files damaged? try --dtype f32"));
            }
            place.copy_from_slice(&flat);
        }
        progress.add(members.len(), comm.world_size());
        Ok(())
    };
    for part in parts {
        comm.agree(parts::share(&rows, part, comm, tokens_per_micro_batch).iter().try_for_each(&mut score))?;
    }
    comm.sum_f64(&mut numbers)?;
    let read = |(pair, [chosen, _]): (usize, &[usize; 2])| {
        let (one, other) = numbers[starts[pair]..starts[pair + 1]].split_at(*chosen);
        [one.to_vec(), other.to_vec()]
    };
    Ok(counts.iter().enumerate().map(read).collect())
}

/// Number of predicted tokens in each of a pair's answers.
fn predicted(data: &PreparedData, pair: usize) -> [usize; 2] {
    let pair = data.pair(pair);
    let there = [true, !pair.rejected.is_empty()];
    [0, 1].map(|answer| {
        let span = pair.spans[answer];
        if there[answer] { span.end.saturating_sub(span.start.max(1)) } else { 0 }
    })
}

/// Contribution of each token to the answer's implicit reward: beta (log pi - log pi_ref), simpo's share of the mean, or the
/// log-prob. `reference` has as many entries as `policy`, or none if the loss needs none.
pub(crate) fn credits(reported: Reported, policy: &[f64], reference: &[f64]) -> Vec<f64> {
    let scale = match reported.loss.policy {
        PolicyLoss::Dpo | PolicyLoss::Hinge | PolicyLoss::Ipo => reported.loss.beta,
        PolicyLoss::Simpo => reported.loss.beta / policy.len().max(1) as f64,
        PolicyLoss::Sft => 1.0,
    };
    let credit = |(place, log_prob): (usize, &f64)| scale * (log_prob - reference.get(place).copied().unwrap_or(0.0));
    policy.iter().enumerate().map(credit).collect()
}
