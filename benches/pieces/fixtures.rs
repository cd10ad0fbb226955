//! What the benchmarks work on: SmolLM2-135M's shapes with random weights, and pairs of typical hh-rlhf lengths.
//!
//! Legend: T tokens, D width, V vocabulary.

use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::{AnswerSpan, TokenPair};
use haf_dist::model::architecture::Architecture;
use haf_dist::model::decoder::Part;
use haf_dist::model::segment::{Segment, Use};
use tch::{Device, Kind, Tensor};

/// Tokens of a pair: common prefix, chosen, rejected.
pub const PREFIX: usize = 160;
/// Tokens of each answer.
pub const ANSWER: usize = 50;
/// Pairs of a micro-batch: 2,080 tokens, about the default of `haf-dist bench`.
pub const PAIRS: usize = 8;
/// Every kind that is measured, and what it is called.
pub const KINDS: [(Kind, &str); 2] = [(Kind::BFloat16, "bf16"), (Kind::Float, "f32")];

/// SmolLM2-135M's architecture with so many blocks.
pub fn architecture(layers: usize) -> Architecture {
    let config = serde_json::json!({
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": true,
        "max_position_embeddings": 8192,
    });
    Architecture::parse(&config.to_string()).expect("a config that is known")
}

/// Random values of a model's size, the same in every run.
pub fn random(shape: &[i64], kind: Kind) -> Tensor {
    tch::manual_seed(7);
    (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.04).to_kind(kind)
}

/// A part's segment with random weights, ready to train.
pub fn segment(part: Part, architecture: &Architecture, kind: Kind) -> Segment {
    let mut segment = Segment::new(part.parameters(architecture), kind, Device::Cpu, Use::Train);
    for index in 0..segment.parameters().len() {
        let value = random(&segment.parameters()[index].shape, Kind::Float);
        segment.set(index, &value);
    }
    segment
}

/// Tokens of so many pairs, of one length each.
pub struct Pairs {
    tokens: Vec<Vec<u32>>,
}

impl Pairs {
    /// So many pairs.
    pub fn new(count: usize) -> Self {
        let token = |pair: usize, place: usize| ((pair * 7919 + place * 104_729) % 49_152) as u32;
        let length = PREFIX + 2 * ANSWER;
        Self { tokens: (0..count).map(|pair| (0..length).map(|place| token(pair, place)).collect()).collect() }
    }

    /// Packs them all into one batch.
    pub fn pack(&self, packing: Packing) -> PackedBatch {
        let pairs = self.tokens.iter().enumerate().map(|(index, tokens)| {
            let (prefix, answers) = tokens.split_at(PREFIX);
            let (chosen, rejected) = answers.split_at(ANSWER);
            let prompt_hash = index as u64;
            let spans = AnswerSpan::of_pair(PREFIX, PREFIX, ANSWER, ANSWER);
            let pair = TokenPair { prefix, chosen, rejected, spans, margin: 0.0, tied: false, domain: 0, prompt_hash };
            PairToPack { index, pair, reference: [-60.0, -62.0] }
        });
        PackedBatch::new(pairs, packing, Device::Cpu)
    }
}
