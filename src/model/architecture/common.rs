//! What families have in common: Llama's form, and changes that several of them make to it.
//!
//! Not here: a family (`families/`).

use super::keys::{Keys, not_computed};
use super::rope::{HEAD_WIDTH, RopeKeys};
use super::{
    Architecture, AttentionBiases, BeforeMlp, BlockDescription, BlockNorms, Mlp, Names, Residual, RopeScaling,
    StoredHeads,
};
use crate::model::architecture::NormKind;
use crate::ops::{Activation, MlpKind};
use crate::packing::{AttentionRules, HeadCounts};

/// More blocks than any model has.
const MOST_LAYERS: usize = 10_000;

pub(super) const LLAMA: Names = Names {
    reward_model: "LlamaForSequenceClassification",
    embedding: "model.embed_tokens",
    block: "model.layers.",
    input_norm: "input_layernorm",
    query_key_value: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    stacked_query_key_value: "self_attn.qkv_proj",
    query_key_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    attention_output: "self_attn.o_proj",
    post_attention_norm: "post_attention_layernorm",
    mlp_norm: "post_attention_layernorm",
    router: "mlp.gate",
    experts: "mlp.experts.",
    expert_matrices: ["gate_proj", "up_proj", "down_proj"],
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    stacked_gate_up: "mlp.gate_up_proj",
    down: "mlp.down_proj",
    post_mlp_norm: "post_feedforward_layernorm",
    norm: "model.norm",
    head: &["lm_head"],
};

/// Defaults of missing keys in which families differ.
pub(super) struct Defaults {
    /// Key and value heads; none: as many as query heads.
    pub(crate) kv_heads: Option<usize>,
    /// None: the width of the hidden states divided by the number of query heads.
    pub(crate) head_width: Option<usize>,
    pub(crate) positions: usize,
    pub(crate) epsilon: f64,
    pub(crate) tied: bool,
}

pub(super) const DEFAULTS: Defaults =
    Defaults { kv_heads: None, head_width: None, positions: 2048, epsilon: 1e-6, tied: false };

/// A model in Llama's form: root-mean-square norms, a gated SiLU, whole heads rotated, one half of a block after the other,
/// no biases.
pub(super) fn common(keys: &Keys, names: Names, rope: RopeKeys, defaults: &Defaults) -> Architecture {
    // Checked even if a family has only one kind of block: a file that names another kind is another model's.
    let kinds = keys.texts("layer_types").unwrap_or_default();
    if let Some(other) = kinds.into_iter().find(|kind| !["full_attention", "sliding_attention"].contains(kind)) {
        let found = format!("layer_types: \"{other}\"");
        keys.fault("layer_types", not_computed(&found, "this kind of block", "full_attention and sliding_attention"));
    }
    let [width, inner, vocabulary] = ["hidden_size", "intermediate_size", "vocab_size"].map(|key| keys.size(key));
    let heads = heads(keys, width, defaults);
    let mut layers = keys.size("num_hidden_layers");
    if layers > MOST_LAYERS {
        keys.unfit("num_hidden_layers", format!("num_hidden_layers = {layers}: at most {MOST_LAYERS} were expected"));
        layers = 1;
    }
    let rope = RopeKeys { positions: defaults.positions, ..rope };
    let rotations = rope.read(keys, heads.width);
    let positions = keys.length_or("max_position_embeddings", defaults.positions);
    // A dynamic rotation is meant for contexts beyond that key.
    let reach = rotations.iter().find_map(|rotation| match rotation.rope.scaling {
        RopeScaling::Dynamic { factor, original } => Some((factor * original as f64) as usize),
        _ => None,
    });
    let block = common_block(heads, inner, keys.activation("hidden_act", Activation::Silu));
    Architecture {
        vocabulary,
        width,
        max_positions: reach.unwrap_or(positions),
        norm: NormKind::RootMeanSquare,
        norm_epsilon: keys.number_or("rms_norm_eps", defaults.epsilon),
        blocks: vec![block; layers],
        rotations,
        embedding_scale: None,
        logit_scale: None,
        logit_cap: None,
        tied: keys.flag_or("tie_word_embeddings", defaults.tied),
        head_bias: false,
        part_of: None,
        names,
    }
}

fn common_block(heads: HeadCounts, inner: usize, activation: Activation) -> BlockDescription {
    BlockDescription {
        heads,
        rules: AttentionRules::plain(heads.width),
        rotation: Some(0),
        query_key_norm: None,
        biases: AttentionBiases::default(),
        stored: StoredHeads::Apart,
        mlp: Mlp {
            width: inner,
            kind: MlpKind { activation, gated: true },
            stacked: false,
            biases: false,
            experts: None,
        },
        norms: BlockNorms {
            before_attention: true,
            after_attention: false,
            before_mlp: BeforeMlp::Own,
            after_mlp: false,
        },
        residual: Residual::Sequential,
        residual_scale: None,
    }
}

/// Number and width of the heads.
fn heads(keys: &Keys, width: usize, defaults: &Defaults) -> HeadCounts {
    const QUERY: &str = "num_attention_heads";
    const KEY: &str = "num_key_value_heads";
    let query = keys.size(QUERY);
    let key = keys.size_if_any(KEY, Some(defaults.kv_heads.unwrap_or(query))).unwrap_or(query);
    let own_width = keys.size_if_any("head_dim", defaults.head_width);
    let heads = HeadCounts { query, key, width: own_width.unwrap_or(width / query).max(1) };
    // Stand-ins for faulty sizes are not compared.
    if !query.is_multiple_of(key) && keys.are_right(&[QUERY, KEY]) {
        keys.unfit(KEY, format!("{QUERY} = {query} must be a multiple of {KEY} = {key}"));
    }
    if keys.are_right(&HEAD_WIDTH) {
        if own_width.is_none() && !width.is_multiple_of(query) {
            keys.unfit("head_dim", format!("hidden_size = {width} must be a multiple of {QUERY} = {query}"));
        } else if !heads.width.is_multiple_of(2) {
            keys.unfit("head_dim", format!("head_dim = {} must be even for rotary positions", heads.width));
        }
    }
    heads
}

/// The model with each of its blocks changed by `change`.
pub(super) fn each_block(mut model: Architecture, change: impl Fn(&mut BlockDescription)) -> Architecture {
    model.blocks.iter_mut().for_each(change);
    model
}

/// Biases of all of attention's linear maps, if `attention_bias` says so.
pub(super) fn attention_biases(keys: &Keys, default: bool) -> AttentionBiases {
    let are_there = keys.flag_or("attention_bias", default);
    AttentionBiases { query_key_value: are_there, output: are_there }
}

/// Layer norms and an MLP without a gate, with biases.
pub(super) fn plain_mlp(keys: &Keys, names: Names, rope: RopeKeys, activation: Activation) -> Architecture {
    let kind = MlpKind { activation: keys.activation("hidden_act", activation), gated: false };
    let model = each_block(common(keys, names, rope, &DEFAULTS), |block| {
        (block.mlp.kind, block.mlp.biases) = (kind, true);
    });
    let norm_epsilon = keys.number_or("layer_norm_eps", 1e-5);
    Architecture { norm: NormKind::Layer, norm_epsilon, ..model }
}

/// Gives each block its window.
fn with_windows(mut model: Architecture, window: impl Fn(usize) -> Option<usize>) -> Architecture {
    for (number, block) in model.blocks.iter_mut().enumerate() {
        block.rules.window = window(number);
    }
    model
}

/// Gives `window` to the blocks that `layer_types` names, or without such a list to those that `slides` selects.
pub(super) fn alternating(
    keys: &Keys,
    model: Architecture,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Architecture {
    let Some(types) = keys.texts("layer_types") else {
        return with_windows(model, |block| window.filter(|_| slides(block)));
    };
    check_list(keys, "layer_types", types.len(), &model);
    if window.is_none() && types.contains(&"sliding_attention") && keys.are_right(&["sliding_window"]) {
        let message = "layer_types has \"sliding_attention\", but there is no sliding_window";
        keys.unfit("layer_types", message.into());
    }
    with_windows(model, |block| window.filter(|_| types.get(block) == Some(&"sliding_attention")))
}

/// Notes a fault if a list does not have one value a block.
pub(super) fn check_list(keys: &Keys, key: &str, length: usize, model: &Architecture) {
    let layers = model.blocks.len();
    if length != layers && keys.are_right(&["num_hidden_layers"]) {
        keys.unfit(key, format!("{key} names {length} blocks, but num_hidden_layers = {layers}"));
    }
}

/// Notes a fault if `key` asks for a variant that the decoder cannot compute.
pub(super) fn refuse(keys: &Keys, key: &str, what: &str) {
    if keys.flag_or(key, false) {
        keys.not_computed(key, what, &format!("{key} = false"));
    }
}
