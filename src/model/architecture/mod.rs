//! Hugging Face `config.json` -> [`Architecture`]: the sizes of a model, and everything that sets families apart.
//!
//! Each family is a function in `architecture/families/`; `architecture/keys.rs` reads single keys, `architecture/rope.rs`
//! the rotary positions in both spellings: Transformers 4 (`rope_theta`, `rope_scaling`) and Transformers 5
//! (`rope_parameters`). Not here: what the decoder does with it.

mod common;
mod families;
mod keys;
mod mlp;
mod rope;

use crate::error::{Error, Result};
use crate::files;
use crate::packing::{AlikeLengths, AttentionRules, HeadCounts};
pub use families::Family;
pub use families::{FAMILIES, text_config};
use keys::{Keys, not_computed};
pub use mlp::Experts;
pub(crate) use mlp::Mlp;
use std::path::Path;

/// Well-known families that this program cannot compute, and why.
const NOT_COMPUTED: [(&[&str], &str); 1] = [(
    &["qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"],
    "its linear attention (gated delta rule), which carries a state along the sequence,",
)];

/// The largest config.json that is read.
pub(crate) const MOST_BYTES: u64 = 16 << 20;

/// A model's description: sizes, its blocks one by one, and a separate table of names. Nothing is deduced from names.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// V: rows of the token embedding.
    pub vocabulary: usize,
    /// D: width of the hidden states.
    pub width: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// The kind of all its norms.
    pub norm: NormKind,
    /// Epsilon of all norms.
    pub norm_epsilon: f64,
    /// Its blocks, in order, each with its own rules; apart from the MLP all have the same parameters.
    pub blocks: Vec<BlockDescription>,
    /// The rotary position embeddings that blocks refer to.
    pub rotations: Vec<Rotation>,
    /// Factor of the embeddings.
    pub embedding_scale: Option<f64>,
    /// Factor of the language-model head's logits.
    pub logit_scale: Option<f64>,
    /// c of c tanh(logit / c), applied to the scaled logits.
    pub logit_cap: Option<f64>,
    /// Whether the language-model head is the token embedding.
    pub tied: bool,
    /// Whether the language-model head has a bias, even if its matrix is the embedding.
    pub head_bias: bool,
    /// If this is the text part of a model that reads images too, that model's `model_type`; nothing else of it is read.
    pub part_of: Option<&'static str>,
    /// The names of parameters in files.
    pub names: Names,
}

/// How rows are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) * weight.
    RootMeanSquare,
    /// x / rms(x) * (1 + weight), Gemma's.
    RootMeanSquarePlusOne,
    /// (x - mean(x)) / deviation(x) * weight + bias.
    Layer,
    /// The same without a bias, Cohere's.
    LayerWithoutBias,
}

impl NormKind {
    /// Names of its parameters, each `[D]`, in the order of the segment.
    pub(crate) fn parameters(self) -> &'static [&'static str] {
        if self == Self::Layer { &["weight", "bias"] } else { &["weight"] }
    }

    /// Whether rows are centered on their mean.
    pub(crate) fn is_centered(self) -> bool {
        matches!(self, Self::Layer | Self::LayerWithoutBias)
    }
}

/// What one block computes.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockDescription {
    /// Query and key/value heads, and their width.
    pub heads: HeadCounts,
    /// How attention scores are transformed and masked.
    pub rules: AttentionRules,
    /// Which of [`Architecture::rotations`] rotates queries and keys; none if the block has no rotation.
    pub rotation: Option<usize>,
    /// How queries and keys are normed before rotation.
    pub(crate) query_key_norm: Option<QueryKeyNorm>,
    /// Which of attention's linear maps have biases.
    pub(crate) biases: AttentionBiases,
    /// How a file orders the rows of queries, keys and values.
    pub(crate) stored: StoredHeads,
    /// The MLP.
    pub mlp: Mlp,
    /// Which norms there are.
    pub(crate) norms: BlockNorms,
    /// How its two halves join.
    pub residual: Residual,
    /// Factor of each half's result before it is added.
    pub residual_scale: Option<f64>,
}

/// How queries and keys are normed, by the model's kind of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryKeyNorm {
    /// Each head for itself, with one weight `[E]` (and bias) for all heads.
    PerHead,
    /// All heads of a row together, with a weight [H E] or [G E].
    WholeWidth,
}

/// How a file orders the rows of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredHeads {
    /// Three matrices.
    Apart,
    /// One matrix: all queries, then all keys, then all values.
    Stacked,
    /// One matrix, head by head: [H, 3, E].
    HeadByHead,
}

/// Which of attention's linear maps have biases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AttentionBiases {
    /// Queries, keys and values.
    pub(crate) query_key_value: bool,
    /// Attention's output.
    pub(crate) output: bool,
}

/// Which norms of hidden states a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockNorms {
    /// Before attention.
    pub(crate) before_attention: bool,
    /// After attention, on its result.
    pub(crate) after_attention: bool,
    /// Before the MLP.
    pub(crate) before_mlp: BeforeMlp,
    /// After the MLP, on its result.
    pub(crate) after_mlp: bool,
}

/// The norm before the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BeforeMlp {
    /// A norm of its own.
    Own,
    /// The norm before attention, whose output both read.
    Shared,
    /// No norm: the MLP reads the hidden states.
    None,
}

/// How the two halves of a block join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// The MLP reads the sum of the block's input and attention's result.
    Sequential,
    /// Both read the block's input, and both add to it.
    Parallel,
}

/// The names of parameters in a family's files, without `.weight` and `.bias`. The block descriptions say which of them
/// exist; the name of a parameter that a family lacks is never read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The Transformers class that reads the exported reward model; one that ends in `ForCausalLM` reads it without
    /// `score.weight`.
    pub(crate) reward_model: &'static str,
    /// The embedding.
    pub(crate) embedding: &'static str,
    /// Prefix of a block's number. The names from here to `norm` follow the number.
    pub(crate) block: &'static str,
    /// The norm before attention.
    pub(crate) input_norm: &'static str,
    /// Queries, keys and values, if they are three matrices.
    pub(crate) query_key_value: [&'static str; 3],
    /// The same if they are one matrix.
    pub(crate) stacked_query_key_value: &'static str,
    /// Norms of queries and of keys.
    pub(crate) query_key_norms: [&'static str; 2],
    /// Attention's output.
    pub(crate) attention_output: &'static str,
    /// The norm after attention.
    pub(crate) post_attention_norm: &'static str,
    /// The norm before the MLP.
    pub(crate) mlp_norm: &'static str,
    /// The router of experts.
    pub(crate) router: &'static str,
    /// Prefix of an expert's number.
    pub(crate) experts: &'static str,
    /// What follows the number: an expert's gate, up and down.
    pub(crate) expert_matrices: [&'static str; 3],
    /// The MLP's gate.
    pub(crate) gate: &'static str,
    /// The MLP's other factor, or its only one.
    pub(crate) up: &'static str,
    /// Gate and up if they are one matrix.
    pub(crate) stacked_gate_up: &'static str,
    /// The MLP's output.
    pub(crate) down: &'static str,
    /// The norm after the MLP.
    pub(crate) post_mlp_norm: &'static str,
    /// The final norm.
    pub(crate) norm: &'static str,
    /// The names that files have for the language-model head, if it is not the embedding; the first is written.
    pub(crate) head: &'static [&'static str],
}

/// A rotary position embedding of the first columns of each head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// Base and scaling.
    pub rope: Rope,
    /// Columns of a head that are rotated, from the first on; even.
    pub width: usize,
    /// Divisor of the exponents: `width`, or one less if a file asks for an odd number of columns.
    pub period: usize,
    /// Whether files turn neighboring columns of a head together (0 with 1, 2 with 3), not those of two halves. In memory the
    /// rows of queries and keys are sorted so that halves turn, which changes no score: both are sorted alike.
    pub(crate) neighbors: bool,
    /// How rotated queries grow with their position, if they do.
    pub query_growth: Option<QueryGrowth>,
}

/// Queries at position p are multiplied by 1 + beta ln(1 + floor(p / original)) (Llama 4; Ministral 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// The factor of the logarithm.
    pub beta: f64,
    /// Context length the model was first trained with.
    pub original: f64,
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
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, a smooth transition between.
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
    /// YaRN (arXiv 2309.00071): as Llama 3.1's, with a transition that is linear in the frequency's number.
    Yarn {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Frequencies with more turns than this within `original` are kept.
        fast: f64,
        /// Those with fewer turns than this are divided.
        slow: f64,
        /// Context length the model was first trained with.
        original: f64,
        /// Whether the transition starts and ends at whole numbers.
        truncate: bool,
        /// Factor of cosines and sines.
        magnitude: f64,
    },
    /// A larger base in sequences longer than `original`, by their own length ("NTK-aware", dynamic).
    Dynamic {
        /// How far contexts are stretched.
        factor: f64,
        /// Longest sequence that keeps the base.
        original: usize,
    },
    /// LongRoPE (arXiv 2402.13753): a divisor for each frequency, from one of two lists by the sequence's own length.
    Long {
        /// Divisors for sequences of up to `original` tokens.
        short: Vec<f64>,
        /// Divisors for longer ones.
        long: Vec<f64>,
        /// Context length the model was first trained with.
        original: usize,
        /// Factor of cosines and sines.
        magnitude: f64,
    },
}

impl RopeScaling {
    /// Which sequence lengths have the same frequencies; none: all.
    pub(crate) fn alike(&self) -> Option<AlikeLengths> {
        match self {
            Self::Dynamic { original, .. } => Some(AlikeLengths::UpTo(*original)),
            Self::Long { original, .. } => Some(AlikeLengths::OnEitherSideOf(*original)),
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } | Self::Yarn { .. } => None,
        }
    }
}

impl Architecture {
    /// Which sequence lengths have the same rotations, so that a prefix can be computed once for both; none: all.
    pub fn alike(&self) -> Option<AlikeLengths> {
        let mut rules = self.rotations.iter().filter_map(|rotation| rotation.rope.scaling.alike());
        let first = rules.next()?;
        Some(rules.fold(first, AlikeLengths::and))
    }

    /// Reads `config.json` of a Hugging Face folder.
    ///
    /// # Errors
    /// A missing or broken file, an unknown family, or missing or impossible values: one error that names every such key.
    pub fn open(model_dir: &Path) -> Result<Self> {
        Self::open_all(model_dir).map_err(|reasons| all(&model_dir.join("config.json"), reasons))
    }

    /// As [`Architecture::open`].
    ///
    /// # Errors
    /// Every fault of the file; at least one.
    pub fn open_all(model_dir: &Path) -> std::result::Result<Self, Vec<Error>> {
        let path = model_dir.join("config.json");
        let text = files::read_within(&path, MOST_BYTES).map_err(|error| {
            vec![error.hint("a Hugging Face folder is expected: config.json, *.safetensors, tokenizer.json")]
        })?;
        let placed = |reason: Error| reason.at(path.display());
        Self::parse_all(&String::from_utf8_lossy(&text)).map_err(|reasons| reasons.into_iter().map(placed).collect())
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`Architecture::open`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_all(text).map_err(|reasons| all(Path::new("config.json"), reasons))
    }

    fn parse_all(text: &str) -> std::result::Result<Self, Vec<Error>> {
        let keys = Keys::parse(text).map_err(|error| vec![error])?;
        let named = keys.text("model_type").unwrap_or_default();
        let model = match FAMILIES.iter().find(|family| family.model_type == named) {
            Some(family) => Some((family.read)(&keys)),
            None => {
                keys.fault("model_type", unknown(named));
                None
            }
        };
        let faults = keys.faults();
        model.filter(|_| faults.is_empty()).ok_or(faults)
    }
}

/// The error for an unknown family.
fn unknown(named: &str) -> Error {
    if let Some((_, why)) = NOT_COMPUTED.iter().find(|(families, _)| families.contains(&named)) {
        return not_computed(&format!("model_type \"{named}\""), why, "a model_type that `haf-dist models` lists");
    }
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    Error::input(format!("model_type \"{named}\" is not known")).hint(format!("known families: {}", known.join(", ")))
}

/// One error for all faults of a file.
fn all(path: &Path, reasons: Vec<Error>) -> Error {
    Error::all(
        format!("{} cannot be used", path.display()),
        "correct config.json or get it again, or use another model",
        reasons,
    )
}
