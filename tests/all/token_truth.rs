//! Promise: a conversation becomes the token ids that Transformers' `apply_chat_template` gives, up to and including the
//! EOS at which the reward is read.
//!
//! The expected ids are made by token_truth/make_truth.py, for small tokenizers of our own in the manner of Llama 2,
//! Mistral, Llama 3, ChatML and Qwen 3, for SmolLM2's real one, and, with HAF_TOKEN_TRUTH set to a folder of that
//! script's making, for any other.

use haf_dist::config::{TemplateKind, Truncation};
use haf_dist::data::sequence::OwnedPair;
use haf_dist::data::tokenize::{Encoded, Encoder, Rules};
use haf_dist::data::{Message, Pair, Prompt, TemplateInputs};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt: Vec<Message>,
    answers: [String; 2],
    /// The prompt with its generation prompt; none where the template refuses the conversation.
    prompt_ids: Option<Vec<u32>>,
    ids: [Option<Vec<u32>>; 2],
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn encoder(folder: &Path) -> Encoder {
    Encoder::open(folder, Rules::new(TemplateKind::Chat, 1 << 16, 1 << 15, Truncation::Cut), 1 << 20).unwrap()
}

/// A single answer's tokens, or those of a pair; none where it is refused.
fn encode(encoder: &Encoder, case: &Case, chosen: usize, rejected: Option<usize>) -> Option<OwnedPair> {
    let pair = Pair {
        prompt: Prompt::Messages(case.prompt.clone()),
        inputs: TemplateInputs::default(),
        chosen: Message::answer(&case.answers[chosen]),
        rejected: rejected.map(|rejected| Message::answer(&case.answers[rejected])),
        margin: None,
        tied: false,
        domain: None,
        line: 1,
    };
    match encoder.encode(&pair) {
        Ok(Encoded::Kept(pair)) => Some(pair),
        Ok(Encoded::Dropped(reason)) => {
            assert!(case.answers.iter().any(String::is_empty), "{}: dropped: {reason}", case.name);
            None
        }
        Err(error) => {
            assert!(error.message.contains("the chat template cannot render"), "{error}");
            None
        }
    }
}

/// How many sequences were compared.
fn compare(folder: &Path, truth: &Path) -> usize {
    let encoder = encoder(folder);
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(truth).unwrap()).unwrap();
    let mut compared = 0;
    for case in &cases {
        let place = format!("{}: {}", truth.display(), case.name);
        for (answer, expected) in case.ids.iter().enumerate() {
            let single = encode(&encoder, case, answer, None);
            let shown = |ids: &[u32]| encoder.decode(ids).unwrap();
            let Some(expected) = expected else {
                assert!(single.is_none(), "{place}: Transformers refuses this conversation");
                continue;
            };
            let single = single.unwrap_or_else(|| panic!("{place}: refused"));
            assert_eq!(single.tokens, *expected, "{place}: {:?}\nnot {:?}", shown(&single.tokens), shown(expected));
            assert!(
                encoder.is_special(single.tokens[single.tokens.len() - 1]),
                "{place}: the reward is read at the EOS"
            );
            // The answer starts where the prompt alone ends, or with the token that the two share.
            let start = case.prompt_ids.as_deref().unwrap_or_default();
            let common = start.iter().zip(expected).take_while(|(one, other)| one == other).count();
            assert_eq!(single.spans[0].start, common, "{place}");
            compared += 1;
        }
        if let Some(pair) = encode(&encoder, case, 0, Some(1)) {
            let tokens = pair.as_token_pair(0.0, 0);
            let sequences = [tokens.chosen, tokens.rejected].map(|suffix| Some([tokens.prefix, suffix].concat()));
            assert_eq!(sequences, case.ids, "{place}: as a pair");
        }
    }
    compared
}

#[test]
fn ids_are_those_of_apply_chat_template() {
    for name in ["llama2", "mistral", "llama3", "chatml", "thinking"] {
        let folder = root().join("tests/token_truth").join(name);
        // Some templates refuse two turns of one role, or a system turn.
        assert!(compare(&folder, &folder.join("truth.json")) >= 22, "{name}");
    }
    let truth = root().join("tests/token_truth/smollm2/truth.json");
    assert_eq!(compare(&root().join(".deps/SmolLM2-135M-Instruct"), &truth), 30);
}

#[test]
fn ids_of_other_tokenizers_are_those_of_apply_chat_template() {
    let Some(folder) = std::env::var_os("HAF_TOKEN_TRUTH") else { return };
    for entry in std::fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        println!("{}: {} sequences equal", folder.display(), compare(&folder, &folder.join("truth.json")));
    }
}

/// Control: prompt and answer tokenized apart, as it once was, give other ids.
#[test]
fn tokenizing_prompt_and_answer_apart_would_be_noticed() {
    let folder = root().join("tests/token_truth/llama2");
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let ids = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    let [prompt, answer] = ["<s>[INST] q [/INST]", " They are 357. </s>"];
    assert_ne!([ids(prompt), ids(answer)].concat(), ids(&[prompt, answer].concat()));
}
