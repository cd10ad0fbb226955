//! Promise: the converted SmolLM2 is the real model: its next-token log-probs are those seen in llama.cpp's conversion.
//!
//! Needs the folder that launch/setup.sh makes.

use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::{AnswerSpan, TokenPair};
use haf_dist::engine::Engine;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use std::path::PathBuf;
use tch::{Device, Kind};
use tokenizers::Tokenizer;

fn folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".deps/SmolLM2-135M-Instruct");
    assert!(folder.exists(), "run ./launch/setup.sh first: it converts the model that this test reads");
    folder
}

#[test]
fn next_token_log_probs_after_a_question_are_the_known_ones() {
    let tokenizer = Tokenizer::from_file(folder().join("tokenizer.json")).unwrap();
    let ids = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    let prompt = ids("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(prompt.len(), 16);
    let known = [("The", -0.5874), ("L", -2.3166), ("Paris", -2.3446), ("La", -2.4839), ("Le", -3.2648)];
    let words: Vec<Vec<u32>> = known.iter().map(|(word, _)| ids(word)).collect();

    let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Evaluate, log_probs: true };
    let mut engine = Engine::new(Model::load(&folder(), options).unwrap(), false).unwrap();
    let rows = words.iter().enumerate().map(|(index, word)| PairToPack {
        index,
        pair: TokenPair {
            prefix: &prompt,
            chosen: word,
            rejected: &[],
            spans: AnswerSpan::of_pair(prompt.len(), prompt.len(), word.len(), 0),
            margin: 0.0,
            tied: false,
            domain: 0,
            prompt_hash: 0,
        },
        reference: [0.0; 2],
    });
    let batch = PackedBatch::new(rows, Packing::Shared, Device::Cpu);
    for (scores, (word, log_prob)) in engine.score(&batch, true).unwrap().iter().zip(known) {
        assert_eq!(scores.tokens[0], 1, "{word} is one token");
        assert!((scores.log_probs[0] - log_prob).abs() < 0.02, "{word}: {}", scores.log_probs[0]);
    }
}
