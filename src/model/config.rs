//! Hugging Face `config.json` -> [`Architecture`]: the sizes of a model, and everything that sets families apart.
//!
//! What each family is stands in `config/families.rs`, a function a family; `config/keys.rs` reads single keys,
//! `config/rope.rs` the rotary positions in both spellings: Transformers 4 (`rope_theta`, `rope_scaling`) and
//! Transformers 5 (`rope_parameters`). Not here: what the decoder does with it.

mod families;
mod keys;
mod rope;

use super::norm::NormKind;
use crate::error::{Error, Result};
use crate::files;
use crate::ops::Activation;
use crate::packing::{AttentionRules, HeadCounts};
use keys::Keys;
use std::path::Path;

/// The largest config.json that is read.
const MOST_BYTES: u64 = 16 << 20;

/// Everything the decoder needs to know about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// V: rows of the token embedding.
    pub vocabulary: usize,
    /// D: width of the hidden states.
    pub width: usize,
    /// F: width of the MLP.
    pub mlp_width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// What hidden states are normed by.
    pub norm: NormKind,
    /// Epsilon of all norms.
    pub norm_epsilon: f64,
    /// How the two halves of a block join.
    pub residual: Residual,
    /// The function in the MLP.
    pub activation: Activation,
    /// Whether it gates: activation(gate) * up, rather than activation(up).
    pub gated: bool,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Columns of a head that are rotated, from the first on.
    pub rotated_width: usize,
    /// What becomes of attention scores, block by block.
    pub attention: Vec<AttentionRules>,
    /// Whether a file holds the rows of queries, keys and values head by head: [H, 3, E] rather than [3, H, E].
    pub head_by_head: bool,
    /// Which linear maps have biases.
    pub biases: Biases,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f64>,
    /// c of c tanh(logit / c), taken of the language-model head's logits.
    pub logit_cap: Option<f64>,
    /// Whether the language-model head is the token embedding.
    pub tied: bool,
    /// What parameters are called in files, which also says which of them there are.
    pub names: Names,
}

/// How the two halves of a block join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// The MLP reads what attention has added to.
    Sequential,
    /// Both read the block's input, and both add to it.
    Parallel,
}

/// Which linear maps have biases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub query_key_value: bool,
    /// Attention's output.
    pub attention_output: bool,
    /// All of the MLP.
    pub mlp: bool,
    /// The language-model head.
    pub head: bool,
}

/// What parameters are called in a family's files, without `.weight` and `.bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The Transformers class that reads the exported reward model.
    pub reward_model: &'static str,
    /// Of the embedding.
    pub embedding: &'static str,
    /// What stands before a block's number. The names below this one and above `norm` follow after it.
    pub block: &'static str,
    /// The norm before attention.
    pub input_norm: &'static str,
    /// Queries, keys and values: three matrices, or one in which their rows follow one another.
    pub query_key_value: &'static [&'static str],
    /// Norms of every head of queries and of keys, if there are such.
    pub head_norms: Option<[&'static str; 2]>,
    /// Attention's output.
    pub attention_output: &'static str,
    /// A norm of what attention adds, if there is one.
    pub post_attention_norm: Option<&'static str>,
    /// The norm before the MLP; none where the MLP reads what attention reads.
    pub mlp_norm: Option<&'static str>,
    /// Gate and up: two matrices, or one in which their rows follow one another, or up alone.
    pub up: &'static [&'static str],
    /// The MLP's output.
    pub down: &'static str,
    /// A norm of what the MLP adds, if there is one.
    pub post_mlp_norm: Option<&'static str>,
    /// The final norm.
    pub norm: &'static str,
    /// The language-model head where it is not the embedding, under each name that files have for it; the first is
    /// written.
    pub head: &'static [&'static str],
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

impl Architecture {
    /// How a row is cut into attention heads.
    pub fn attention_heads(&self) -> HeadCounts {
        HeadCounts { query: self.heads, key: self.kv_heads, width: self.head_width }
    }

    /// Columns of what the MLP computes before its activation: 2 F with a gate, else F.
    pub fn inner_width(&self) -> usize {
        if self.gated { 2 * self.mlp_width } else { self.mlp_width }
    }

    /// Reads `config.json` of a Hugging Face folder.
    ///
    /// # Errors
    /// A missing or broken file, an unknown family, or a missing or impossible value; the message names the key.
    pub fn open(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("config.json");
        let text = files::read_within(&path, MOST_BYTES).map_err(|error| {
            error.hint("a Hugging Face folder is expected: config.json, *.safetensors, tokenizer.json")
        })?;
        let text = String::from_utf8_lossy(&text);
        Self::parse(&text).map_err(|error| {
            let error = error.at(path.display());
            match error.hint {
                Some(_) => error,
                None => error.hint("mend that key, or get config.json again from where the model is from"),
            }
        })
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`Architecture::open`].
    pub fn parse(text: &str) -> Result<Self> {
        let keys = Keys::parse(text)?;
        let family = keys.text("model_type")?.unwrap_or_default();
        match families::FAMILIES.iter().find(|(known, _)| *known == family) {
            Some((_, read)) => read(&keys),
            None => Err(Error::input(format!("model_type \"{family}\" is not known"))
                .hint(format!("known families: {}", families::FAMILIES.map(|(known, _)| known).join(", ")))),
        }
    }
}
