//! From a file of preference pairs to packed batches of tokens.

pub mod batch;
mod builder;
mod container;
pub(crate) mod doubts;
pub mod formats;
mod parallel;
pub mod prefetch;
pub mod prepared;
pub mod reference_cache;
pub mod report;
mod row;
mod rows;
mod rules;
pub mod sampler;
pub mod sequence;
pub mod split;
pub mod template;
pub mod tokenize;
pub mod tokenizer_files;
pub mod verbatim;

pub(crate) use rows::objects;

use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// Its text; `None` if the row has none, as with `tool_calls`.
    #[serde(default)]
    pub content: Option<String>,
    /// Further keys that a chat template may read, as the row has them: `tool_calls`, `reasoning_content`, `name`, ...
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Message {
    /// A turn with a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), more: Map::new() }
    }

    /// The assistant's turn with a text.
    pub fn answer(text: impl Into<String>) -> Self {
        Self::new("assistant", text)
    }

    /// Its text; empty if it has none.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }
}

/// A chat template's inputs other than the messages, under the names of Transformers' `apply_chat_template`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateInputs {
    /// `tools`: JSON schemas of functions; `None` if the row has none.
    pub tools: Option<Vec<Value>>,
    /// `documents`: texts to answer from; `None` if the row has none.
    pub documents: Option<Vec<Value>>,
    /// Further variables by name: a row's `chat_template_kwargs`.
    pub arguments: Map<String, Value>,
}

/// A prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// One user's text.
    Text(String),
    /// A conversation that the answer continues.
    Messages(Vec<Message>),
}

/// One preference, as read from a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The prompt of both answers.
    pub prompt: Prompt,
    /// The template's inputs other than prompt and answer.
    pub inputs: TemplateInputs,
    /// The better answer: the assistant's turn.
    pub chosen: Message,
    /// The worse answer; `None` for a single (prompt, answer) row, which can only be scored.
    pub rejected: Option<Message>,
    /// How much better, in units of reward.
    pub margin: Option<f32>,
    /// Neither answer is better: half a label in each direction.
    pub tied: bool,
    /// Name under which it is reported.
    pub domain: Option<String>,
    /// Line (JSONL), element (array) or row (Parquet) of its source, from 1.
    pub line: usize,
}

/// The position of one answer in its sequence of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerSpan {
    /// Position of its first token: log-probs are summed from here.
    pub start: usize,
    /// Position after its EOS, up to which log-probs are summed. After a cut, the sequence's length.
    pub end: usize,
    /// Position at which its reward is read.
    pub reward: usize,
    /// A second position at which the reward is trained, with `data.reward_at = "both"`, if it differs.
    pub second_reward: Option<usize>,
}

impl AnswerSpan {
    /// An answer from position `start` to the end of a sequence of `length` tokens, whose last token has the reward.
    pub fn to_end(start: usize, length: usize) -> Self {
        Self { start, end: length, reward: length.saturating_sub(1), second_reward: None }
    }

    /// Both answers of a pair whose sequences are `prefix + chosen` and `prefix + rejected` tokens long and have a prompt of
    /// `start` tokens.
    pub fn of_pair(start: usize, prefix: usize, chosen: usize, rejected: usize) -> [Self; 2] {
        [chosen, rejected].map(|suffix| match suffix {
            // A single row has no second answer.
            0 => Self::default(),
            _ => Self::to_end(start, prefix + suffix),
        })
    }
}

impl Pair {
    /// Names of the pair's inputs for a chat template other than roles and texts.
    pub fn for_template(&self) -> impl Iterator<Item = &str> {
        let turns: &[Message] = match &self.prompt {
            Prompt::Text(_) => &[],
            Prompt::Messages(turns) => turns,
        };
        let messages = turns.iter().chain([&self.chosen]).chain(&self.rejected);
        let TemplateInputs { tools, documents, arguments } = &self.inputs;
        let lists = [tools.as_ref().map(|_| "tools"), documents.as_ref().map(|_| "documents")];
        let of_messages = messages.flat_map(|message| message.more.keys());
        of_messages.chain(arguments.keys()).map(String::as_str).chain(lists.into_iter().flatten())
    }
}

/// One tokenized pair: the token prefix common to both sequences and the two suffixes. Borrowed from a mapped file.
///
/// The chosen sequence is `prefix ++ chosen`, the rejected one `prefix ++ rejected`; each suffix holds at least one
/// token (a single row's `rejected` is empty).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenPair<'a> {
    /// Tokens common to both sequences.
    pub prefix: &'a [u32],
    /// The chosen sequence's suffix.
    pub chosen: &'a [u32],
    /// The rejected sequence's suffix.
    pub rejected: &'a [u32],
    /// The positions of the two answers. Each starts at the first token in which its sequence differs from the prompt alone:
    /// they may start at different positions, within the prefix or after it.
    pub spans: [AnswerSpan; 2],
    /// How much better the chosen answer is, in units of reward; 0 if the source does not say.
    pub margin: f32,
    /// Neither answer is better: half a label in each direction.
    pub tied: bool,
    /// Index into the data set's domain names.
    pub domain: usize,
    /// Hash of the prompt's text: pairs of one prompt are not independent.
    pub prompt_hash: u64,
}
