//! Promise: the reward is read where `data.reward_at` says, log-probs end at the EOS wherever that is, and a pair's two
//! answers are read exactly as each would be alone.

use haf_dist::config::{RewardAt, TemplateKind, Truncation};
use haf_dist::data::sequence::OwnedPair;
use haf_dist::data::tokenize::{Encoded, Encoder, Rules};
use haf_dist::data::{AnswerSpan, Message, Pair, Prompt, TemplateInputs};
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;
use std::sync::LazyLock;

/// ChatML: a line break follows the EOS, and a generation prompt ends with one.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                      '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// A template that writes no EOS.
const BARE: &str = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
const START: u32 = 257;
const EOS: u32 = 258;
/// One token for two line breaks: an answer that starts with a line break shares its first token with the prompt.
const TWO_BREAKS: u32 = 256;
const LINE_BREAK: u32 = 10;

/// Bytes, two special tokens, and one merge.
fn folder(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0;
    let mut vocabulary = serde_json::Map::new();
    let mut line_break = String::new();
    for byte in 0..=255u8 {
        // The byte-level alphabet of GPT-2: bytes that do not print are code points from 256 on.
        let letter = if printable(byte) {
            char::from(byte)
        } else {
            others += 1;
            char::from_u32(255 + others).unwrap()
        };
        if u32::from(byte) == LINE_BREAK {
            line_break = letter.to_string();
        }
        vocabulary.insert(letter.to_string(), json!(byte));
    }
    vocabulary.insert(line_break.repeat(2), json!(TWO_BREAKS));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [special(START, "<|im_start|>"), special(EOS, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [[line_break, line_break]]},
    });
    let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

fn encoder(folder: &Path, reward_at: RewardAt, max_length: usize, skipped_at_end: Option<u32>) -> Encoder {
    let rules = Rules::new(TemplateKind::Chat, max_length, max_length - 1, Truncation::Cut);
    Encoder::open(folder, Rules { reward_at, skipped_at_end, ..rules }, 300).unwrap()
}

fn pair(chosen: &str, rejected: Option<&str>) -> Pair {
    Pair {
        prompt: Prompt::Text("q".into()),
        inputs: TemplateInputs::default(),
        chosen: Message::answer(chosen),
        rejected: rejected.map(Message::answer),
        margin: None,
        tied: false,
        domain: None,
        line: 1,
    }
}

fn kept(encoder: &Encoder, pair: &Pair) -> OwnedPair {
    match encoder.encode(pair).unwrap() {
        Encoded::Kept(kept) => kept,
        Encoded::Dropped(reason) => panic!("dropped: {reason}"),
    }
}

/// A single answer's tokens and where they are read.
fn alone(encoder: &Encoder, answer: &str) -> (Vec<u32>, AnswerSpan) {
    let kept = kept(encoder, &pair(answer, None));
    (kept.tokens, kept.spans[0])
}

/// Both sequences of a pair.
fn together(encoder: &Encoder, chosen: &str, rejected: &str) -> [(Vec<u32>, AnswerSpan); 2] {
    let owned = kept(encoder, &pair(chosen, Some(rejected)));
    let tokens = owned.as_token_pair(0.0, 0);
    let [one, other] = [tokens.chosen, tokens.rejected].map(|suffix| [tokens.prefix, suffix].concat());
    [(one, owned.spans[0]), (other, owned.spans[1])]
}

#[test]
fn the_reward_is_read_at_the_eos_at_the_end_or_at_both() {
    let folder = folder(CHATML);
    let read = |reward_at| alone(&encoder(folder.path(), reward_at, 100, None), "yes");
    let (to_eos, span) = read(RewardAt::Eos);
    let length = to_eos.len();
    assert_eq!((to_eos[length - 1], span), (EOS, AnswerSpan::to_end(length - 4, length)));

    let (whole, at_end) = read(RewardAt::End);
    assert_eq!(whole, [&to_eos[..], &[LINE_BREAK]].concat());
    assert_eq!(at_end, AnswerSpan { reward: length, ..span }, "the line break is no part of the answer");

    let (twice, both) = read(RewardAt::Both);
    assert_eq!((twice, both), (whole, AnswerSpan { second_reward: Some(length), ..span }));
}

#[test]
fn a_folder_that_pads_with_its_eos_is_read_before_it() {
    // As Transformers does: the rightmost token that is not pad_token_id.
    let folder = folder(&CHATML.replace("<|im_end|>\\n", "<|im_end|>"));
    let read = |pad| alone(&encoder(folder.path(), RewardAt::End, 100, pad), "yes").1.reward;
    assert_eq!(read(None) - 1, read(Some(EOS)));
    assert_eq!(read(None), read(Some(LINE_BREAK)));
}

#[test]
fn a_template_without_an_eos_gets_one_unless_its_own_rendering_is_asked_for() {
    let folder = folder(BARE);
    let read = |reward_at| alone(&encoder(folder.path(), reward_at, 100, None), "yes");
    let (to_eos, span) = read(RewardAt::Eos);
    assert_eq!(to_eos[to_eos.len() - 2..], [u32::from(b's'), EOS]);
    let (whole, at_end) = read(RewardAt::End);
    assert_eq!(whole, [&to_eos[..to_eos.len() - 1], &[LINE_BREAK]].concat());
    assert_eq!((at_end.reward, at_end.end), (whole.len() - 1, whole.len() - 1));
    assert_eq!(at_end.start, span.start);
    // The rendering goes on with a line break where the EOS would stand: there is no sequence that has both places.
    let error = encoder(folder.path(), RewardAt::Both, 100, None).encode(&pair("yes", None)).unwrap_err();
    assert!(error.exit_code() == 2 && error.hint.is_some_and(|hint| hint.contains("reward_at")));
}

#[test]
fn a_sequence_that_is_cut_is_rewarded_at_its_new_end() {
    let folder = folder(CHATML);
    let (whole, _) = alone(&encoder(folder.path(), RewardAt::Both, 100, None), "yes");
    for (lost, reward, second) in [(1, whole.len() - 2, None), (3, whole.len() - 4, None)] {
        let length = whole.len() - lost;
        let rules = Rules::new(TemplateKind::Chat, length, length - 1, Truncation::Cut);
        // No token of the prompt may go.
        let rules = Rules { reward_at: RewardAt::Both, ..rules };
        let encoder = Encoder::open(folder.path(), rules, 300).unwrap();
        let owned = kept(&encoder, &pair("yes", None));
        assert_eq!(owned.tokens, whole[..length]);
        assert!(owned.answer_cut && !owned.prompt_cut);
        assert_eq!((owned.spans[0].reward, owned.spans[0].second_reward), (reward, second));
    }
}

#[test]
fn an_answer_that_merges_with_the_prompt_starts_before_the_other_one() {
    // "\n\n" is one token: the first answer's first token also holds the prompt's line break.
    let folder = folder(CHATML);
    let encoder = encoder(folder.path(), RewardAt::Eos, 100, None);
    let [(one, one_span), (other, other_span)] = together(&encoder, "\nyes", "no");
    assert_eq!((one[one_span.start], other[other_span.start]), (TWO_BREAKS, u32::from(b'n')));
    // The line break in front of "no" is the prompt's, and no token of an answer.
    assert_eq!(other_span.start, one_span.start + 1);
    assert_eq!(other[other_span.start - 1], LINE_BREAK);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_pair_is_its_answers_alone(
        chosen in "[\n a-c]{0,4}[a-c]", rejected in "[\n a-c]{0,4}[a-c]",
        place in 0usize..3,
    ) {
        static ENCODERS: LazyLock<[Encoder; 3]> = LazyLock::new(|| {
            let folder = folder(CHATML);
            [RewardAt::Eos, RewardAt::End, RewardAt::Both].map(|place| encoder(folder.path(), place, 100, None))
        });
        prop_assume!(chosen != rejected);
        let encoder = &ENCODERS[place];
        prop_assert_eq!(together(encoder, &chosen, &rejected), [&chosen, &rejected].map(|text| alone(encoder, text)));
    }
}
