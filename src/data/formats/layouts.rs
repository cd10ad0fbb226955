//! The layouts: a dozen lines and an example each. The first layout that fits a row is used.
//!
//! A new one: its entry here and its name in `config/source.rs`; every example is read in a test. Not here: the fields of an
//! entry (`layout.rs`). Examples are our own, in the form of the data sets they name.

use super::layout::{At, Layout, Preference, Sign, Written};
use crate::config::Format;
use Preference::{Alone, Ranks, Safety, Scores, Strength, Winner};
use Sign::{Has, Lacks, OpenTranscript, Texts, Transcript};

const CHOSEN: At = &["chosen"];
const REJECTED: At = &["rejected"];
const EITHER: Sign = Has(&["chosen", "rejected"]);
/// Names of the winner in data sets that compare two models.
const A: At = &["model_a", "a", "A", "response_a", "A>B", "A>>B"];
const B: At = &["model_b", "b", "B", "response_b", "B>A", "B>>A"];
const TIE: At = &["tie", "tie (bothbad)", "both_bad", "both_good", "A=B"];

/// Layouts of pairs, those that need more signs first.
pub static LAYOUTS: &[Layout] = &[
    Layout {
        format: Format::Helpful,
        about: "PKU-SafeRLHF, BeaverTails: the more helpful of two responses",
        signs: &[Has(&["response_0"]), Has(&["response_1"])],
        answers: &[&["response_0"], &["response_1"]],
        preference: Winner(&["better_response_id"], [&["0"], &["1"], &[]]),
        example: r#"{"prompt": "Name a tree.", "response_0": "Oak.", "response_1": "Granite.", "better_response_id": 0}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Safer,
        about: "the same: the safer one, where exactly one is safe",
        answers: &[&["response_0"], &["response_1"]],
        preference: Safety(&["safer_response_id"], [&["is_response_0_safe"], &["is_response_1_safe"]]),
        example: r#"{"prompt": "May I eat it?", "response_0": "Yes.", "response_1": "No.", "safer_response_id": 1, "is_response_0_safe": false, "is_response_1_safe": true}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Rewardbench2,
        about: "RewardBench 2, RM-Bench: lists of right and wrong answers; every right one with every wrong one",
        signs: &[Texts("chosen"), Texts("rejected")],
        answers: &[&["chosen[]"], &["rejected[]"]],
        domain: &["subset"],
        example: r#"{"prompt": "Name an even number.", "chosen": ["4"], "rejected": ["5", "7", "9"], "subset": "Math"}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::LlamafactoryV1,
        about: "LLaMA-Factory v1: two conversations of content parts",
        signs: &[Has(&["chosen_messages"])],
        prompt: &[],
        answers: &[&["chosen_messages"], &["rejected_messages"]],
        example: r#"{"chosen_messages": [{"role": "user", "content": [{"type": "text", "value": "Name a bird."}]}, {"role": "assistant", "content": [{"type": "text", "value": "A wren."}]}], "rejected_messages": [{"role": "user", "content": [{"type": "text", "value": "Name a bird."}]}, {"role": "assistant", "content": [{"type": "text", "value": "A trout."}]}]}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::MsSwift,
        about: "ms-swift: a conversation whose last answer is the chosen one, and the rejected one",
        signs: &[Has(&["messages"]), Has(&["rejected_response", "rejected_messages"])],
        prompt: &[],
        answers: &[&["messages"], &["rejected_response", "rejected_messages"]],
        example: r#"{"messages": [{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "A wren."}], "rejected_response": "A trout."}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Hh,
        about: "hh-rlhf: two transcripts of one conversation",
        signs: &[Transcript("chosen"), Lacks(&["prompt"])],
        prompt: &[],
        answers: &[CHOSEN, REJECTED],
        answers_as: Written::Transcript,
        example: r#"{"chosen": "\n\nHuman: Name a river.\n\nAssistant: The Elbe.", "rejected": "\n\nHuman: Name a river.\n\nAssistant: Everest."}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::RmStatic,
        about: "rm-static: a transcript that two answers continue",
        signs: &[OpenTranscript("prompt"), EITHER],
        prompt_as: Written::Transcript,
        answers: &[CHOSEN, REJECTED],
        example: r#"{"prompt": "\n\nHuman: Name a river.\n\nAssistant:", "chosen": " The Elbe.", "rejected": " Everest."}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Sharegpt,
        about: "ShareGPT, LLaMA-Factory: turns with `from` and `value`",
        signs: &[Has(&["conversations", "conversation"]), EITHER, Lacks(&["prompt"])],
        prompt: &["conversations", "conversation"],
        answers: &[CHOSEN, REJECTED],
        example: r#"{"conversations": [{"from": "human", "value": "Name a color."}], "chosen": {"from": "gpt", "value": "Green."}, "rejected": {"from": "gpt", "value": "Loud."}}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Instruction,
        about: "LLaMA-Factory's ranking rows: instruction, perhaps input, system, history",
        signs: &[Has(&["instruction"]), EITHER, Lacks(&["prompt"])],
        prompt: &["instruction"],
        answers: &[CHOSEN, REJECTED],
        example: r#"{"system": "Be brief.", "instruction": "Translate.", "input": "Hund", "chosen": "Dog", "rejected": "Hand"}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Orca,
        about: "orca_dpo_pairs: a question, perhaps a system prompt; Argilla's distilabel sets, whose question is `input`",
        signs: &[Has(&["question", "input"]), EITHER, Lacks(&["prompt"])],
        prompt: &["question", "input"],
        answers: &[CHOSEN, REJECTED],
        example: r#"{"system": "Be brief.", "question": "What barks?", "chosen": "A dog.", "rejected": "A hand."}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Pairs,
        about: "a prompt and two answers: texts, message lists or single messages; the prompt may be in the answers",
        signs: &[EITHER],
        prompt: &["prompt", "context"],
        answers: &[CHOSEN, REJECTED],
        example: r#"{"prompt": "Name a fish.", "chosen": "Trout.", "rejected": "Wren.", "margin": 1.5, "domain": "animals"}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Scored,
        about: "UltraFeedback: as pairs, the difference of their scores is the margin",
        prompt: &["prompt", "context"],
        answers: &[CHOSEN, REJECTED],
        margin: Some([
            &["score_chosen", "chosen_score", "chosen_rating", "chosen-rating"],
            &["score_rejected", "rejected_score", "rejected_rating", "rejected-rating"],
        ]),
        example: r#"{"prompt": "Name a fish.", "chosen": "Trout.", "rejected": "Wren.", "score_chosen": 8.5, "score_rejected": 2.0}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Outputs,
        about: "LLaMA-Factory's older ranking rows: a list of outputs, the best first; all pairs of them",
        signs: &[Has(&["instruction"]), Texts("output")],
        prompt: &["instruction"],
        answers: &[&["output[]"]],
        preference: Ranks(&[]),
        example: r#"{"instruction": "Translate.", "input": "Hund", "output": ["Dog", "Hand"]}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Arena,
        about: "Chatbot Arena, MT-Bench: two conversations and the winner; ties and different prompts are dropped",
        signs: &[Has(&["conversation_a"]), Has(&["conversation_b"])],
        prompt: &[],
        answers: &[&["conversation_a"], &["conversation_b"]],
        preference: Winner(&["winner"], [A, B, TIE]),
        example: r#"{"conversation_a": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}], "conversation_b": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": [{"type": "text", "text": "What?"}]}], "winner": "model_a"}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Arena55k,
        about: "Arena's 55,000 rows (Kaggle): turns as JSON lists in texts, and a flag for each outcome",
        signs: &[Has(&["response_a"]), Has(&["winner_model_a"])],
        prompt_as: Written::JsonList,
        answers: &[&["response_a"], &["response_b"]],
        answers_as: Written::JsonList,
        preference: Scores(&[&["winner_model_a"], &["winner_model_b"]]),
        tie: &["winner_tie"],
        example: r#"{"prompt": "[\"Hi\"]", "response_a": "[\"What?\"]", "response_b": "[\"Hello.\"]", "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Rated,
        about: "two responses with a score each; SHP and WebGPT with `columns`",
        signs: &[Has(&["response_a", "response_A"]), Has(&["score_a", "score_A"])],
        prompt: &["prompt", "question"],
        answers: &[&["response_a", "response_A"], &["response_b", "response_B"]],
        preference: Scores(&[&["score_a", "score_A"], &["score_b", "score_B"]]),
        example: r#"{"prompt": "Name a metal.", "response_a": "Iron.", "response_b": "Wool.", "score_a": 0.8, "score_b": -0.5}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Compared,
        about: "JudgeBench and the like: two responses and the winner's name",
        signs: &[Has(&["response_a", "response_A"]), Has(&["winner", "label"])],
        prompt: &["prompt", "question"],
        answers: &[&["response_a", "response_A"], &["response_b", "response_B"]],
        preference: Winner(&["winner", "label"], [A, B, TIE]),
        example: r#"{"question": "Name a metal.", "response_A": "Wool.", "response_B": "Iron.", "label": "B>A"}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Alpaca,
        about: "Alpaca human preferences; LLMBar and PandaLM with `columns`; the better output's number, 0 and 1.5 are ties",
        signs: &[Has(&["output_1"]), Has(&["output_2"])],
        prompt: &["instruction"],
        answers: &[&["output_1"], &["output_2"]],
        preference: Winner(&["preference"], [&["1"], &["2"], &["0", "1.5"]]),
        example: r#"{"instruction": "Translate.", "input": "Hund", "output_1": "Hand", "output_2": "Dog", "preference": 2}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Helpsteer,
        about: "HelpSteer2 and 3: a preference from -3 (the first) to 3 (the second); its size is the margin",
        signs: &[Has(&["preference_strength", "overall_preference"])],
        prompt: &["context", "prompt"],
        prompt_as: Written::Transcript,
        answers: &[&["response_1", "response1"], &["response_2", "response2"]],
        preference: Strength(&["preference_strength", "overall_preference"], 3.0),
        example: r#"{"context": [{"role": "user", "content": "Name a tool."}], "response1": "A cloud.", "response2": "A saw.", "overall_preference": 2, "domain": "general"}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::NemoRl,
        about: "NeMo-RL: completions with ranks, 0 the best; all pairs of them",
        signs: &[Has(&["context", "prompt"]), Has(&["completions.0.completion"])],
        prompt: &["context", "prompt"],
        answers: &[&["completions[].completion"]],
        preference: Ranks(&[&["completions[].rank"]]),
        example: r#"{"context": [{"role": "user", "content": "Name a tool."}], "completions": [{"rank": 1, "completion": [{"role": "assistant", "content": "A cloud."}]}, {"rank": 0, "completion": [{"role": "assistant", "content": "A saw."}]}]}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Ultrafeedback,
        about: "UltraFeedback as it was published: the mean of its ratings decides; all pairs of the completions",
        signs: &[Has(&["instruction"]), Has(&["completions.0.response"])],
        prompt: &["instruction"],
        answers: &[&["completions[].response"]],
        preference: Scores(&[&["completions[].annotations[].Rating"]]),
        example: r#"{"instruction": "Name a tool.", "completions": [{"response": "A saw.", "annotations": {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "N/A"}}}, {"response": "A cloud.", "annotations": {"helpfulness": {"Rating": "1"}, "honesty": {"Rating": "4"}}}]}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::UnifiedFeedback,
        about: "Unified-Feedback: two conversations with a rating each",
        signs: &[Has(&["conv_A"]), Has(&["conv_B"])],
        prompt: &[],
        answers: &[&["conv_A"], &["conv_B"]],
        preference: Scores(&[&["conv_A_rating"], &["conv_B_rating"]]),
        example: r#"{"conv_A": [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "Oak."}], "conv_B": [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "Chalk."}], "conv_A_rating": 1.0, "conv_B_rating": 0.0}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Ranked,
        about: "Nectar: up to 64 answers with ranks, 1 the best; all pairs of them",
        signs: &[Has(&["answers.0.rank", "ranks"])],
        prompt_as: Written::Transcript,
        answers: &[&["answers[].answer", "responses[]"]],
        preference: Ranks(&[&["answers[].rank", "ranks[]"]]),
        example: r#"{"prompt": "\n\nHuman: Name a gas.\n\nAssistant: ", "answers": [{"answer": "Neon.", "rank": 1}, {"answer": "Tin.", "rank": 2}]}"#,
        ..Layout::PLAIN
    },
    Layout {
        format: Format::Helpsteer2Attributes,
        about: "HelpSteer2's attributes: rows of one prompt that follow one another; `helpfulness` decides, or the attribute \
                to which `columns` map it",
        signs: &[Has(&["response"]), Has(&["helpfulness"])],
        prompt_as: Written::Transcript,
        answers: &[&["rows[].response"]],
        preference: Scores(&[&["rows[].helpfulness"]]),
        joins_rows: true,
        example: "{\"prompt\": \"Name a gas.\", \"response\": \"Neon.\", \"helpfulness\": 4, \"verbosity\": 1}\n\
                  {\"prompt\": \"Name a gas.\", \"response\": \"Tin.\", \"helpfulness\": 0, \"verbosity\": 1}",
        ..Layout::PLAIN
    },
];

/// Layouts of one answer, which can only be scored.
pub(super) static ALONE: &[Layout] = &[
    Layout {
        about: "a prompt and an answer",
        signs: &[Has(&["answer", "response", "completion"])],
        // As in the pair from which the answer may come.
        prompt_as: Written::Transcript,
        answers: &[&["answer", "response", "completion"]],
        preference: Alone,
        ..Layout::PLAIN
    },
    Layout {
        about: "a conversation that ends with the answer",
        signs: &[Has(&["messages", "conversations", "conversation"])],
        prompt: &[],
        answers: &[&["messages", "conversations", "conversation"]],
        preference: Alone,
        ..Layout::PLAIN
    },
];

/// The layout of a format; `None` for `auto`.
pub(super) fn named(format: Format) -> Option<&'static Layout> {
    LAYOUTS.iter().find(|layout| layout.format == format)
}
