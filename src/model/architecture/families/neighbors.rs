//! Families whose rotation turns neighboring columns of a head together, as in RoFormer (arXiv 2104.09864).
//!
//! Not here: those that turn two halves (`mod.rs`).

use super::{refuse, window_of_some};
use crate::model::architecture::common::{
    DEFAULTS, Defaults, LLAMA, alternating, attention_biases, common, each_block,
};
use crate::model::architecture::keys::Keys;
use crate::model::architecture::rope::RopeKeys;
use crate::model::architecture::{Architecture, BeforeMlp, Names, NormKind, Residual};

/// GLM-4 of 2024 (arXiv 2406.12793): half of each head rotated, biases of queries, keys and values, gate and up in one matrix.
pub(super) fn glm(keys: &Keys) -> Architecture {
    of_glm(keys, Names { reward_model: "GlmForSequenceClassification", ..LLAMA })
}

/// GLM-4 of April 2025 (0414): the same with a norm after each half of a block.
pub(super) fn glm4(keys: &Keys) -> Architecture {
    let names = Names {
        reward_model: "Glm4ForSequenceClassification",
        post_attention_norm: "post_self_attn_layernorm",
        post_mlp_norm: "post_mlp_layernorm",
        ..LLAMA
    };
    each_block(of_glm(keys, names), |block| {
        (block.norms.after_attention, block.norms.after_mlp) = (true, true);
    })
}

/// What both GLM-4 have in common.
fn of_glm(keys: &Keys, names: Names) -> Architecture {
    let rope = RopeKeys { share: Some(("partial_rotary_factor", 0.5)), ..RopeKeys::WHOLE_HEADS };
    let (kv_heads, head_width) = (Some(2), Some(128));
    let defaults = Defaults { kv_heads, head_width, positions: 131_072, epsilon: 1.5625e-7, ..DEFAULTS };
    let model = common(keys, names, rope, &defaults);
    let biased = keys.flag_or("attention_bias", true);
    turning_neighbors(each_block(model, |block| {
        (block.biases.query_key_value, block.mlp.stacked) = (biased, true);
    }))
}

/// Command R7B (Cohere, 2024): both halves of a block read one layer norm without a bias; three blocks of four have a window
/// and a rotation, the others neither. Transformers has no class for its reward models.
pub(super) fn cohere2(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Cohere2ForCausalLM", ..LLAMA };
    refuse(keys, "use_qk_norm", "Cohere's models with norms of queries and keys");
    let model = common(keys, names, RopeKeys::WHOLE_HEADS, &Defaults { positions: 8192, tied: true, ..DEFAULTS });
    let biases = attention_biases(keys, false);
    let window = window_of_some(keys);
    let period = keys.size_or("sliding_window_pattern", 4);
    let model = alternating(keys, model, window, |block| !(block + 1).is_multiple_of(period));
    let model = each_block(model, |block| {
        block.biases = biases;
        block.norms.before_mlp = BeforeMlp::Shared;
        block.residual = Residual::Parallel;
        block.rotation = block.rules.window.map(|_| 0);
    });
    turning_neighbors(Architecture {
        norm: NormKind::LayerWithoutBias,
        norm_epsilon: keys.number_or("layer_norm_eps", 1e-5),
        logit_scale: Some(keys.number_or("logit_scale", 0.0625)),
        ..model
    })
}

fn turning_neighbors(mut model: Architecture) -> Architecture {
    model.rotations.iter_mut().for_each(|rotation| rotation.neighbors = true);
    model
}
