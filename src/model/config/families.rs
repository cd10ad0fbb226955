//! What makes each model family what it is: a function a family, which says how it differs from Llama.
//!
//! Keys and defaults are those of the family's configuration class in Transformers. Not here: what a difference means
//! (`config.rs`), and how it is computed (`decoder.rs`).

use super::keys::Keys;
use super::rope::RopeKeys;
use super::{Architecture, Biases, Names, Residual};
use crate::error::{Error, Result};
use crate::model::norm::NormKind;
use crate::ops::Activation;
use crate::packing::AttentionRules;

/// Reads the keys of one family.
type Family = fn(&Keys) -> Result<Architecture>;

/// The families this build knows, by their `model_type`.
pub const FAMILIES: [(&str, Family); 8] = [
    ("llama", llama),
    ("mistral", mistral),
    ("qwen2", qwen2),
    ("qwen3", qwen3),
    ("phi", phi),
    ("phi3", phi3),
    ("gemma2", gemma2),
    ("gpt_neox", gpt_neox),
];

/// More blocks than any model has.
const MOST_LAYERS: usize = 10_000;

const LLAMA: Names = Names {
    reward_model: "LlamaForSequenceClassification",
    embedding: "model.embed_tokens",
    block: "model.layers.",
    input_norm: "input_layernorm",
    query_key_value: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    head_norms: None,
    attention_output: "self_attn.o_proj",
    post_attention_norm: None,
    mlp_norm: Some("post_attention_layernorm"),
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    post_mlp_norm: None,
    norm: "model.norm",
    head: &["lm_head"],
};

/// What a missing key means, where families differ in that.
struct Defaults {
    /// Key and value heads; none: as many as query heads.
    kv_heads: Option<usize>,
    /// `None`: the width of the hidden states, shared out.
    head_width: Option<usize>,
    positions: usize,
    epsilon: f64,
    tied: bool,
}

const DEFAULTS: Defaults = Defaults { kv_heads: None, head_width: None, positions: 2048, epsilon: 1e-6, tied: false };

/// What all have in common, in Llama's form: root-mean-square norms, a gated SiLU, whole heads rotated, one half of a
/// block after the other, no biases.
fn common(keys: &Keys, names: Names, rope: RopeKeys, defaults: &Defaults) -> Result<Architecture> {
    let (width, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
    let default = Some(defaults.kv_heads.unwrap_or(heads));
    let kv_heads = keys.size_if_any("num_key_value_heads", default)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(Error::input(format!(
            "num_attention_heads = {heads} must be a multiple of num_key_value_heads = {kv_heads}"
        )));
    }
    let head_width = match keys.size_if_any("head_dim", defaults.head_width)? {
        Some(head_width) => head_width,
        None if width % heads == 0 => width / heads,
        None => {
            return Err(Error::input(format!(
                "hidden_size = {width} must be a multiple of num_attention_heads = {heads}"
            )));
        }
    };
    if head_width % 2 != 0 {
        return Err(Error::input(format!("head_dim = {head_width} must be even for rotary positions")));
    }
    let (rope, rotated_width) = rope.read(keys, head_width)?;
    let layers = keys.size("num_hidden_layers")?;
    if layers > MOST_LAYERS {
        return Err(Error::input(format!("num_hidden_layers = {layers}: at most {MOST_LAYERS} were expected")));
    }
    Ok(Architecture {
        vocabulary: keys.size("vocab_size")?,
        width,
        mlp_width: keys.size("intermediate_size")?,
        layers,
        heads,
        kv_heads,
        head_width,
        max_positions: keys.length_if_any("max_position_embeddings", None)?.unwrap_or(defaults.positions),
        norm: NormKind::RootMeanSquare,
        norm_epsilon: keys.number_or("rms_norm_eps", defaults.epsilon)?,
        residual: Residual::Sequential,
        activation: keys.activation("hidden_act", Activation::Silu)?,
        gated: true,
        rope,
        rotated_width,
        attention: vec![AttentionRules::plain(head_width); layers],
        head_by_head: false,
        biases: Biases::default(),
        embedding_scale: None,
        logit_cap: None,
        tied: keys.flag_or("tie_word_embeddings", defaults.tied)?,
        names,
    })
}

/// Llama 1 to 3, and what has its form (SmolLM2).
fn llama(keys: &Keys) -> Result<Architecture> {
    let attention = keys.flag_or("attention_bias", false)?;
    let mlp = keys.flag_or("mlp_bias", false)?;
    let biases = Biases { query_key_value: attention, attention_output: attention, mlp, head: false };
    Ok(Architecture { biases, ..common(keys, LLAMA, RopeKeys::WHOLE_HEADS, &DEFAULTS)? })
}

/// Mistral: a sliding window (arXiv 2310.06825), in files that still name one.
fn mistral(keys: &Keys) -> Result<Architecture> {
    let names = Names { reward_model: "MistralForSequenceClassification", ..LLAMA };
    let model =
        common(keys, names, RopeKeys::WHOLE_HEADS, &Defaults { kv_heads: Some(8), positions: 131_072, ..DEFAULTS })?;
    let window = keys.length_if_any("sliding_window", Some(4096))?;
    Ok(with_windows(model, |_| window))
}

/// Qwen 2 and 2.5: biases of queries, keys and values (arXiv 2407.10671).
fn qwen2(keys: &Keys) -> Result<Architecture> {
    let names = Names { reward_model: "Qwen2ForSequenceClassification", ..LLAMA };
    let model =
        common(keys, names, RopeKeys::WHOLE_HEADS, &Defaults { kv_heads: Some(32), positions: 32_768, ..DEFAULTS })?;
    let biases = Biases { query_key_value: true, ..model.biases };
    windows_of_qwen(keys, Architecture { biases, ..model })
}

/// Qwen 3: a norm of every head of queries and keys in place of the biases (arXiv 2505.09388).
fn qwen3(keys: &Keys) -> Result<Architecture> {
    let head_norms = Some(["self_attn.q_norm", "self_attn.k_norm"]);
    let names = Names { reward_model: "Qwen3ForSequenceClassification", head_norms, ..LLAMA };
    let defaults = Defaults { kv_heads: Some(32), head_width: Some(128), positions: 32_768, ..DEFAULTS };
    let model = common(keys, names, RopeKeys::WHOLE_HEADS, &defaults)?;
    let attention = keys.flag_or("attention_bias", false)?;
    let biases = Biases { query_key_value: attention, attention_output: attention, ..model.biases };
    windows_of_qwen(keys, Architecture { biases, ..model })
}

/// Off unless `use_sliding_window` says otherwise; then the upper blocks have it.
fn windows_of_qwen(keys: &Keys, model: Architecture) -> Result<Architecture> {
    let used = keys.flag_or("use_sliding_window", false)?;
    let window = keys.length_if_any("sliding_window", Some(4096))?.filter(|_| used);
    let below = keys.count_or("max_window_layers", 28)?;
    alternating(keys, model, window, |block| block >= below)
}

/// Phi-1 to Phi-2: layer norms, both halves of a block reading one norm of its input, a part of each head rotated,
/// biases everywhere, no gate.
fn phi(keys: &Keys) -> Result<Architecture> {
    let names = Names {
        reward_model: "PhiForSequenceClassification",
        attention_output: "self_attn.dense",
        mlp_norm: None,
        up: &["mlp.fc1"],
        down: "mlp.fc2",
        norm: "model.final_layernorm",
        ..LLAMA
    };
    refuse(keys, "qk_layernorm", "Phi with norms of queries and keys")?;
    refuse(keys, "tie_word_embeddings", "Phi without a language-model head of its own")?;
    let rope = RopeKeys { share: Some(("partial_rotary_factor", 0.5)), ..RopeKeys::WHOLE_HEADS };
    let model = plain_mlp(keys, names, rope, Activation::GeluTanh)?;
    let biases = Biases { query_key_value: true, attention_output: true, mlp: true, head: true };
    Ok(Architecture { biases, residual: Residual::Parallel, ..model })
}

/// Phi-3: Llama with fewer, larger matrices, and a sliding window.
fn phi3(keys: &Keys) -> Result<Architecture> {
    let names = Names {
        reward_model: "Phi3ForSequenceClassification",
        query_key_value: &["self_attn.qkv_proj"],
        up: &["mlp.gate_up_proj"],
        ..LLAMA
    };
    let rope = RopeKeys { share: Some(("partial_rotary_factor", 1.0)), ..RopeKeys::WHOLE_HEADS };
    let model = common(keys, names, rope, &Defaults { positions: 4096, epsilon: 1e-5, ..DEFAULTS })?;
    let window = keys.length_if_any("sliding_window", None)?;
    Ok(with_windows(model, |_| window))
}

/// Gemma 2 (arXiv 2408.00118): norms before and after each half of a block, their weights counted from 1; scaled
/// embeddings; capped scores and logits; every other block with a sliding window.
fn gemma2(keys: &Keys) -> Result<Architecture> {
    let names = Names {
        reward_model: "Gemma2ForSequenceClassification",
        post_attention_norm: Some("post_attention_layernorm"),
        mlp_norm: Some("pre_feedforward_layernorm"),
        post_mlp_norm: Some("post_feedforward_layernorm"),
        ..LLAMA
    };
    refuse(keys, "use_bidirectional_attention", "Gemma 2 whose tokens see those after them")?;
    let defaults = Defaults { kv_heads: Some(4), head_width: Some(256), positions: 8192, tied: true, ..DEFAULTS };
    let mut model = common(keys, names, RopeKeys::WHOLE_HEADS, &defaults)?;
    let attention = keys.flag_or("attention_bias", false)?;
    let scale = 1.0 / keys.number_or("query_pre_attn_scalar", 256.0)?.sqrt();
    let soft_cap = keys.number_if_any("attn_logit_softcapping", Some(50.0))?;
    model.attention.fill(AttentionRules { scale, window: None, soft_cap });
    let model = Architecture {
        norm: NormKind::RootMeanSquarePlusOne,
        activation: keys.activation("hidden_activation", Activation::GeluTanh)?,
        biases: Biases { query_key_value: attention, attention_output: attention, ..model.biases },
        embedding_scale: Some((model.width as f64).sqrt()),
        logit_cap: keys.number_if_any("final_logit_softcapping", Some(30.0))?,
        ..model
    };
    let window = keys.length_if_any("sliding_window", Some(4096))?;
    alternating(keys, model, window, |block| block % 2 == 0)
}

/// GPT-NeoX and Pythia (arXiv 2204.06745): layer norms, both halves of a block reading norms of its input, a quarter of
/// each head rotated, biases, no gate, queries, keys and values stored head by head.
fn gpt_neox(keys: &Keys) -> Result<Architecture> {
    let names = Names {
        reward_model: "GPTNeoXForSequenceClassification",
        embedding: "gpt_neox.embed_in",
        block: "gpt_neox.layers.",
        query_key_value: &["attention.query_key_value"],
        attention_output: "attention.dense",
        up: &["mlp.dense_h_to_4h"],
        down: "mlp.dense_4h_to_h",
        norm: "gpt_neox.final_layer_norm",
        head: &["embed_out", "lm_head"],
        ..LLAMA
    };
    let rope = RopeKeys { theta: "rotary_emb_base", share: Some(("rotary_pct", 0.25)) };
    let model = plain_mlp(keys, names, rope, Activation::Gelu)?;
    let attention = keys.flag_or("attention_bias", true)?;
    let parallel = keys.flag_or("use_parallel_residual", true)?;
    Ok(Architecture {
        biases: Biases { query_key_value: attention, attention_output: attention, mlp: true, head: false },
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        head_by_head: true,
        ..model
    })
}

/// Layer norms and an MLP without a gate.
fn plain_mlp(keys: &Keys, names: Names, rope: RopeKeys, activation: Activation) -> Result<Architecture> {
    Ok(Architecture {
        norm: NormKind::Layer,
        norm_epsilon: keys.number_or("layer_norm_eps", 1e-5)?,
        activation: keys.activation("hidden_act", activation)?,
        gated: false,
        ..common(keys, names, rope, &DEFAULTS)?
    })
}

/// Gives each block its window.
fn with_windows(mut model: Architecture, window: impl Fn(usize) -> Option<usize>) -> Architecture {
    for (block, rules) in model.attention.iter_mut().enumerate() {
        rules.window = window(block);
    }
    model
}

/// As [`with_windows`]: in the blocks that `layer_types` names, or where the file has no such list those that `slides`.
fn alternating(
    keys: &Keys,
    model: Architecture,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Architecture> {
    let Some(types) = keys.texts("layer_types")? else {
        return Ok(with_windows(model, |block| window.filter(|_| slides(block))));
    };
    if types.len() != model.layers {
        return Err(Error::input(format!(
            "layer_types names {} blocks, but num_hidden_layers = {}",
            types.len(),
            model.layers
        )));
    }
    for kind in &types {
        match (*kind, window) {
            ("full_attention", _) | ("sliding_attention", Some(_)) => {}
            ("sliding_attention", None) => {
                return Err(Error::input("layer_types has \"sliding_attention\", but there is no sliding_window"));
            }
            (other, _) => {
                return Err(Error::input(format!("layer_types: \"{other}\" is not known"))
                    .hint("known: full_attention, sliding_attention"));
            }
        }
    }
    Ok(with_windows(model, |block| window.filter(|_| types[block] == "sliding_attention")))
}

/// Refuses a variant that the decoder cannot compute.
fn refuse(keys: &Keys, key: &str, what: &str) -> Result<()> {
    match keys.flag_or(key, false)? {
        true => Err(Error::input(format!("{key} = true: {what} is not known")).hint(format!("expected {key} = false"))),
        false => Ok(()),
    }
}
