//! Families whose blocks, or some of them, have experts in place of one MLP.
//!
//! Not here: dense ones (`mod.rs`); what is computed (`model/experts.rs`).

use crate::model::architecture::common::{DEFAULTS, Defaults, LLAMA, attention_biases, common, each_block};
use crate::model::architecture::keys::Keys;
use crate::model::architecture::rope::RopeKeys;
use crate::model::architecture::{Architecture, Experts, Names, QueryKeyNorm};

/// More experts than any model has in a block.
const MOST: usize = 4096;

/// Mixtral (arXiv 2401.04088): Mistral with experts.
pub(super) fn mixtral(keys: &Keys) -> Architecture {
    let names = Names {
        reward_model: "MixtralForSequenceClassification",
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts.",
        expert_matrices: ["w1", "w3", "w2"],
        ..LLAMA
    };
    let rope = RopeKeys { theta: ("rope_theta", 1e6), ..RopeKeys::WHOLE_HEADS };
    let defaults = Defaults { kv_heads: Some(8), positions: 131_072, epsilon: 1e-5, ..DEFAULTS };
    let model = common(keys, names, rope, &defaults);
    let experts = experts(keys, 2, true);
    let window = keys.length_if_any("sliding_window", None);
    each_block(model, |block| {
        block.mlp.experts = Some(experts);
        block.rules.window = window;
    })
}

/// Qwen 3 with experts (arXiv 2505.09388), in every block or in some.
pub(super) fn qwen3_moe(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Qwen3MoeForSequenceClassification", ..LLAMA };
    let defaults = Defaults { kv_heads: Some(4), positions: 32_768, ..DEFAULTS };
    let model = common(keys, names, RopeKeys::WHOLE_HEADS, &defaults);
    let (biases, inner) = (attention_biases(keys, false), keys.size("moe_intermediate_size"));
    let dense = keys.counts("mlp_only_layers").unwrap_or_default();
    let step = keys.size_or("decoder_sparse_step", 1);
    let experts = experts(keys, 8, keys.flag_or("norm_topk_prob", false));
    // One window for all blocks, unlike in the dense Qwen 3.
    let used = keys.flag_or("use_sliding_window", false);
    let window = keys.length_if_any("sliding_window", Some(4096)).filter(|_| used);
    let mut model = each_block(model, |block| {
        (block.query_key_norm, block.biases) = (Some(QueryKeyNorm::PerHead), biases);
        block.rules.window = window;
    });
    for (number, block) in model.blocks.iter_mut().enumerate() {
        if !dense.contains(&number) && (number + 1).is_multiple_of(step) {
            (block.mlp.experts, block.mlp.width) = (Some(experts), inner);
        }
    }
    model
}

/// OLMoE (arXiv 2409.02060): norms of all queries and of all keys of a row together. Transformers has no class for its reward
/// models.
pub(super) fn olmoe(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "OlmoeForCausalLM", ..LLAMA };
    let model = common(keys, names, RopeKeys::WHOLE_HEADS, &Defaults { positions: 4096, epsilon: 1e-5, ..DEFAULTS });
    if keys.has("clip_qkv") {
        keys.not_computed("clip_qkv", "the clipping of queries, keys and values", "clip_qkv = null");
    }
    let biases = attention_biases(keys, false);
    let experts = experts(keys, 8, keys.flag_or("norm_topk_prob", false));
    each_block(model, |block| {
        (block.query_key_norm, block.biases) = (Some(QueryKeyNorm::WholeWidth), biases);
        block.mlp.experts = Some(experts);
    })
}

/// The number of experts, under either key, and how many of them each token goes through.
fn experts(keys: &Keys, top_k: usize, normalized: bool) -> Experts {
    const NAMES: [&str; 2] = ["num_local_experts", "num_experts"];
    const TOP_K: &str = "num_experts_per_tok";
    let named = NAMES.into_iter().find(|name| keys.has(name)).unwrap_or(NAMES[1]);
    let count = keys.size(named);
    let top_k = keys.size_or(TOP_K, top_k);
    if count > MOST {
        keys.unfit(named, format!("{named} = {count}: at most {MOST} were expected"));
    } else if top_k > count && keys.are_right(&[named]) {
        keys.unfit(TOP_K, format!("{TOP_K} = {top_k}, but {named} = {count}"));
    }
    Experts { count, top_k, normalized }
}
