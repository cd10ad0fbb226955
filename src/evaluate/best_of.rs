//! Best of k: the expected reference ("gold") reward of the answer that a reward model picks from k of a prompt's n answers.
//!
//! With the answers sorted by the model's reward, the i-th of n is the best of k drawn without replacement with probability
//! C(n - i, k - 1) / C(n, k): the expectation over all draws is a weighted sum, without sampling. Among answers with equal
//! rewards, each is picked with the same probability.
//!
//! Not here: computing rewards.

use super::heads::Head;
use crate::data;
use crate::error::{Error, Result};
use crate::metrics::{table, with_interval};
use crate::statistics::{Interval, RESAMPLES, SEED, clustered_bootstrap};

use crate::data::{Message, Prompt};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Most answers of a prompt.
const MOST: usize = 1024;

/// Largest absolute gold reward, so that sums and squares stay finite.
const LARGEST: f64 = 1e100;

/// A prompt with scored answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The prompt.
    pub(crate) prompt: Prompt,
    /// The answers, two or more.
    pub(crate) responses: Vec<String>,
    /// Their gold rewards.
    pub(crate) gold: Vec<f64>,
}

/// Expected gold reward of the best of k by one head, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BestOf {
    /// k.
    pub(crate) best_of: usize,
    /// The head that picks; `gold` for the reference reward itself, an upper bound.
    pub(crate) scored_by: &'static str,
    /// Number of prompts.
    pub(crate) prompts: usize,
    /// Expected gold reward, mean over prompts.
    pub(crate) gold: f64,
    /// Lower end of its 95% interval over prompts.
    pub(crate) low: Option<f64>,
    /// Upper end.
    pub(crate) high: Option<f64>,
}

/// The rows of a file: `prompt` (a text, or messages), `responses` (texts), `scores` (as many numbers).
///
/// # Errors
/// A file that cannot be read, or a row of another form; the error names the row.
pub fn read(file: &Path, max_row_bytes: usize) -> Result<Vec<Scored>> {
    let mut rows = Vec::new();
    data::objects(file, max_row_bytes, |row| {
        rows.push(scored(&row)?);
        Ok(())
    })?;
    match rows.is_empty() {
        true => Err(Error::input(format!("{}: the file has no rows", file.display())).hint("best of k needs prompts")),
        false => Ok(rows),
    }
}

fn scored(row: &Map<String, Value>) -> Result<Scored> {
    let refuse = |message: &str| {
        Error::input(message)
            .hint("a row is {\"prompt\": \"...\", \"responses\": [\"...\", \"...\"], \"scores\": [0.5, 2]}")
    };
    let prompt = match row.get("prompt") {
        Some(Value::String(text)) => Prompt::Text(text.clone()),
        Some(list @ Value::Array(_)) => {
            let messages: Vec<Message> = serde_json::from_value(list.clone())
                .map_err(|error| refuse(&format!("`prompt` is not a list of messages: {error}")))?;
            Prompt::Messages(messages)
        }
        _ => return Err(refuse("`prompt` is missing, or neither a text nor a list of messages")),
    };
    let list =
        |key: &str| row.get(key).and_then(Value::as_array).ok_or_else(|| refuse(&format!("`{key}` is not a list")));
    let responses: Option<Vec<String>> =
        list("responses")?.iter().map(|text| text.as_str().map(String::from)).collect();
    let gold: Option<Vec<f64>> = list("scores")?.iter().map(Value::as_f64).collect();
    let responses = responses.ok_or_else(|| refuse("an entry of `responses` is not a text"))?;
    let gold = gold.ok_or_else(|| refuse("an entry of `scores` is not a number"))?;
    if let Some(score) = gold.iter().find(|score| score.abs() > LARGEST) {
        return Err(refuse(&format!("the score {score:e} is beyond {LARGEST:e}")));
    }
    match (responses.len(), gold.len()) {
        (answers, scores) if answers != scores => {
            Err(refuse(&format!("there are {answers} responses and {scores} scores")))
        }
        (0 | 1, _) => Err(refuse("there are fewer than two responses")),
        (answers, _) if answers > MOST => Err(refuse(&format!("there are {answers} responses, more than {MOST}"))),
        _ => Ok(Scored { prompt, responses, gold }),
    }
}

/// The expected gold reward of the answer with the highest of `rewards` among k, for k = 1..=`most`.
pub fn expected(rewards: &[f64], gold: &[f64], most: usize) -> Vec<f64> {
    let n = rewards.len();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&one, &other| rewards[other].total_cmp(&rewards[one]));
    // Gold rewards, sorted by reward from best to worst; answers with equal rewards get their mean.
    let mut sorted: Vec<f64> = order.iter().map(|&answer| gold[answer]).collect();
    let mut start = 0;
    while start < n {
        let alike = order[start..].iter().take_while(|&&answer| rewards[answer] == rewards[order[start]]).count();
        let mean = sorted[start..start + alike].iter().sum::<f64>() / alike as f64;
        sorted[start..start + alike].fill(mean);
        start += alike;
    }
    let expected_of = |k: usize| {
        // C(n - i - 1, k - 1) / C(n, k), from i = 0 on.
        let mut weight = k as f64 / n as f64;
        let mut sum = 0.0;
        for (i, gold) in sorted.iter().enumerate().take(n - k + 1) {
            sum += weight * gold;
            weight *= (n - i - k) as f64 / (n - i - 1).max(1) as f64;
        }
        sum
    };
    (1..=most).map(expected_of).collect()
}

/// The curves of some heads, for k up to the smallest number of answers of any prompt. `rows` and the heads' rewards are in the
/// same order: answer after answer, prompt after prompt. `prompts` has the hash of each row's prompt.
pub(crate) fn curves(rows: &[Scored], heads: &[Head], prompts: &[u64]) -> Vec<BestOf> {
    let most = rows.iter().map(|row| row.responses.len()).min().unwrap_or(0);
    let gold: Vec<f64> = rows.iter().flat_map(|row| row.gold.iter().copied()).collect();
    let of_heads = heads.iter().map(|head| (head.name, head.rewards.iter().map(|rewards| rewards[0]).collect()));
    let curve = |(scored_by, rewards): (&'static str, Vec<f64>)| {
        let mut first = 0;
        let by_prompt: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| {
                let own = first..first + row.responses.len();
                first = own.end;
                expected(&rewards[own], &row.gold, most)
            })
            .collect();
        (1..=most).map(move |k| {
            let values: Vec<f64> = by_prompt.iter().map(|expected| expected[k - 1]).collect();
            let interval = clustered_bootstrap(&values, prompts, RESAMPLES, SEED);
            BestOf {
                best_of: k,
                scored_by,
                prompts: values.len(),
                gold: values.iter().sum::<f64>() / values.len() as f64,
                low: interval.map(|interval| interval.low),
                high: interval.map(|interval| interval.high),
            }
        })
    };
    of_heads.chain([("gold", gold)]).flat_map(curve).collect()
}

/// A plain table with a row for each k and a column for each head.
pub(crate) fn curves_table(curves: &[BestOf]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for curve in curves {
        if !names.contains(&curve.scored_by) {
            names.push(curve.scored_by);
        }
    }
    let most = curves.iter().map(|point| point.best_of).max().unwrap_or(0);
    let header: Vec<&str> = std::iter::once("best of").chain(names.iter().copied()).collect();
    let row = |k: usize| {
        let points = curves.iter().filter(|point| point.best_of == k);
        let cell = |point: &BestOf| with_interval(Some(point.gold), Interval::between(point.low, point.high));
        std::iter::once(k.to_string()).chain(points.map(cell)).collect()
    };
    table(&header, 0, (1..=most).map(row))
}
