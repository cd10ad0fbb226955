//! A pair becomes tokens: prompt, answer and the turn's EOS, cut to length, the common prefix told apart.
//!
//! Not here: what text is tokenised (`template.rs`), and where tokens are kept (`prepared.rs`).

use crate::config::{TemplateKind, Truncation};
use crate::data::formats::DropReason;
use crate::data::template::Template;
use crate::data::{Message, Pair, Prompt, TemplateInputs, TokenPair};
use crate::error::{Error, Result, file_error};
use std::collections::HashSet;
use std::path::Path;
use tokenizers::{OffsetReferential, OffsetType, Tokenizer};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Part of the fingerprint: raise it when the rules below change what tokens a pair becomes.
const RULES: u32 = 2;

/// Turns pairs into tokens. Shared by threads.
///
/// A sequence is the rendered conversation up to the EOS of the answer's turn, tokenised as one text, so that its ids are
/// those of Transformers' `apply_chat_template`. The answer starts at the first token in which it differs from the
/// rendered prompt alone: a token that holds the prompt's last characters and the answer's first is the answer's. A chat
/// template writes its own BOS; to a plain one the BOS is added that the tokenizer would add. Special tokens inside a text
/// are special tokens, as in Transformers.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Template,
    max_length: usize,
    max_prompt_length: usize,
    truncation: Truncation,
    special: HashSet<u32>,
    bos: Option<u32>,
    eos: u32,
    eos_text: String,
    /// How many bytes of the template's tail stand after the EOS.
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

/// A pair's tokens and what was done to fit them. See [`TokenPair`] for the layout.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedPair {
    /// Prefix, chosen suffix and rejected suffix, one after the other.
    pub tokens: Vec<u32>,
    /// Length of the common prefix, in tokens.
    pub prefix: usize,
    /// Length of the chosen suffix, in tokens.
    pub chosen: usize,
    /// Length of the rejected suffix, in tokens; 0 for a single row.
    pub rejected: usize,
    /// Tokens of the prompt, after cutting.
    pub prompt_length: usize,
    /// Hash of the rendered prompt, before cutting.
    pub prompt_hash: u64,
    /// The start of the prompt was cut.
    pub prompt_cut: bool,
    /// The end of an answer, and its EOS with it, was cut.
    pub answer_cut: bool,
    /// Special tokens that the pair's own texts hold, before cutting.
    pub special_in_text: usize,
}

impl OwnedPair {
    /// Borrows it in the form that batches are made of.
    pub fn as_token_pair(&self, margin: f32, domain: usize) -> TokenPair<'_> {
        let (prefix, rest) = self.tokens.split_at(self.prefix);
        let (chosen, rejected) = rest.split_at(self.chosen);
        let (prompt_length, prompt_hash) = (self.prompt_length, self.prompt_hash);
        TokenPair { prefix, chosen, rejected, prompt_length, margin, domain, prompt_hash }
    }
}

impl Encoder {
    /// Reads tokenizer and template from a model's folder. `vocab_size` is the model's; lengths are in tokens.
    ///
    /// # Errors
    /// A missing or broken file, no EOS token, lengths that leave no room, a tokenizer with ids that the model's
    /// embedding does not have.
    pub fn open(
        model_dir: &Path,
        template: TemplateKind,
        max_length: usize,
        max_prompt_length: usize,
        truncation: Truncation,
        vocab_size: usize,
    ) -> Result<Self> {
        if max_prompt_length == 0 || max_prompt_length >= max_length {
            return Err(Error::input(format!(
                "[data] max_prompt_length = {max_prompt_length} and max_length = {max_length}: expected \
                 0 < max_prompt_length < max_length"
            ))
            .hint("a sequence needs a token of prompt and a token of answer"));
        }
        let path = model_dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|error| {
            file_error(&path, "read", &error)
                .hint("a model or checkpoint is a Hugging Face folder, which holds a tokenizer.json")
        })?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| {
            Error::input(format!("{}: broken tokenizer: {error}", path.display())).hint("fetch it again")
        })?;
        // The file may carry limits of an earlier use; Transformers does not apply them either.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| Error::runtime(format!("{}: {error}", path.display())))?;
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= vocab_size {
            return Err(Error::input(format!(
                "{}: the tokenizer's largest id is {largest}, the model's vocabulary has {vocab_size} entries",
                path.display()
            ))
            .hint("use the tokenizer that belongs to the model, or resize the model's embedding"));
        }

        let template = Template::open(template, model_dir)?;
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
        let special = special.into_iter().map(|(_, id)| id).collect();

        let settings = format!("{RULES} {max_length} {max_prompt_length} {truncation:?} {}", template.source());
        let hashes = [xxh3_128(&bytes), xxh3_128(settings.as_bytes())].map(u128::to_le_bytes);
        Ok(Self {
            tokenizer,
            template,
            max_length,
            max_prompt_length,
            truncation,
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
    /// The template or the tokenizer cannot take the text; the error names the pair's line.
    pub fn encode(&self, pair: &Pair) -> Result<Encoded> {
        self.encode_pair(pair).map_err(|error| error.at(format_args!("line {}", pair.line)))
    }

    /// Hash of everything that decides what tokens a pair becomes, besides the pair.
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
        let mut prompt = self.ids_after_bos(&prompt_text)?;

        // An answer that brings its EOS along must not get two.
        let texts: Vec<Message> =
            [Some(&pair.chosen), pair.rejected.as_ref()].into_iter().flatten().map(|it| self.without_eos(it)).collect();
        let says_nothing = |answer: &Message| answer.text().trim().is_empty() && answer.more.is_empty();
        if texts.len() == 2 && texts.iter().any(says_nothing) {
            return Ok(Encoded::Dropped(DropReason::EmptyAnswer));
        }
        let mut special_in_text: usize = match &pair.prompt {
            Prompt::Text(text) => self.special_in(text),
            Prompt::Messages(messages) => messages.iter().map(|turn| self.special_in(turn.text())).sum(),
        };
        let mut answers = Vec::with_capacity(2);
        for answer in &texts {
            special_in_text += self.special_in(answer.text());
            let sequence = self.sequence(&pair.prompt, &pair.inputs, answer)?;
            prompt.truncate(common(&prompt, &sequence));
            answers.push(sequence);
        }
        if prompt.is_empty() {
            return Ok(Encoded::Dropped(DropReason::EmptyPrompt));
        }
        answers.iter_mut().for_each(|answer| drop(answer.drain(..prompt.len())));

        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let over = (prompt.len() + longest).saturating_sub(self.max_length);
        if over > 0 && self.truncation == Truncation::Drop {
            return Ok(Encoded::Dropped(DropReason::TooLong));
        }
        // As much of the prompt as needed and as allowed; the BOS stays in front.
        let cut = over.min(prompt.len().saturating_sub(self.max_prompt_length));
        let kept_front = usize::from(prompt.first().copied() == self.bos && self.bos.is_some());
        prompt.drain(kept_front..kept_front + cut);
        let room = self.max_length - prompt.len();
        let answer_cut = longest > room;
        answers.iter_mut().for_each(|answer| answer.truncate(room));

        let mut answers = answers.into_iter();
        let (chosen, rejected) = (answers.next().unwrap_or_default(), answers.next());
        if rejected.as_ref() == Some(&chosen) {
            return Ok(Encoded::Dropped(DropReason::IdenticalAnswers));
        }
        let pair = joined(&prompt, &chosen, rejected.as_deref());
        let prompt_hash = xxh3_64(prompt_text.as_bytes());
        Ok(Encoded::Kept(OwnedPair { prompt_hash, prompt_cut: cut > 0, answer_cut, special_in_text, ..pair }))
    }

    /// Turns three texts, tokenised one by one, into a pair: no template, no BOS, an EOS behind each answer. For programs
    /// that are timed on the same tokens; a text across the border of two of them would have other tokens in training.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_apart(&self, prompt: &str, chosen: &str, rejected: &str) -> Result<Encoded> {
        let tokens = ids(&self.tokenizer, prompt)?;
        let answer = |text: &str| -> Result<Vec<u32>> { Ok([ids(&self.tokenizer, text)?, vec![self.eos]].concat()) };
        let (chosen, rejected) = (answer(chosen)?, answer(rejected)?);
        if tokens.len() + chosen.len().max(rejected.len()) > self.max_length {
            return Ok(Encoded::Dropped(DropReason::TooLong));
        }
        let pair = joined(&tokens, &chosen, Some(&rejected));
        Ok(Encoded::Kept(OwnedPair { prompt_hash: xxh3_64(prompt.as_bytes()), ..pair }))
    }

    /// Tokens of a whole conversation up to the EOS of the answer's turn; what the template writes after that is dropped.
    fn sequence(&self, prompt: &Prompt, inputs: &TemplateInputs, answer: &Message) -> Result<Vec<u32>> {
        let mut text = self.template.render(prompt, inputs, answer)?;
        if text.ends_with(self.template.tail()) {
            text.truncate(text.len() - self.after_eos);
        }
        let mut tokens = self.ids_after_bos(&text)?;
        if tokens.last() != Some(&self.eos) {
            tokens.push(self.eos);
        }
        Ok(tokens)
    }

    /// Tokens of a rendered text, behind a BOS where a plain template leaves that to the tokenizer.
    fn ids_after_bos(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = ids(&self.tokenizer, text)?;
        if let Some(bos) = self.bos.filter(|bos| !self.template.writes_bos() && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    fn without_eos(&self, answer: &Message) -> Message {
        let content = answer.content.as_ref().map(|text| text.trim_end_matches(&self.eos_text[..]).to_owned());
        Message { content, ..answer.clone() }
    }

    /// Special tokens that a text is read as holding.
    fn special_in(&self, text: &str) -> usize {
        let added = self.tokenizer.get_added_vocabulary();
        let pieces = added.extract_and_normalize(self.tokenizer.get_normalizer(), text);
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let tokens = splits.iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten();
        tokens.filter(|token| self.special.contains(&token.id)).count()
    }
}

/// The first special token in what the template writes after an answer, else the tokenizer's EOS: its text, its id,
/// and how many bytes of the tail stand after it.
fn turn_end(template: &Template, special: &[(String, u32)], tokenizer: &Tokenizer) -> Result<(String, u32, usize)> {
    let tail = template.tail();
    let found = special.iter().filter_map(|(text, id)| Some((tail.find(&text[..])?, text, *id)));
    // Of two that start at one place the longer one is the token.
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
        // What a template without special tokens writes after an answer is dropped whole.
        Some(id) => Ok((text.clone(), id, tail.len())),
        None => {
            Err(Error::input(format!("the `eos_token` {text:?} of tokenizer_config.json is not in tokenizer.json"))
                .hint("are both files from the same model?"))
        }
    }
}

/// The BOS: for a chat template the `bos_token` it opens a conversation with, for a plain one what the tokenizer adds.
fn opening_token(template: &Template, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    if template.writes_bos() {
        let probe = ids(tokenizer, &template.render_prompt(&Prompt::Text("Hi.".into()), &TemplateInputs::default())?)?;
        let bos = template.special_tokens().get("bos_token").and_then(|text| tokenizer.token_to_id(text));
        // A token that opens every turn (ChatML's, named BOS by some models) is no BOS.
        return Ok(bos.filter(|bos| probe.first() == Some(bos) && !probe[1..].contains(bos)));
    }
    let (with, without) = (encoded(tokenizer, "a", true)?, ids(tokenizer, "a")?);
    let added = with.len() > without.len() && with.first() != without.first();
    Ok(with.first().copied().filter(|_| added))
}

/// A prompt and its answers as one pair, of which nothing is cut.
fn joined(prompt: &[u32], chosen: &[u32], rejected: Option<&[u32]>) -> OwnedPair {
    // Each suffix keeps at least one token, so that each sequence's last token is its own.
    let common = rejected.map_or(0, |rejected| common(chosen, rejected).min(chosen.len() - 1).min(rejected.len() - 1));
    let rejected = rejected.map_or(&[][..], |rejected| &rejected[common..]);
    OwnedPair {
        prefix: prompt.len() + common,
        chosen: chosen.len() - common,
        rejected: rejected.len(),
        tokens: [prompt, chosen, rejected].concat(),
        prompt_length: prompt.len(),
        prompt_hash: 0,
        prompt_cut: false,
        answer_cut: false,
        special_in_text: 0,
    }
}

/// How many tokens two sequences have in common at their start.
fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// Tokens of a text as it stands.
fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    encoded(tokenizer, text, false)
}

fn encoded(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
    match tokenizer.encode_fast(text, add_special_tokens) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(error) => Err(Error::input(format!("the tokenizer cannot read a text: {error}"))
            .hint("a tokenizer without an unknown token cannot read characters outside its alphabet")),
    }
}
