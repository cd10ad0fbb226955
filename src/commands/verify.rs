//! `haf-dist verify`: checks that a folder gives the rewards that its model gave when it was saved; with `--python`, writes a
//! script that checks Transformers' rewards.
//!
//! The reward is read as Transformers reads it: from the text that the folder's chat template renders, at the rightmost
//! token that is not the pad token. Not here: the conversations (`checkpoint/self_test.rs`).

use super::alike;
use super::scored::{Opened, Scored, open};
use crate::checkpoint::{self, AsTrained, Case, LeftOut, SELF_TEST, SelfTest};
use crate::cli::Verifying;
use crate::comm::CommThread;
use crate::data::template::Template;
use crate::data::tokenize::Encoder;
use crate::data::{Prompt, TemplateInputs};
use crate::error::{Error, Result};
use crate::evaluate::scoring::{ToScore, score_pairs};
use crate::files;
use crate::metrics;
use crate::terminal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const SCRIPT: &str = include_str!("verify.py");

/// The first difference from a saved conversation, in the order of computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    Rendering,
    Tokens,
    Position,
    Activation,
    Precision,
    Reward,
}

impl Difference {
    fn name(self) -> &'static str {
        match self {
            Self::Rendering => "rendering",
            Self::Tokens => "tokens",
            Self::Position => "position",
            Self::Activation => "activation",
            Self::Precision => "precision",
            Self::Reward => "reward",
        }
    }

    /// The likely cause.
    fn hint(self) -> &'static str {
        match self {
            Self::Rendering => {
                "the chat template has changed since the model was saved: chat_template.jinja, tokenizer_config.json"
            }
            Self::Tokens => "the tokenizer's files or haf_dist.json have changed since the model was saved",
            Self::Position => "a conversation ends with the pad token: restore pad_token_id",
            Self::Activation => {
                "other programs put a sigmoid over the reward: config.json must have problem_type = \"regression\""
            }
            Self::Precision => "the difference is due to rounding: compute in the precision that self-test.json names",
            Self::Reward => {
                "the weights have changed since the model was saved, or the rewards come from another model"
            }
        }
    }
}

/// A conversation as read with a folder's own files; None where that fails.
struct Reading {
    /// The rendered text.
    text: Option<String>,
    /// Tokens of that text.
    tokens_of_text: Option<Vec<u32>>,
    /// Tokens of the messages, as haf-dist scores them.
    tokens_of_messages: Option<Vec<u32>>,
    /// Index of the saved token at which Transformers reads the reward.
    position: usize,
    /// Whether other programs put a sigmoid over the reward.
    activated: bool,
}

impl Reading {
    fn has_text_of(&self, case: &Case) -> bool {
        self.text.as_ref() == Some(&case.text)
    }

    fn has_tokens_of(&self, case: &Case) -> bool {
        [&self.tokens_of_text, &self.tokens_of_messages].iter().all(|tokens| tokens.as_ref() == Some(&case.tokens))
    }
}

/// The result for a conversation.
struct Outcome<'a> {
    case: &'a Case,
    reading: Reading,
    reward: f64,
    difference: Option<Difference>,
}

/// Runs the command; all ranks must call it.
///
/// # Errors
/// A folder without a self-test that its model can take, or without a model; ranks that differ; [`Error::runtime`], exit
/// code 1, if a conversation differs.
pub(crate) fn run(verifying: &Verifying, comm: &CommThread) -> Result<()> {
    if let Some(path) = &verifying.python {
        return comm.agree(if comm.rank() == 0 { write_script(&verifying.checkpoint, path) } else { Ok(()) });
    }
    let self_test = comm.agree(read(&verifying.checkpoint))?;
    // With the saved rewards, which the tokens alone do not show.
    let hash = comm.agree(files::fingerprint_file(&verifying.checkpoint.join(SELF_TEST)))?;
    alike::read(SELF_TEST, hash, comm)?;
    let opened = open(&verifying.scoring(), comm)?;
    comm.agree(check(&self_test, &verifying.checkpoint, &opened))?;
    let machine = opened.machine(comm)?;
    let pad = comm.agree(opened.pad_token())?;
    let template = comm.agree(checkpoint::as_others_read(opened.tokenizer()))?;
    let activated = comm.agree(opened.is_activated())?;
    let read = |case| Reading { activated, ..reading(case, &template, &opened.encoder, pad) };
    let readings: Vec<_> = self_test.conversations.iter().map(read).collect();
    let cases = self_test.conversations.iter().zip(&readings);
    let sequences = cases.map(|(case, reading)| &case.tokens[..=reading.position]);
    let rewards = match comm.agree(checkpoint::data_of(sequences))? {
        None => Vec::new(),
        Some(data) => {
            let Scored { mut engine, .. } = opened.model(false, &machine, comm)?;
            let all: Vec<usize> = (0..data.len()).collect();
            let budget = opened.config.train.tokens_per_micro_batch;
            let to_score = ToScore { data: &data, pairs: &all, tokens_per_micro_batch: budget, log_probs: false };
            let scores = score_pairs(&mut engine, to_score, comm, "verify")?;
            scores.iter().map(|scores| scores.rewards[0]).collect()
        }
    };
    let outcomes: Vec<Outcome> = (self_test.conversations.iter().zip(readings).zip(rewards))
        .map(|((case, reading), reward)| {
            let difference = difference(case, &reading, reward, &self_test, machine.dtype_name());
            Outcome { case, reading, reward, difference }
        })
        .collect();
    comm.agree(match comm.rank() {
        0 if verifying.json => terminal::lines(outcomes.iter().map(line)),
        0 => terminal::out(format_args!(
            "Conversations saved with the model: what this folder makes of them now\n{}",
            table(&outcomes, &self_test.left_out)
        )),
        _ => Ok(()),
    })?;
    verdict(&outcomes.iter().map(|outcome| outcome.difference).collect::<Vec<_>>())
}

fn read(folder: &Path) -> Result<SelfTest> {
    SelfTest::read(folder)?.ok_or_else(|| {
        Error::input(format!("{} has no {SELF_TEST}", folder.display()))
            .hint("checkpoints of this version of haf-dist and their exports have one")
    })
}

/// Without a run's settings the model's own limit is the longest length.
fn check(self_test: &SelfTest, folder: &Path, opened: &Opened) -> Result<()> {
    let as_trained = AsTrained::of_checkpoint(folder)?;
    let max_length = as_trained.map_or(opened.config.data.max_length, |as_trained| as_trained.max_length);
    self_test.check(folder, max_length, opened.vocabulary)
}

fn reading(case: &Case, template: &Template, encoder: &Encoder, pad: Option<u32>) -> Reading {
    let text = case.messages.split_last().and_then(|(answer, prompt)| {
        template.render(&Prompt::Messages(prompt.to_vec()), &TemplateInputs::default(), answer).ok()
    });
    let tokens_of_text = text.as_ref().and_then(|text| encoder.ids(text).ok());
    let tokens_of_messages = encoder.conversation(&case.messages).ok().map(|(_, tokens)| tokens);
    let position = case.tokens.iter().rposition(|token| Some(*token) != pad).unwrap_or(0);
    Reading { text, tokens_of_text, tokens_of_messages, position, activated: false }
}

/// The first difference, if there is one.
fn difference(
    case: &Case,
    reading: &Reading,
    reward: f64,
    self_test: &SelfTest,
    precision: &str,
) -> Option<Difference> {
    let saved = f64::from(case.reward);
    let tolerance = if precision == "f32" { self_test.tolerance.f32 } else { self_test.tolerance.bf16 };
    let sigmoid = 1.0 / (1.0 + (-saved).exp());
    if !reading.has_text_of(case) {
        Some(Difference::Rendering)
    } else if !reading.has_tokens_of(case) {
        Some(Difference::Tokens)
    } else if reading.position + 1 != case.tokens.len() {
        Some(Difference::Position)
    } else if reading.activated {
        Some(Difference::Activation)
    } else if (reward - saved).abs() <= tolerance {
        None
    } else if (reward - sigmoid).abs() <= tolerance {
        Some(Difference::Activation)
    } else if (reward - saved).abs() <= self_test.tolerance.bf16 {
        Some(Difference::Precision)
    } else {
        Some(Difference::Reward)
    }
}

fn line(Outcome { case, reading, reward, difference }: &Outcome) -> Value {
    json!({
        "conversation": case.name,
        "same_rendering": reading.has_text_of(case),
        "same_tokens": reading.has_tokens_of(case),
        "saved_reward": case.reward,
        "reward": reward,
        "differs": difference.map(Difference::name),
    })
}

fn table(outcomes: &[Outcome], left_out: &[LeftOut]) -> String {
    let word = |same: bool| if same { "same" } else { "other" };
    let row = |Outcome { case, reading, reward, difference }: &Outcome| {
        vec![
            case.name.clone(),
            word(reading.has_text_of(case)).into(),
            word(reading.has_tokens_of(case)).into(),
            format!("{:.6}", case.reward),
            format!("{reward:.6}"),
            format!("{:.1e}", (reward - f64::from(case.reward)).abs()),
            difference.map_or("OK".into(), |difference| format!("NOT: {}", difference.name())),
        ]
    };
    let header = ["conversation", "rendering", "tokens", "saved reward", "reward", "distance", ""];
    let left_out = left_out.iter().map(|out| format!("\nleft out: {} ({})", out.name, out.why));
    metrics::table(&header, 3, outcomes.iter().map(row)) + &left_out.collect::<String>()
}

/// # Errors
/// Any differences: which, how often, and the likely cause of the first.
fn verdict(differences: &[Option<Difference>]) -> Result<()> {
    let mut counts: BTreeMap<Difference, usize> = BTreeMap::new();
    differences.iter().flatten().for_each(|difference| *counts.entry(*difference).or_default() += 1);
    let Some(first) = counts.keys().next() else { return Ok(()) };
    let each: Vec<_> = counts.iter().map(|(difference, count)| format!("{} of {count}", difference.name())).collect();
    let (all, wrong) = (differences.len(), counts.values().sum::<usize>());
    Err(Error::runtime(format!("{wrong} of {all} conversations differ from the saved ones: {}", each.join(", ")))
        .hint(first.hint()))
}

fn write_script(folder: &Path, path: &Path) -> Result<()> {
    read(folder)?;
    if path.symlink_metadata().is_ok() {
        return Err(Error::input(format!("{} exists already", path.display()))
            .hint("nothing is overwritten: name another file, or move it away"));
    }
    files::clear_unfinished_beside(path);
    files::write_atomic(path, SCRIPT.as_bytes())?;
    terminal::out(format_args!("python {} {}", path.display(), folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RewardAt;
    use crate::data::Message;

    /// A self-test of one conversation with the reward 2, as read from a file.
    fn saved(precision: &str) -> SelfTest {
        let folder = tempfile::tempdir().unwrap();
        let file = serde_json::json!({
            "format": 1, "haf_dist": "0", "reward_at": RewardAt::Eos, "precision": precision,
            "tolerance": {"f32": 1e-4, "bf16": 0.1},
            "conversations": [{"name": "one", "messages": [Message::answer("b")], "text": "b", "tokens": [4, 9],
                               "reward": 2.0}]
        });
        std::fs::write(folder.path().join(SELF_TEST), file.to_string()).unwrap();
        SelfTest::read(folder.path()).unwrap().unwrap()
    }

    fn as_saved() -> Reading {
        let tokens = Some(vec![4, 9]);
        let (text, tokens_of_text) = (Some("b".into()), tokens.clone());
        Reading { text, tokens_of_text, tokens_of_messages: tokens, position: 1, activated: false }
    }

    fn seen(reading: &Reading, reward: f64, precision: &str) -> Option<Difference> {
        let self_test = saved("f32");
        difference(&self_test.conversations[0], reading, reward, &self_test, precision)
    }

    #[test]
    fn each_fault_is_named_and_no_other() {
        assert_eq!(seen(&as_saved(), 2.00005, "f32"), None);
        assert_eq!(seen(&as_saved(), 2.05, "bf16"), None);
        assert_eq!(seen(&as_saved(), 2.05, "f32"), Some(Difference::Precision));
        assert_eq!(seen(&as_saved(), 0.880797, "f32"), Some(Difference::Activation));
        assert_eq!(seen(&as_saved(), 1.5, "f32"), Some(Difference::Reward));
        assert_eq!(seen(&as_saved(), f64::NAN, "f32"), Some(Difference::Reward));
        let reading = Reading { text: Some("b\n".into()), ..as_saved() };
        assert_eq!(seen(&reading, 2.0, "f32"), Some(Difference::Rendering));
        let reading = Reading { text: None, ..as_saved() };
        assert_eq!(seen(&reading, 2.0, "f32"), Some(Difference::Rendering));
        let reading = Reading { tokens_of_messages: Some(vec![1, 4, 9]), ..as_saved() };
        assert_eq!(seen(&reading, 2.0, "f32"), Some(Difference::Tokens));
        let reading = Reading { activated: true, ..as_saved() };
        assert_eq!(seen(&reading, 2.0, "f32"), Some(Difference::Activation));
        let reading = Reading { position: 0, ..as_saved() };
        assert_eq!(seen(&reading, 2.0, "f32"), Some(Difference::Position));
    }

    #[test]
    fn the_verdict_counts_and_hints_at_the_first_cause() {
        assert_eq!(verdict(&[None, None]), Ok(()));
        let error = verdict(&[Some(Difference::Reward), None, Some(Difference::Tokens)]).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.message.starts_with("2 of 3") && error.message.contains("tokens of 1, reward of 1"), "{error}");
        assert_eq!(error.hint.as_deref(), Some(Difference::Tokens.hint()));
    }
}
