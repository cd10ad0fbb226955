//! The Hugging Face part of a checkpoint: config.json and the tokenizer's files.
//!
//! Transformers reads the reward at the rightmost token that is not `pad_token_id`, whatever the attention mask says.
//! So the exported pad token is one that occurs in no sequence, and the tokenizer pads with it too.

use super::chat_template::copy_named_templates;
use super::{Snapshot, read_json, to_json, write_text};
use crate::data::tokenizer_files::{self, MOST_BYTES_BESIDE};
use crate::error::{Error, Result};
use crate::files;
use crate::model::architecture::{self, text_config};
use crate::model::weight_files::{HEAD_NAME, REWARD_BIAS};
use crate::statistics::Spread;
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::Kind;

/// Files that are copied along with a model, if present.
pub(crate) const COMPANIONS: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "NOTICE",
];

/// Those of them that name the pad token.
const NAME_THE_PAD_TOKEN: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// Weights that stay f32 whatever the compute precision is.
const HEAD: &str = "score.weight";

/// Suffix of causal language-model classes. Some families have no other class in Transformers; it reads the model without its
/// reward head.
const CAUSAL: &str = "ForCausalLM";

/// Key of config.json: whether the language-model head is the embedding.
const TIED: &str = "tie_word_embeddings";

/// Names in weight files of a language-model head that is not the embedding.
const LANGUAGE_MODEL_HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// The model card for a family that has only such a class.
const CAUSAL_CARD: &str = include_str!("causal_card.md");

/// The Hugging Face part of a whole model, without its weights.
pub(crate) struct Export<'a> {
    /// The folder that config.json comes from.
    pub(crate) model_dir: &'a Path,
    /// The folder that the tokenizer's files come from.
    pub(crate) tokenizer_dir: &'a Path,
    /// Name of the Transformers class.
    pub(crate) architecture: &'a str,
    /// A token that occurs in no sequence and is not an end of sequence; see [`choose_pad_token`].
    pub(crate) pad_token_id: u32,
    /// Kind of the weights: f32, bf16 or f16.
    pub(crate) kind: Kind,
    /// Whether a language-model head of its own is among the weights, whatever the source's config.json says.
    pub(crate) untied: bool,
    /// Bias of the reward head, which `score.weight` alone lacks.
    pub(crate) reward_bias: f64,
    /// Rewards on the dev pairs, if the model was evaluated on them.
    pub(crate) dev_rewards: Option<Spread>,
}

impl Snapshot<'_> {
    /// The files that go with the weights of a whole model.
    pub(super) fn export(&self) -> Result<Export<'_>> {
        let weight = self.weights.iter().find(|weight| weight.name != HEAD);
        let kind = weight.map(|weight| weight.kind).ok_or_else(|| Error::runtime("no weights to export"))?;
        let Self { model_dir, architecture, pad_token_id, .. } = *self;
        let dev_rewards = self.self_test.as_ref().and_then(|test| test.dev_rewards);
        let (tokenizer_dir, reward_bias) = (model_dir, 0.0);
        let untied = self.weights.iter().any(|weight| LANGUAGE_MODEL_HEADS.contains(&weight.name.as_str()));
        Ok(Export { model_dir, tokenizer_dir, architecture, pad_token_id, kind, untied, reward_bias, dev_rewards })
    }
}

impl Export<'_> {
    /// Writes config.json and the companions into `folder`.
    ///
    /// # Errors
    /// A source that cannot be read, a pad token that ends sequences, weights of another kind, or a failed write.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        write_text(&folder.join("config.json"), &to_json(&self.config()?)?)?;
        if self.architecture.ends_with(CAUSAL) {
            write_text(&folder.join("README.md"), CAUSAL_CARD)?;
        }
        write_companions(folder, self.tokenizer_dir, self.pad_token_id)
    }

    /// The source's config.json, changed as little as a reward model needs.
    fn config(&self) -> Result<Map<String, Value>> {
        let path = self.model_dir.join("config.json");
        // Of a model that also reads images, only the text part was trained, and only it is exported.
        let mut config = text_config(read_json(&path, architecture::MOST_BYTES)?);
        let pad = self.pad_token_id;
        if ends(&config).contains(&pad) {
            return Err(Error::runtime(format!("pad token {pad} is an end of sequence of {}", path.display())));
        }
        let dtype = self.dtype()?;
        config.insert("architectures".into(), json!([self.architecture]));
        name_the_reward(&mut config);
        // OpenRLHF normalizes by these; those of the starting model no longer hold.
        for key in ["mean", "std"] {
            config.shift_remove(key);
        }
        if let Some(Spread { mean, std }) = self.dev_rewards {
            config.extend([("mean".into(), json!(mean)), ("std".into(), json!(std))]);
        }
        // Names Python code that is not copied along; Transformers has its own for every family known here.
        config.shift_remove("auto_map");
        config.insert("pad_token_id".into(), json!(pad));
        if self.untied && config.get(TIED) != Some(&json!(false)) {
            config.insert(TIED.into(), json!(false));
        }
        // The head is `score`, whatever the source's was called, and has no bias of its own.
        config.shift_remove(HEAD_NAME);
        config.shift_remove(REWARD_BIAS);
        if self.reward_bias != 0.0 {
            config.insert(REWARD_BIAS.into(), json!(self.reward_bias));
        }
        // Transformers 5 reads `dtype`, 4 reads `torch_dtype`.
        config.insert("dtype".into(), json!(dtype));
        config.insert("torch_dtype".into(), json!(dtype));
        Ok(config)
    }

    /// PyTorch's name for the weights' precision.
    fn dtype(&self) -> Result<&'static str> {
        match self.kind {
            Kind::Float => Ok("float32"),
            Kind::BFloat16 => Ok("bfloat16"),
            Kind::Half => Ok("float16"),
            other => Err(Error::runtime(format!("weights to export are f32, bf16 or f16, not {other:?}"))),
        }
    }
}

/// Declares a model's only label to be a reward.
fn name_the_reward(config: &mut Map<String, Value>) {
    // Transformers derives `num_labels` from these.
    config.insert("id2label".into(), json!({ "0": "reward" }));
    config.insert("label2id".into(), json!({ "reward": 0 }));
    // Without it Transformers' pipeline and vLLM put a sigmoid over the reward.
    config.insert("problem_type".into(), json!("regression"));
    config.shift_remove("num_labels");
}

/// Adds to the config.json of a model trained by an earlier version the keys about the reward that this version writes. An
/// adapter has no config.json.
///
/// # Errors
/// A config.json that is not a JSON object, or a failed write.
pub(crate) fn complete_config(folder: &Path) -> Result<()> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(());
    }
    let before: Map<String, Value> = read_json(&path, architecture::MOST_BYTES)?;
    let mut config = before.clone();
    name_the_reward(&mut config);
    if config == before { Ok(()) } else { write_text(&path, &to_json(&config)?) }
}

/// Copies the tokenizer's files from `source` into `folder`; those that name the pad token get the given one.
///
/// # Errors
/// A source that cannot be read, or a failed write.
pub(super) fn write_companions(folder: &Path, source: &Path, pad_token_id: u32) -> Result<()> {
    let pad_token = token_text(source, pad_token_id)?;
    if pad_token.is_none() {
        tracing::warn!(
            "token {pad_token_id} has no text in tokenizer.json: pad batches for Transformers with this id, not with \
             the tokenizer's own pad token"
        );
    }
    for name in COMPANIONS {
        let (source, target) = (source.join(name), folder.join(name));
        if !source.is_file() {
            continue;
        }
        match &pad_token {
            Some(token) if NAME_THE_PAD_TOKEN.contains(&name) => {
                let mut content: Map<String, Value> = read_json(&source, MOST_BYTES_BESIDE)?;
                content.insert("pad_token".into(), json!(token));
                write_text(&target, &to_json(&content)?)?;
            }
            _ => {
                files::copy_within(&source, &target, tokenizer_files::MOST_BYTES)?;
            }
        }
    }
    copy_named_templates(source, folder)
}

/// The id of the pad token that the tokenizer's files in `folder` name; `None` if they name none.
///
/// # Errors
/// A file that is no JSON.
pub fn pad_token(folder: &Path) -> Result<Option<u32>> {
    let path = folder.join(NAME_THE_PAD_TOKEN[0]);
    if !path.is_file() {
        return Ok(None);
    }
    let config: Value = read_json(&path, MOST_BYTES_BESIDE)?;
    // A string, or an added token's object.
    let named = [&config["pad_token"], &config["pad_token"]["content"]].into_iter().find_map(Value::as_str);
    match named {
        Some(text) => token_id(folder, text),
        None => Ok(None),
    }
}

/// Tokens that end a sequence according to config.json: none, one or several. None of them may pad.
///
/// # Errors
/// A config.json that cannot be read.
pub fn end_tokens(model_dir: &Path) -> Result<Vec<u32>> {
    read_json(&model_dir.join("config.json"), architecture::MOST_BYTES).map(|config| ends(&config))
}

fn ends(config: &Map<String, Value>) -> Vec<u32> {
    let ids = match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
        None => &[],
    };
    ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// A token's text in tokenizer.json; `None` without that file, or for an id that only the embedding matrix has.
fn token_text(model_dir: &Path, id: u32) -> Result<Option<String>> {
    let path = model_dir.join("tokenizer.json");
    if !path.is_file() {
        return Ok(None);
    }
    let tokenizer: Value = read_json(&path, tokenizer_files::MOST_BYTES)?;
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    if let Some(token) = added.into_iter().find(|token| token["id"].as_u64() == Some(id.into())) {
        return Ok(token["content"].as_str().map(String::from));
    }
    Ok(match &tokenizer["model"]["vocab"] {
        // BPE and WordPiece: text -> id.
        Value::Object(vocabulary) => {
            vocabulary.iter().find(|(_, value)| value.as_u64() == Some(id.into())).map(|(text, _)| text.clone())
        }
        // Unigram: [text, score] at the index of its id.
        Value::Array(vocabulary) => vocabulary.get(id as usize).and_then(|entry| entry[0].as_str()).map(String::from),
        _ => None,
    })
}

/// The ids of the special tokens of a folder's tokenizer.json; none without that file.
///
/// # Errors
/// A file that is no JSON.
pub fn special_tokens(folder: &Path) -> Result<Vec<u32>> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let tokenizer: Value = read_json(&path, tokenizer_files::MOST_BYTES)?;
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let special = added.filter(|token| token["special"].as_bool() == Some(true));
    Ok(special.filter_map(|token| u32::try_from(token["id"].as_u64()?).ok()).collect())
}

/// The id of a token's text; the reverse of [`token_text`].
fn token_id(model_dir: &Path, text: &str) -> Result<Option<u32>> {
    let path = model_dir.join("tokenizer.json");
    if !path.is_file() {
        return Ok(None);
    }
    let tokenizer: Value = read_json(&path, tokenizer_files::MOST_BYTES)?;
    let mut added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let id = match added.find(|token| token["content"].as_str() == Some(text)) {
        Some(token) => token["id"].as_u64(),
        None => match &tokenizer["model"]["vocab"] {
            Value::Object(vocabulary) => vocabulary.get(text).and_then(Value::as_u64),
            Value::Array(entries) => {
                entries.iter().position(|entry| entry[0].as_str() == Some(text)).map(|id| id as u64)
            }
            _ => None,
        },
    };
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

/// A token to pad with: one that occurs in no sequence and is not an end of sequence, below the vocabulary's size.
///
/// Prefers the special token (`is_special`) with the highest id, then any token with the highest id. `occurs[id]` says
/// whether a token occurs in any sequence; its length is the vocabulary's size V. `None` if every token is used.
pub fn choose_pad_token(occurs: &[bool], ends: &[u32], is_special: impl Fn(u32) -> bool) -> Option<u32> {
    let size = u32::try_from(occurs.len()).ok()?;
    let free: Vec<u32> = (0..size).rev().filter(|&id| !occurs[id as usize] && !ends.contains(&id)).collect();
    free.iter().copied().find(|&id| is_special(id)).or(free.first().copied())
}
