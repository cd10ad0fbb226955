//! Hugging Face `config.json` -> [`Architecture`]: what makes each model family what it is, in one place.
//!
//! Both spellings are read: Transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and Transformers 5
//! (`rope_parameters`, `dtype`).

use super::attention::Heads;
use crate::error::{Error, Result, file_error};
use serde::Deserialize;
use std::path::Path;

/// The families this build knows, by their `model_type`.
pub const FAMILIES: &[&str] = &["llama"];

/// Everything the decoder needs to know about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// V: rows of the token embedding.
    pub vocabulary: usize,
    /// D: width of the hidden states.
    pub width: usize,
    /// Width of the gated MLP.
    pub mlp_width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Epsilon of the root-mean-square norms.
    pub norm_epsilon: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the language-model head is the token embedding.
    pub tied: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the MLP projections have biases.
    pub mlp_bias: bool,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
}

/// Rotary position embedding: base and scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above original / low_factor are divided.
        low_factor: f64,
        /// Wavelengths below original / high_factor are kept.
        high_factor: f64,
        /// Context length the model was first trained with.
        original: f64,
    },
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The name before Transformers 4.43; files saved again since then hold both.
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Architecture {
    /// How a row is cut into attention heads.
    pub fn attention_heads(&self) -> Heads {
        Heads { query: self.heads, key: self.kv_heads, width: self.head_width }
    }

    /// Reads `config.json` of a Hugging Face folder.
    ///
    /// # Errors
    /// A missing or broken file, an unknown family, or a missing or impossible value; the message names the key.
    pub fn open(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            file_error(&path, "read", &error)
                .hint("a Hugging Face folder is expected: config.json, *.safetensors, tokenizer.json")
        })?;
        Self::parse(&text).map_err(|error| {
            let error = error.at(path.display());
            if error.hint.is_some() {
                error
            } else {
                error.hint("is the file whole, and of a model family that is known?")
            }
        })
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`Architecture::open`].
    pub fn parse(text: &str) -> Result<Self> {
        let raw: Raw =
            serde_json::from_str(text).map_err(|error| Error::input(format!("not a model config: {error}")))?;
        match raw.model_type.as_deref().unwrap_or_default() {
            "llama" => raw.llama(),
            other => Err(Error::input(format!("model_type \"{other}\" is not known"))
                .hint(format!("known families: {}", FAMILIES.join(", ")))),
        }
    }

    /// Name of the Transformers class that reads the exported reward model.
    pub fn reward_model_class(&self) -> &'static str {
        "LlamaForSequenceClassification"
    }
}

impl Raw {
    fn llama(self) -> Result<Architecture> {
        let width = positive("hidden_size", self.hidden_size)?;
        let heads = positive("num_attention_heads", self.num_attention_heads)?;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::input(format!(
                "num_attention_heads = {heads} must be a multiple of num_key_value_heads = {kv_heads}"
            )));
        }
        if self.head_dim.is_none() && width % heads != 0 {
            return Err(Error::input(format!(
                "hidden_size = {width} must be a multiple of num_attention_heads = {heads}"
            )));
        }
        let head_width = positive("head_dim", Some(self.head_dim.unwrap_or(width / heads)))?;
        if head_width % 2 != 0 {
            return Err(Error::input(format!("head_dim = {head_width} must be even for rotary positions")));
        }
        if let Some(activation) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(Error::input(format!(
                "hidden_act = \"{activation}\": this family is known with \"silu\" only"
            )));
        }
        Ok(Architecture {
            vocabulary: positive("vocab_size", self.vocab_size)?,
            width,
            mlp_width: positive("intermediate_size", self.intermediate_size)?,
            layers: positive("num_hidden_layers", self.num_hidden_layers)?,
            heads,
            kv_heads,
            head_width,
            norm_epsilon: self.rms_norm_eps.unwrap_or(1e-6),
            rope: self.rope()?,
            tied: self.tie_word_embeddings.unwrap_or(false),
            attention_bias: self.attention_bias.unwrap_or(false),
            mlp_bias: self.mlp_bias.unwrap_or(false),
            max_positions: self.max_position_embeddings.unwrap_or(2048),
        })
    }

    fn rope(&self) -> Result<Rope> {
        let raw = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = raw.and_then(|raw| raw.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let Some(raw) = raw else { return Ok(Rope { theta, scaling: RopeScaling::None }) };
        let need = |key: &str, value: Option<f64>| match value {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            Some(value) => Err(Error::input(format!("rope scaling: {key} = {value} must be positive"))),
            None => Err(Error::input(format!("rope scaling: {key} is missing"))),
        };
        let scaling = match raw.rope_type.as_deref().or(raw.old_rope_type.as_deref()).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor", raw.factor)? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor", raw.factor)?,
                low_factor: need("low_freq_factor", raw.low_freq_factor)?,
                high_factor: need("high_freq_factor", raw.high_freq_factor)?,
                original: need("original_max_position_embeddings", raw.original_max_position_embeddings)?,
            },
            other => {
                return Err(
                    Error::input(format!("rope_type \"{other}\" is not known")).hint("known: default, linear, llama3")
                );
            }
        };
        Ok(Rope { theta, scaling })
    }
}

fn positive(key: &str, value: Option<usize>) -> Result<usize> {
    match value {
        Some(0) => Err(Error::input(format!("{key} = 0 must be positive"))),
        Some(value) => Ok(value),
        None => Err(Error::input(format!("{key} is missing"))),
    }
}
