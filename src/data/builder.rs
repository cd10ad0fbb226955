//! Collects tokenized pairs into the columns of a prepared file: in memory, or in temporary files.
//!
//! Not here: reading them back (`prepared.rs`).

use crate::data::AnswerSpan;
use crate::data::container::{Contents, Growing, Tensor};
use crate::data::report::{Counts, SourceReport};
use crate::data::sequence::OwnedPair;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// A tokenized pair with its label and domain.
#[derive(Debug, Clone, PartialEq)]
pub struct LabeledPair {
    /// Its tokens.
    pub pair: OwnedPair,
    /// How much better the chosen answer is, in units of reward; 0 if the source does not say.
    pub margin: f32,
    /// Neither answer is better: half a label in each direction.
    pub tied: bool,
    /// Name under which it is reported.
    pub domain: String,
}

/// The growing columns.
pub(super) struct Builder {
    tokens: Growing<u32>,
    /// Where each pair starts, and the end of the last.
    offsets: Growing<u64>,
    prefix: Growing<u32>,
    chosen: Growing<u32>,
    rejected: Growing<u32>,
    /// Eight numbers per pair: start, end, reward and second reward of each answer; without a second reward, it equals the
    /// first.
    spans: Growing<u32>,
    margin: Growing<f32>,
    tied: Growing<u32>,
    domain: Growing<u32>,
    prompt_hash: Growing<u64>,
    source: Growing<u32>,
    domains: Vec<String>,
    domain_numbers: BTreeMap<String, u32>,
    /// One entry per source: pushed when the source is done.
    pub(crate) reports: Vec<SourceReport>,
}

impl Builder {
    /// With columns in temporary files in `folder`, or in memory without one.
    pub(crate) fn new(folder: Option<&Path>) -> Result<Self> {
        let mut builder = Self {
            tokens: Growing::new(folder)?,
            offsets: Growing::new(folder)?,
            prefix: Growing::new(folder)?,
            chosen: Growing::new(folder)?,
            rejected: Growing::new(folder)?,
            spans: Growing::new(folder)?,
            margin: Growing::new(folder)?,
            tied: Growing::new(folder)?,
            domain: Growing::new(folder)?,
            prompt_hash: Growing::new(folder)?,
            source: Growing::new(folder)?,
            domains: Vec::new(),
            domain_numbers: BTreeMap::new(),
            reports: Vec::new(),
        };
        builder.offsets.push(&[0])?;
        Ok(builder)
    }

    /// Adds a pair and counts it.
    pub(crate) fn push(&mut self, source: usize, labeled: &LabeledPair, counts: &mut Counts) -> Result<()> {
        let LabeledPair { pair, margin, tied, domain } = labeled;
        let (all, sum) = (pair.tokens.len(), pair.prefix + pair.chosen + pair.rejected);
        if all != sum || pair.chosen == 0 || !spans_fit(pair) {
            return Err(Error::runtime(format!("a pair of {all} tokens whose parts do not add up")));
        }
        let domain_number = *self.domain_numbers.entry(domain.clone()).or_insert_with(|| {
            self.domains.push(domain.clone());
            self.domains.len() as u32 - 1
        });
        self.tokens.push(&pair.tokens)?;
        self.offsets.push(&[self.tokens.len() as u64])?;
        self.prefix.push(&[pair.prefix as u32])?;
        self.chosen.push(&[pair.chosen as u32])?;
        self.rejected.push(&[pair.rejected as u32])?;
        for AnswerSpan { start, end, reward, second_reward } in pair.spans {
            self.spans.push(&[start, end, reward, second_reward.unwrap_or(reward)].map(|position| position as u32))?;
        }
        self.margin.push(&[*margin])?;
        self.tied.push(&[u32::from(*tied)])?;
        self.domain.push(&[domain_number])?;
        self.prompt_hash.push(&[pair.prompt_hash])?;
        self.source.push(&[source as u32])?;
        counts.keep(pair, *tied, domain);
        Ok(())
    }

    /// All columns, for a file or for memory.
    pub(crate) fn contents(self) -> Result<Contents> {
        let tensors: BTreeMap<&str, Tensor> = BTreeMap::from([
            ("tokens", self.tokens.done()?),
            ("offsets", self.offsets.done()?),
            ("prefix", self.prefix.done()?),
            ("chosen", self.chosen.done()?),
            ("rejected", self.rejected.done()?),
            ("spans", self.spans.done()?),
            ("margin", self.margin.done()?),
            ("tied", self.tied.done()?),
            ("domain", self.domain.done()?),
            ("prompt_hash", self.prompt_hash.done()?),
            ("source", self.source.done()?),
        ]);
        let json = |error: serde_json::Error| Error::runtime(format!("metadata: {error}"));
        let texts = BTreeMap::from([
            ("domains".to_owned(), serde_json::to_string(&self.domains).map_err(json)?),
            ("report".to_owned(), serde_json::to_string(&self.reports).map_err(json)?),
        ]);
        Ok(Contents { tensors, texts })
    }
}

/// Whether every position of a pair's answers lies within its sequence.
fn spans_fit(pair: &OwnedPair) -> bool {
    let fits = |(span, suffix): (&AnswerSpan, usize)| {
        let length = pair.prefix + suffix;
        let reads = span.reward < length && span.second_reward.is_none_or(|position| position < length);
        suffix == 0 || (span.start <= length && span.end <= length && reads)
    };
    pair.spans.iter().zip([pair.chosen, pair.rejected]).all(fits)
}
