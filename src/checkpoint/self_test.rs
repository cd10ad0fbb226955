//! `self-test.json` in a model's folder: ten fixed conversations with their text, tokens and reward when the model was saved, so
//! that any program can be tested for reading the model as it was trained.
//!
//! It contains no data of the run. Not here: computing rewards (`evaluate/scoring.rs`) and comparing them (`commands/verify.rs`).

use super::{read_json, to_json, write_text};
use crate::config::RewardAt;
use crate::data::prepared::{LabeledPair, PreparedData};
use crate::data::sequence::OwnedPair;
use crate::data::tokenize::Encoder;
use crate::data::{AnswerSpan, Message};
use crate::error::{Error, Result};
use crate::statistics::Spread;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Its name, in a model's folder.
pub(crate) const SELF_TEST: &str = "self-test.json";

/// Version of the file's layout; other versions are refused.
const FORMAT: u32 = 1;

/// The largest: room for ten conversations of 100,000 tokens, and more.
const MOST_BYTES: u64 = 64 << 20;
/// The longest conversation, whatever length the training allows: the ten have some hundred tokens, and a template adds its own.
const LONGEST: usize = 8192;

/// How far two implementations may differ in f32, as a share of the largest reward; 2e-6 was measured.
const FINE: f64 = 1e-4;
/// The same in bf16 or f16; 3e-2 was measured.
const COARSE: f64 = 0.1;
/// The smallest tolerance: rewards this small count as zero.
const LEAST: f64 = 1e-6;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    format: u32,
    /// Version of haf-dist that wrote it.
    haf_dist: String,
    /// `data.reward_at` of the training: which token of a rendering is the last one in [`Case::tokens`].
    pub(crate) reward_at: RewardAt,
    /// Precision in which the rewards were computed: `f32`, `bf16` or `f16`.
    pub(crate) precision: String,
    /// Largest allowed difference from a reward in this file, by the precision of the other program.
    pub(crate) tolerance: Tolerance,
    /// Rewards on the run's dev pairs, chosen and rejected; `None` if these were not evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dev_rewards: Option<Spread>,
    /// The conversations.
    pub(crate) conversations: Vec<Case>,
    /// Conversations that the model's template or length refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left_out: Vec<LeftOut>,
}

/// Differences in units of reward.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tolerance {
    /// In f32.
    pub(crate) f32: f64,
    /// In bf16 or f16.
    pub(crate) bf16: f64,
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// The case it tests.
    pub(crate) name: String,
    /// The turns; the last one is the answer.
    pub(crate) messages: Vec<Message>,
    /// Their text, up to the token at which the reward is read.
    pub(crate) text: String,
    /// The text's tokens.
    pub(crate) tokens: Vec<u32>,
    /// The reward at the last token.
    #[serde(default)]
    pub(crate) reward: f32,
}

/// A conversation that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    /// The case it would have tested.
    pub(crate) name: String,
    /// Why it is refused.
    pub(crate) why: String,
}

/// The conversations of a model, before they have rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    reward_at: RewardAt,
    cases: Vec<Case>,
    left_out: Vec<LeftOut>,
}

impl Planned {
    /// The conversations as `encoder` reads them. One that the template refuses, or that is longer than training allows, is
    /// left out by name.
    pub fn of(encoder: &Encoder) -> Self {
        let rules = encoder.rules();
        let longest = rules.max_length.min(LONGEST);
        let (mut cases, mut left_out) = (Vec::new(), Vec::new());
        for (name, messages) in conversations() {
            let read = encoder.conversation(&messages).map_err(|error| error.message);
            let fits = read.and_then(|(text, tokens)| match tokens.len() <= longest {
                true => Ok((text, tokens)),
                false => Err(format!("{} tokens, at most {longest} are allowed", tokens.len())),
            });
            match fits {
                Ok((text, tokens)) => cases.push(Case { name: name.into(), messages, text, tokens, reward: 0.0 }),
                Err(why) => left_out.push(LeftOut { name: name.into(), why }),
            }
        }
        Self { reward_at: rules.reward_at, cases, left_out }
    }

    /// The conversations as data to score; `None` if all are left out.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn data(&self) -> Result<Option<PreparedData>> {
        data_of(self.cases.iter().map(|case| &case.tokens[..]))
    }

    /// The file for a model that gives the conversations these rewards, computed in `precision`.
    pub fn rewarded(&self, rewards: &[f64], precision: &str, dev_rewards: Option<Spread>) -> SelfTest {
        let cases = self.cases.iter().zip(rewards);
        let largest = rewards.iter().fold(0.0f64, |largest, reward| largest.max(reward.abs()));
        let within = |share: f64| (share * largest).max(LEAST);
        let fine = if precision == "f32" { FINE } else { COARSE };
        SelfTest {
            format: FORMAT,
            haf_dist: env!("CARGO_PKG_VERSION").into(),
            reward_at: self.reward_at,
            precision: precision.into(),
            tolerance: Tolerance { f32: within(fine), bf16: within(COARSE) },
            dev_rewards,
            conversations: cases.map(|(case, reward)| Case { reward: *reward as f32, ..case.clone() }).collect(),
            left_out: self.left_out.clone(),
        }
    }
}

impl SelfTest {
    /// Reads a folder's file; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::input`] for a file of another format, or one that was changed.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(SELF_TEST);
        if !path.is_file() {
            return Ok(None);
        }
        let read: Self =
            read_json(&path, MOST_BYTES).map_err(|error| error.hint("haf-dist writes it with a checkpoint"))?;
        if read.format != FORMAT {
            let message = format!("{}: format {} (this program reads {FORMAT})", path.display(), read.format);
            return Err(Error::input(message).hint("use the version of haf-dist that wrote it"));
        }
        match read.conversations.iter().find(|case| case.tokens.is_empty() || case.messages.is_empty()) {
            Some(case) => Err(Error::input(format!("{}: {:?} has no tokens", path.display(), case.name))
                .hint("restore the file that haf-dist wrote")),
            None => Ok(Some(read)),
        }
    }

    /// Checks that the model in `folder` can take the conversations: their number, their lengths, the ids of their tokens. The
    /// file may come from somebody else. `max_length` is that of the training, and the model has `vocabulary` tokens.
    ///
    /// # Errors
    /// [`Error::input`] for what no run writes.
    pub fn check(&self, folder: &Path, max_length: usize, vocabulary: usize) -> Result<()> {
        let wrong = |what: String| {
            let hint = "restore the file that haf-dist wrote, and the files beside it";
            Err(Error::input(format!("{}: {what}", folder.join(SELF_TEST).display())).hint(hint))
        };
        let (most, longest) = (conversations().len(), max_length.min(LONGEST));
        if self.conversations.len() > most {
            return wrong(format!("{} conversations, expected at most {most}", self.conversations.len()));
        }
        for Case { name, tokens, .. } in &self.conversations {
            if tokens.len() > longest {
                return wrong(format!("{name:?} has {} tokens, expected at most {longest}", tokens.len()));
            }
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
                return wrong(format!("{name:?} has the token {token}, but the model has {vocabulary} tokens"));
            }
        }
        Ok(())
    }

    /// Writes it into the folder of a model.
    ///
    /// # Errors
    /// A failed write.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        write_text(&folder.join(SELF_TEST), &to_json(self)?)
    }
}

/// Token sequences as data to score, each rewarded at its last token; `None` for no sequences.
///
/// # Errors
/// No memory.
pub(crate) fn data_of<'t>(sequences: impl Iterator<Item = &'t [u32]>) -> Result<Option<PreparedData>> {
    let single = |tokens: &[u32]| {
        // The reward does not depend on where the prompt ends; both parts need a token.
        let prefix = tokens.len().saturating_sub(1);
        let pair = OwnedPair {
            tokens: tokens.to_vec(),
            prefix,
            chosen: tokens.len() - prefix,
            rejected: 0,
            spans: [AnswerSpan::to_end(prefix, tokens.len()), AnswerSpan::default()],
            prompt_hash: 0,
            prompt_cut: false,
            answer_cut: false,
            special_in_text: 0,
        };
        LabeledPair { pair, margin: 0.0, tied: false, domain: "self-test".to_owned() }
    };
    let rows: Vec<_> = sequences.map(single).collect();
    if rows.is_empty() { Ok(None) } else { PreparedData::from_pairs(rows).map(Some) }
}

/// The conversations, each with the name of its case.
fn conversations() -> Vec<(&'static str, Vec<Message>)> {
    let system = |text: &str| Message::new("system", text);
    let user = |text: &str| Message::new("user", text);
    let answer = |text: &str| Message::answer(text);
    let steps: Vec<String> = (1..=12).map(|step| format!("{step}. Walk {step} steps north, then turn.")).collect();
    vec![
        ("one question", vec![user("Name a fruit."), answer("A pear.")]),
        ("a system message", vec![system("Answer in one word."), user("Name a fruit."), answer("Pear")]),
        ("an empty system message", vec![system(""), user("Name a fruit."), answer("A plum.")]),
        (
            "several turns",
            vec![
                user("Is a tomato a fruit?"),
                answer("Botanically, yes."),
                user("And a cucumber?"),
                answer("It is too."),
                user("A potato?"),
                answer("No, a potato is a tuber."),
            ],
        ),
        (
            "other scripts",
            vec![
                user("Sch\u{f6}ne Gr\u{fc}\u{df}e! \u{4f60}\u{597d}? \u{43f}\u{440}\u{438}\u{432}\u{435}\u{442}"),
                answer("\u{645}\u{631}\u{62d}\u{628}\u{627} \u{1f642} na\u{ef}ve caf\u{e9} \u{2212}1 \u{d55c}"),
            ],
        ),
        (
            "code",
            vec![
                user("Write `add` in Python."),
                answer("```python\ndef add(a, b):\n\treturn a + b  # {% x %} {{ y }} <b>\n```"),
            ],
        ),
        ("spaces around the answer", vec![user("Name a fruit."), answer("  A fig. ")]),
        ("line breaks around the answer", vec![user("Name a fruit.\n"), answer("\n\nA fig.\n")]),
        ("a short answer", vec![user("2 + 2?"), answer("4")]),
        ("a long answer", vec![system("Be exact."), user("How do I find the well?"), answer(&steps.join("\n"))]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned() -> Planned {
        let case = |name: &str| Case {
            name: name.into(),
            messages: vec![Message::new("user", "a"), Message::answer("b")],
            text: "ab".into(),
            tokens: vec![1, 2],
            reward: 0.0,
        };
        Planned { reward_at: RewardAt::Eos, cases: vec![case("one"), case("two")], left_out: Vec::new() }
    }

    #[test]
    fn there_are_ten_conversations_that_end_with_an_answer() {
        let all = conversations();
        assert_eq!(all.len(), 10);
        assert!(all.iter().all(|(_, messages)| messages.last().unwrap().role == "assistant"));
    }

    #[test]
    fn the_tolerance_follows_the_rewards_and_the_precision_they_had() {
        let of = |precision: &str| planned().rewarded(&[-4.0, 2.0], precision, None).tolerance;
        assert_eq!(of("f32"), Tolerance { f32: 4e-4, bf16: 0.4 });
        assert_eq!(of("bf16"), Tolerance { f32: 0.4, bf16: 0.4 });
        // A head that was never trained.
        assert_eq!(planned().rewarded(&[0.0, 0.0], "f32", None).tolerance, Tolerance { f32: 1e-6, bf16: 1e-6 });
    }

    #[test]
    fn the_file_comes_back_and_one_that_cannot_be_meant_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(SelfTest::read(folder.path()).unwrap(), None);
        let written = planned().rewarded(&[0.1, -0.2], "f32", Spread::of(&[1.0, 2.0]));
        written.write(folder.path()).unwrap();
        assert_eq!(SelfTest::read(folder.path()).unwrap(), Some(written));
        let path = folder.path().join(SELF_TEST);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, says) in [
            ("\"format\": 1", "\"format\": 2", "format 2"),
            ("\"tokens\": [\n        1,\n        2\n      ]", "\"tokens\": []", "no tokens"),
        ] {
            assert!(text.contains(from), "{text}");
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = SelfTest::read(folder.path()).unwrap_err();
            assert!(error.message.contains(says) && error.exit_code() == 2, "{error}");
        }
    }

    #[test]
    fn what_no_run_writes_is_refused_with_the_files_name() {
        let of = |cases: Vec<Case>| Planned { cases, ..planned() }.rewarded(&[0.0; 20], "f32", None);
        let case = |tokens: Vec<u32>| Case { tokens, ..planned().cases[0].clone() };
        let check = |cases, max_length| of(cases).check(Path::new("folder"), max_length, 97);
        check(vec![case(vec![0, 96]); 10], 2).unwrap();
        check(vec![case(vec![1; LONGEST])], 1 << 20).unwrap();
        for (cases, max_length, says) in [
            (vec![case(vec![1]); 11], 2, "11 conversations, expected at most 10"),
            (vec![case(vec![1]), case(vec![1; 3])], 2, "\"one\" has 3 tokens, expected at most 2"),
            (vec![case(vec![1; LONGEST + 1])], 1 << 20, "tokens, expected at most 8192"),
            (vec![case(vec![1, 97])], 2, "\"one\" has the token 97, but the model has 97 tokens"),
        ] {
            let error = check(cases, max_length).unwrap_err();
            assert!(error.message.starts_with("folder/self-test.json: ") && error.message.contains(says), "{error}");
            assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        }
    }
}
