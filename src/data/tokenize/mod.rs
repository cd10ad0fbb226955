//! Turns a pair into tokens: prompt, answer and the turn's EOS, cut to length, with the length of their common prefix.
//!
//! Not here: the text that is tokenized (`template/`), where an answer is rewarded (`sequence.rs`), and where tokens are kept
//! (`prepared.rs`).

mod borders;
mod conversation;
mod offsets;
mod unread;

use crate::config::{RewardAt, TemplateKind, Truncation};
use crate::data::formats::DropReason;
use crate::data::sequence::{OwnedPair, Sequence, common, joined};
use crate::data::template::Template;
use crate::data::tokenizer_files::{self, FolderTokenizer};
use crate::data::{AnswerSpan, Message, Pair, Prompt, TemplateInputs};
use crate::error::{Error, Result};
use crate::panics::contain;
use borders::{Marks, Start};
use std::collections::HashSet;
use std::path::Path;
use tokenizers::{OffsetReferential, OffsetType, Tokenizer};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub use crate::data::rules::Rules;
pub(crate) use unread::Unread;

/// Part of the fingerprint: raise it when the rules below change what tokens a pair becomes.
const VERSION: u32 = 3;

/// Turns pairs into tokens. Shared by threads.
///
/// A sequence is the rendered conversation, tokenized as one text, so that its ids are those of Transformers'
/// `apply_chat_template`: up to the EOS of the answer's turn, or to the end of the rendering if the reward is read there,
/// too. The answer starts at the first token in which it differs from the rendered prompt alone: a token with the prompt's
/// last characters and the answer's first belongs to the answer. It ends with its EOS, wherever the reward is read. A chat
/// template writes its own BOS; for a plain one, the BOS that the tokenizer would add is added. Special tokens inside a text
/// are special tokens, as in Transformers.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// Rows of the model's embedding.
    vocab_size: usize,
    template: Template,
    rules: Rules,
    special: HashSet<u32>,
    /// Texts of the special tokens, if a text without any of them has no special token; see `borders.rs`.
    special_texts: Option<Marks>,
    borders: Marks,
    bos: Option<u32>,
    eos: u32,
    eos_text: String,
    /// Number of bytes of the template's tail after the EOS.
    after_eos: usize,
    fingerprint: u128,
}

/// A pair's tokens, or why it has none.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoded {
    /// The pair's tokens.
    Kept(OwnedPair),
    /// The pair is not used.
    Dropped(DropReason),
}

impl Encoder {
    /// Reads tokenizer and template from a model's folder. `vocab_size` is the model's.
    ///
    /// # Errors
    /// A missing or broken file, no EOS token or one that the model's embedding has no row for, lengths that leave no room.
    pub fn open(model_dir: &Path, rules: Rules, vocab_size: usize) -> Result<Self> {
        let Rules { max_length, max_prompt_length, .. } = rules;
        if max_prompt_length == 0 || max_prompt_length >= max_length {
            return Err(Error::input(format!(
                "[data] max_prompt_length = {max_prompt_length} and max_length = {max_length}: expected \
                 0 < max_prompt_length < max_length"
            ))
            .hint("a sequence needs a token of prompt and a token of answer"));
        }
        let FolderTokenizer { tokenizer, fingerprint } = tokenizer_files::open(model_dir)?;
        let template = Template::open(rules.template, model_dir)?;
        let mut special: Vec<_> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect();
        for text in template.special_tokens().values() {
            special.extend(tokenizer.token_to_id(text).map(|id| (text.clone(), id)));
        }
        let (eos_text, eos, after_eos) =
            turn_end(&template, &special, &tokenizer).map_err(|e| e.at(model_dir.display()))?;
        let bos = opening_token(&template, &tokenizer)?;
        check_rows(&[Some(eos), bos].into_iter().flatten().collect::<Vec<_>>(), &tokenizer, vocab_size)
            .map_err(|e| e.at(model_dir.display()))?;
        let special: HashSet<u32> = special.into_iter().map(|(_, id)| id).collect();

        let settings = format!("{VERSION} {rules:?} {}", template.source());
        let hashes = [fingerprint, xxh3_128(settings.as_bytes())].map(u128::to_le_bytes);
        Ok(Self {
            special_texts: borders::written(&tokenizer, &special),
            borders: borders::borders(&tokenizer),
            tokenizer,
            vocab_size,
            template,
            rules,
            special,
            bos,
            eos,
            eos_text,
            after_eos,
            fingerprint: xxh3_128(hashes.as_flattened()),
        })
    }

    /// Turns a pair, or a single row, into tokens.
    ///
    /// # Errors
    /// The template or the tokenizer cannot take the text, or it holds a token that the model's embedding has no row for; the
    /// error names the pair's line.
    pub fn encode(&self, pair: &Pair) -> Result<Encoded> {
        self.encode_pair(pair).map_err(|error| error.at(format_args!("line {}", pair.line)))
    }

    /// Hash of everything that determines a pair's tokens, apart from the pair.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// Text of tokens, special ones shown.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, false)
            .map_err(|error| Error::runtime(format!("the tokenizer cannot decode: {error}")))
    }

    /// The text of the BOS in front of a plain template; empty if there is none.
    ///
    /// # Errors
    /// As [`Encoder::decode`].
    pub(crate) fn bos_text(&self) -> Result<String> {
        self.bos.map_or(Ok(String::new()), |bos| self.decode(&[bos]))
    }

    /// Whether a program that tokenizes a rendered conversation like any other text puts a second BOS before the template's own.
    ///
    /// # Errors
    /// The tokenizer or the template fails.
    pub(crate) fn doubles_bos(&self) -> Result<bool> {
        let text = self.template.render_prompt(&Prompt::Text("Hi.".into()), &TemplateInputs::default())?;
        let tokens = tokenizer_files::encode(&self.tokenizer, &text, true)?;
        Ok(self.bos.is_some_and(|bos| tokens.starts_with(&[bos, bos])))
    }

    /// The token that ends an answer's turn.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The token that a sequence starts with, and that cutting a prompt keeps.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether a token is one of the tokenizer's special tokens.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    fn encode_pair(&self, pair: &Pair) -> Result<Encoded> {
        let prompt_text = self.template.render_prompt(&pair.prompt, &pair.inputs)?;

        // An answer that already has its EOS must not get two.
        let answers: Vec<Message> =
            [Some(&pair.chosen), pair.rejected.as_ref()].into_iter().flatten().map(|it| self.without_eos(it)).collect();
        let is_empty = |answer: &Message| answer.text().trim().is_empty() && answer.more.is_empty();
        if answers.len() == 2 && answers.iter().any(is_empty) {
            return Ok(Encoded::Dropped(DropReason::EmptyAnswer));
        }
        let mut special_in_text: usize = match &pair.prompt {
            Prompt::Text(text) => self.special_in(text),
            Prompt::Messages(messages) => messages.iter().map(|turn| self.special_in(turn.text())).sum(),
        };
        special_in_text += answers.iter().map(|answer| self.special_in(answer.text())).sum::<usize>();
        let render = |answer: &Message| self.template.render(&pair.prompt, &pair.inputs, answer);
        let texts = answers.iter().map(render).collect::<Result<Vec<_>>>()?;
        let start = self.shared_start(&prompt_text, &texts)?;
        let prompt = self.ids_after_bos(&prompt_text, &start)?;
        let mut answers = Vec::with_capacity(2);
        for text in &texts {
            let mut sequence = self.sequence(text, &start)?;
            sequence.span.start = common(&prompt, &sequence.tokens).min(sequence.span.end);
            answers.push(sequence);
        }
        // The part of the prompt that both sequences have.
        let prompt_length = answers.iter().map(|answer| answer.span.start).min().unwrap_or(0);
        if prompt_length == 0 {
            return Ok(Encoded::Dropped(DropReason::EmptyPrompt));
        }

        let Rules { max_length, max_prompt_length, truncation, .. } = self.rules;
        let longest = answers.iter().map(|answer| answer.tokens.len()).max().unwrap_or(0);
        let over = longest.saturating_sub(max_length);
        if over > 0 && truncation == Truncation::Drop {
            return Ok(Encoded::Dropped(DropReason::TooLong));
        }
        // As much of the prompt as needed and as allowed is cut; the BOS stays in front.
        let cut = over.min(prompt_length.saturating_sub(max_prompt_length));
        let kept_front = usize::from(prompt.first().copied() == self.bos && self.bos.is_some());
        let answer_cut = longest - cut > max_length;
        answers.iter_mut().for_each(|answer| answer.cut(kept_front..kept_front + cut, max_length));

        let mut answers = answers.into_iter();
        let (chosen, rejected) = (answers.next().unwrap_or_default(), answers.next());
        if rejected.as_ref().is_some_and(|rejected| rejected.tokens == chosen.tokens) {
            return Ok(Encoded::Dropped(DropReason::IdenticalAnswers));
        }
        let pair = joined(chosen, rejected);
        let prompt_hash = xxh3_64(prompt_text.as_bytes());
        Ok(Encoded::Kept(OwnedPair { prompt_hash, prompt_cut: cut > 0, answer_cut, special_in_text, ..pair }))
    }

    /// Turns three texts, tokenized one by one, into a pair: no template, no BOS, an EOS after each answer. For programs
    /// that are timed on the same tokens; in training, a token may extend across the border of two texts.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub(crate) fn encode_apart(&self, prompt: &str, chosen: &str, rejected: &str) -> Result<Encoded> {
        let prompt_hash = xxh3_64(prompt.as_bytes());
        let prompt = self.ids(prompt)?;
        let answer = |text: &str| -> Result<Sequence> {
            let tokens = [&prompt[..], &self.ids(text)?, &[self.eos]].concat();
            Ok(Sequence { span: AnswerSpan::to_end(prompt.len(), tokens.len()), tokens })
        };
        let (chosen, rejected) = (answer(chosen)?, answer(rejected)?);
        if chosen.tokens.len().max(rejected.tokens.len()) > self.rules.max_length {
            return Ok(Encoded::Dropped(DropReason::TooLong));
        }
        Ok(Encoded::Kept(OwnedPair { prompt_hash, ..joined(chosen, Some(rejected)) }))
    }

    /// Tokens of a rendered conversation, and where its answer ends and is rewarded; the answer's start is not known yet.
    fn sequence(&self, text: &str, start: &Start) -> Result<Sequence> {
        let mut to_eos = self.ids_after_bos(self.up_to_eos(text), start)?;
        if to_eos.last() != Some(&self.eos) {
            to_eos.push(self.eos);
        }
        // A plain template's text ends with the EOS.
        if self.rules.reward_at == RewardAt::Eos || self.rules.template != TemplateKind::Chat {
            return Ok(Sequence { span: AnswerSpan::to_end(0, to_eos.len()), tokens: to_eos });
        }
        let whole = self.ids_after_bos(text, start)?;
        match self.rules.reward_at {
            RewardAt::Both => Sequence::rewarded_twice(to_eos, whole).ok_or_else(|| {
                Error::input(
                    "the template's rendering of this conversation does not start with the tokens up to the EOS",
                )
                .hint("data.reward_at = \"both\" needs that; use \"eos\" or \"end\"")
            }),
            _ => Ok(Sequence::rewarded_at_end(&to_eos, whole, self.rules.skipped_at_end)),
        }
    }

    /// A rendered conversation up to the EOS of its last turn; all of it if the template wrote none.
    fn up_to_eos<'t>(&self, text: &'t str) -> &'t str {
        if text.ends_with(self.template.tail()) {
            return &text[..text.len() - self.after_eos];
        }
        match text.rsplit_once(&self.eos_text[..]) {
            Some((before, after)) if after.trim().is_empty() => &text[..before.len() + self.eos_text.len()],
            _ => text,
        }
    }

    /// Tokens of a rendered text, after a BOS if a plain template leaves that to the tokenizer. If the text begins with `start`,
    /// the tokens of that part are known.
    fn ids_after_bos(&self, text: &str, start: &Start) -> Result<Vec<u32>> {
        let mut tokens = match text.strip_prefix(start.text).filter(|_| !start.text.is_empty()) {
            Some(rest) => [&start.tokens[..], &self.ids(rest)?].concat(),
            None => self.ids(text)?,
        };
        if let Some(bos) = self.bos.filter(|bos| !self.template.writes_bos() && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// Tokens of a text alone: nothing is added, special tokens in it are special tokens.
    ///
    /// # Errors
    /// The tokenizer cannot take the text, or a token has no row of the embedding.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let tokens = ids(&self.tokenizer, text)?;
        check_rows(&tokens, &self.tokenizer, self.vocab_size)?;
        Ok(tokens)
    }

    fn without_eos(&self, answer: &Message) -> Message {
        let content = answer.content.as_ref().map(|text| text.trim_end_matches(&self.eos_text[..]).to_owned());
        Message { content, ..answer.clone() }
    }

    /// Number of special tokens in a text. If the tokenizer fails, [`Encoder::ids`] has the error.
    fn special_in(&self, text: &str) -> usize {
        if self.special_texts.as_ref().is_some_and(|texts| !texts.are_in(text)) {
            return 0;
        }
        let added = self.tokenizer.get_added_vocabulary();
        let pieces = contain(|| added.extract_and_normalize(self.tokenizer.get_normalizer(), text));
        let Ok(pieces) = pieces else { return 0 };
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let tokens = splits.iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten();
        tokens.filter(|token| self.special.contains(&token.id)).count()
    }
}

/// Refuses a token beyond the embedding. A tokenizer may have such tokens (added, and the embedding not resized), as long as no
/// text uses one.
fn check_rows(tokens: &[u32], tokenizer: &Tokenizer, vocab_size: usize) -> Result<()> {
    let Some(beyond) = tokens.iter().find(|&&token| token as usize >= vocab_size) else { return Ok(()) };
    let text = tokenizer.id_to_token(*beyond).unwrap_or_default();
    Err(Error::input(format!("{text:?} is token {beyond}, but the model's embedding has {vocab_size} rows"))
        .hint("use the tokenizer that belongs to the model, take the token out of the text, or resize the embedding and train it"))
}

/// The first special token in what the template writes after an answer, else the tokenizer's EOS: its text, its id,
/// and the number of bytes of the tail after it.
fn turn_end(template: &Template, special: &[(String, u32)], tokenizer: &Tokenizer) -> Result<(String, u32, usize)> {
    let tail = template.tail();
    let found = special.iter().filter_map(|(text, id)| Some((tail.find(&text[..])?, text, *id)));
    // Of two that start at the same place, the longer one is the token.
    let first = found.min_by_key(|(start, text, _)| (*start, usize::MAX - text.len()));
    if let Some((start, text, id)) = first {
        return Ok((text.clone(), id, tail.len() - start - text.len()));
    }
    let Some(text) = template.special_tokens().get("eos_token") else {
        return Err(Error::input(
            "no EOS token: tokenizer_config.json has no `eos_token`, and the template writes none",
        )
        .hint("add \"eos_token\": \"...\" to tokenizer_config.json"));
    };
    match tokenizer.token_to_id(text) {
        // If the template writes no special token after an answer, all that it writes there is dropped.
        Some(id) => Ok((text.clone(), id, tail.len())),
        None => Err(Error::input(format!(
            "the `eos_token` {text:?} of tokenizer_config.json is not a token of the tokenizer"
        ))
        .hint("are both files from the same model?")),
    }
}

/// The BOS: for a chat template the `bos_token` with which it opens a conversation, for a plain one what the tokenizer adds.
fn opening_token(template: &Template, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    if template.writes_bos() {
        let probe = ids(tokenizer, &template.render_prompt(&Prompt::Text("Hi.".into()), &TemplateInputs::default())?)?;
        let bos = template.special_tokens().get("bos_token").and_then(|text| tokenizer.token_to_id(text));
        // A token that opens every turn (ChatML's, named BOS by some models) is no BOS.
        return Ok(bos.filter(|bos| probe.first() == Some(bos) && !probe[1..].contains(bos)));
    }
    let (with, without) = (tokenizer_files::encode(tokenizer, "a", true)?, ids(tokenizer, "a")?);
    let added = with.len() > without.len() && with.first() != without.first();
    Ok(with.first().copied().filter(|_| added))
}

/// Tokens of a text alone.
fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    tokenizer_files::encode(tokenizer, text, false)
}
