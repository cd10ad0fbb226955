//! The model families: a function a family, which says how it differs from Llama.
//!
//! Keys and defaults are those of the family's configuration class in Transformers. Not here: what a difference means
//! (`architecture/mod.rs`), and how it is computed (`decoder.rs`).

mod experts;
mod neighbors;
mod parts;

use crate::error::Error;
use crate::model::architecture::common::{
    DEFAULTS, Defaults, LLAMA, alternating, attention_biases, check_list, common, each_block, plain_mlp, refuse,
};
use crate::model::architecture::keys::Keys;
use crate::model::architecture::rope::RopeKeys;
use crate::model::architecture::{
    Architecture, AttentionBiases, BeforeMlp, BlockNorms, Names, NormKind, QueryKeyNorm, Residual, StoredHeads,
};
use crate::ops::Activation;
use crate::packing::AttentionRules;
use experts::{mixtral, olmoe, qwen3_moe};
use neighbors::{cohere2, glm, glm4};
pub use parts::text_config;
use parts::{gemma3, mistral3};

/// A model family.
pub struct Family {
    /// Its `model_type` in config.json.
    pub model_type: &'static str,
    /// Which models it covers, and what they have.
    pub covers: &'static str,
    /// Reads the keys of a model.
    pub(super) read: fn(&Keys) -> Architecture,
}

const fn family(model_type: &'static str, read: fn(&Keys) -> Architecture, covers: &'static str) -> Family {
    Family { model_type, covers, read }
}

/// The families this build knows.
pub const FAMILIES: [Family; 24] = [
    family("llama", llama, "Llama 1 to 3.3, SmolLM 2 and others of this form"),
    family("mistral", mistral, "Mistral 7B, Small and Nemo; folders with layer_types as ministral"),
    family("ministral", mistral, "Ministral of 2024: a window in the blocks that layer_types names"),
    family("ministral3", ministral3, "Ministral 3, text models"),
    family("mistral3", mistral3, "the text part of Ministral 3 and Mistral Small 3 folders that read images too"),
    family("qwen2", qwen2, "Qwen 2 and 2.5"),
    family("qwen3", qwen3, "Qwen 3, dense"),
    family("qwen3_moe", qwen3_moe, "Qwen 3 with experts, in every block or in some"),
    family("mixtral", mixtral, "Mixtral"),
    family("olmoe", olmoe, "OLMoE; exported as a causal model with an extra score.weight"),
    family("phi", phi, "Phi-1, 1.5 and 2"),
    family("phi3", phi3, "Phi-3, Phi-3.5 and Phi-4, mini models with LongRoPE too"),
    family("gemma2", gemma2, "Gemma 2"),
    family("gemma3_text", gemma3_text, "Gemma 3, text models"),
    family("gemma3", gemma3, "the text part of Gemma 3 folders that read images too"),
    family("olmo2", olmo2, "OLMo 2"),
    family("olmo3", olmo3, "OLMo 3"),
    family("smollm3", smollm3, "SmolLM3"),
    family("exaone4", exaone4, "EXAONE 4"),
    family("glm", glm, "GLM-4 of 2024"),
    family("glm4", glm4, "GLM-4 of April 2025 (0414)"),
    family("cohere2", cohere2, "Command R7B and Command A; exported as a causal model with an extra score.weight"),
    family("granite", granite, "Granite 3, dense; exported as a causal model with an extra score.weight"),
    family("gpt_neox", gpt_neox, "GPT-NeoX and Pythia"),
];

/// Llama 1 to 3, and models of the same form (SmolLM2).
fn llama(keys: &Keys) -> Architecture {
    let (attention, mlp) = (attention_biases(keys, false), keys.flag_or("mlp_bias", false));
    each_block(common(keys, LLAMA, RopeKeys::WHOLE_HEADS, &DEFAULTS), |block| {
        (block.biases, block.mlp.biases) = (attention, mlp);
    })
}

/// Mistral: a sliding window (arXiv 2310.06825), in files that still name one; Ministral, in whose files `layer_types`
/// says which blocks have it. Transformers 5 reads either `model_type` as Ministral if there is such a list.
pub(super) fn mistral(keys: &Keys) -> Architecture {
    let is_ministral = keys.text("model_type") == Some("ministral") || keys.texts("layer_types").is_some();
    let reward_model =
        if is_ministral { "MinistralForSequenceClassification" } else { "MistralForSequenceClassification" };
    let names = Names { reward_model, ..LLAMA };
    let model =
        common(keys, names, RopeKeys::WHOLE_HEADS, &Defaults { kv_heads: Some(8), positions: 131_072, ..DEFAULTS });
    let window = keys.length_if_any("sliding_window", Some(4096));
    alternating(keys, model, window, |_| true)
}

/// Ministral 3 (Mistral AI, 2025): Mistral with YaRN, and queries that grow with their position beyond the first context.
pub(super) fn ministral3(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Ministral3ForSequenceClassification", ..LLAMA };
    let rope = RopeKeys { query_growth: true, ..RopeKeys::WHOLE_HEADS };
    let defaults = Defaults { kv_heads: Some(8), head_width: Some(128), positions: 262_144, epsilon: 1e-5, ..DEFAULTS };
    if !keys.has("rope_parameters") && !keys.has("rope_scaling") {
        keys.missing("rope_parameters");
    }
    let model = common(keys, names, rope, &defaults);
    let window = keys.length_if_any("sliding_window", None);
    each_block(model, |block| block.rules.window = window)
}

/// Qwen 2 and 2.5: biases of queries, keys and values (arXiv 2407.10671).
fn qwen2(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Qwen2ForSequenceClassification", ..LLAMA };
    let model =
        common(keys, names, RopeKeys::WHOLE_HEADS, &Defaults { kv_heads: Some(32), positions: 32_768, ..DEFAULTS });
    windows_of_qwen(keys, each_block(model, |block| block.biases.query_key_value = true))
}

/// Qwen 3: a norm of every head of queries and keys in place of the biases (arXiv 2505.09388).
fn qwen3(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Qwen3ForSequenceClassification", ..LLAMA };
    let defaults = Defaults { kv_heads: Some(32), head_width: Some(128), positions: 32_768, ..DEFAULTS };
    let model = common(keys, names, RopeKeys::WHOLE_HEADS, &defaults);
    let biases = attention_biases(keys, false);
    let model = each_block(model, |block| {
        (block.query_key_norm, block.biases) = (Some(QueryKeyNorm::PerHead), biases);
    });
    windows_of_qwen(keys, model)
}

/// A window in the upper blocks, if `use_sliding_window` is true.
fn windows_of_qwen(keys: &Keys, model: Architecture) -> Architecture {
    let used = keys.flag_or("use_sliding_window", false);
    let window = keys.length_if_any("sliding_window", Some(4096)).filter(|_| used);
    let below = keys.count_or("max_window_layers", 28);
    alternating(keys, model, window, |block| block >= below)
}

/// Phi-1 to Phi-2: layer norms, both halves of a block reading one norm of its input, a part of each head rotated,
/// biases everywhere, no gate; in some a norm of every head of queries and keys.
fn phi(keys: &Keys) -> Architecture {
    let names = Names {
        reward_model: "PhiForSequenceClassification",
        query_key_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
        attention_output: "self_attn.dense",
        up: "mlp.fc1",
        down: "mlp.fc2",
        norm: "model.final_layernorm",
        ..LLAMA
    };
    let rope = RopeKeys { share: Some(("partial_rotary_factor", 0.5)), ..RopeKeys::WHOLE_HEADS };
    let model = plain_mlp(keys, names, rope, Activation::GeluTanh);
    let query_key_norm = keys.flag_or("qk_layernorm", false).then_some(QueryKeyNorm::PerHead);
    let model = each_block(model, |block| {
        block.query_key_norm = query_key_norm;
        block.biases = AttentionBiases { query_key_value: true, output: true };
        block.norms.before_mlp = BeforeMlp::Shared;
        block.residual = Residual::Parallel;
    });
    Architecture { head_bias: true, ..model }
}

/// Phi-3: Llama with fewer, larger matrices, and a sliding window.
fn phi3(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Phi3ForSequenceClassification", ..LLAMA };
    let rope = RopeKeys { share: Some(("partial_rotary_factor", 1.0)), is_phi3: true, ..RopeKeys::WHOLE_HEADS };
    let model = common(keys, names, rope, &Defaults { positions: 4096, epsilon: 1e-5, ..DEFAULTS });
    let window = keys.length_if_any("sliding_window", None);
    each_block(model, |block| {
        (block.stored, block.mlp.stacked) = (StoredHeads::Stacked, true);
        block.rules.window = window;
    })
}

/// Gemma 2 (arXiv 2408.00118): norms before and after each half of a block, their weights counted from 1; scaled
/// embeddings; capped scores and logits; every other block with a sliding window.
fn gemma2(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Gemma2ForSequenceClassification", ..GEMMA };
    let model = gemma(keys, names, RopeKeys::WHOLE_HEADS, 8192, [Some(50.0), Some(30.0)]);
    let window = window_of_some(keys);
    alternating(keys, model, window, |block| block % 2 == 0)
}

/// Gemma 3, the text models (arXiv 2503.19786): Gemma 2 with a norm of every head of queries and keys in place of the
/// caps, five blocks of six with a window, and a rotation of their own for these.
pub(super) fn gemma3_text(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Gemma3TextForSequenceClassification", ..GEMMA };
    let rope = RopeKeys {
        theta: ("rope_theta", 1e6),
        theta_of_windows: Some((Some("rope_local_base_freq"), 10_000.0)),
        ..RopeKeys::WHOLE_HEADS
    };
    let model = gemma(keys, names, rope, 131_072, [None, None]);
    let model = each_block(model, |block| block.query_key_norm = Some(QueryKeyNorm::PerHead));
    let window = window_of_some(keys);
    let period = keys.size_or("sliding_window_pattern", 6);
    let model = alternating(keys, model, window, |block| !(block + 1).is_multiple_of(period));
    each_block(model, |block| block.rotation = Some(usize::from(block.rules.window.is_some())))
}

/// The window of a family that has one in some of its blocks. It may be null only if a list says which blocks have it:
/// otherwise Transformers does not run such a model either.
fn window_of_some(keys: &Keys) -> Option<usize> {
    let window = keys.length_if_any("sliding_window", Some(4096));
    if window.is_none() && !keys.has("layer_types") {
        let hint = "say which blocks have a window: layer_types, a list with \"full_attention\" for those without";
        let error = Error::input("sliding_window is null, but blocks of this family have one");
        keys.fault("sliding_window", error.hint(hint));
    }
    window
}

const GEMMA: Names = Names { mlp_norm: "pre_feedforward_layernorm", ..LLAMA };

/// What Gemma 2 and 3 have in common; `score_cap` and `logit_cap` are the defaults of the caps.
fn gemma(
    keys: &Keys,
    names: Names,
    rope: RopeKeys,
    positions: usize,
    [score_cap, logit_cap]: [Option<f64>; 2],
) -> Architecture {
    refuse(keys, "use_bidirectional_attention", "attention to later tokens");
    let defaults = Defaults { kv_heads: Some(4), head_width: Some(256), positions, tied: true, ..DEFAULTS };
    let model = common(keys, names, rope, &defaults);
    let biases = attention_biases(keys, false);
    let scale = 1.0 / keys.number_or("query_pre_attn_scalar", 256.0).sqrt();
    let soft_cap = keys.number_if_any("attn_logit_softcapping", score_cap);
    let activation = keys.activation("hidden_activation", Activation::GeluTanh);
    let model = each_block(model, |block| {
        block.rules = AttentionRules { scale, window: None, soft_cap };
        block.biases = biases;
        (block.norms.after_attention, block.norms.after_mlp) = (true, true);
        block.mlp.kind.activation = activation;
    });
    Architecture {
        norm: NormKind::RootMeanSquarePlusOne,
        embedding_scale: Some((model.width as f64).sqrt()),
        logit_cap: keys.number_if_any("final_logit_softcapping", logit_cap),
        ..model
    }
}

/// OLMo 2 (arXiv 2501.00656): norms after each half of a block and none before, and norms of all queries and of all keys
/// of a row together.
fn olmo2(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Olmo2ForSequenceClassification", ..LLAMA };
    olmo(keys, names, RopeKeys::WHOLE_HEADS)
}

/// OLMo 3 (Ai2, 2025): OLMo 2 with a window in three blocks of four, and a rotation of their own for these: YaRN stretches
/// that of the others alone.
fn olmo3(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Olmo3ForSequenceClassification", ..LLAMA };
    // A rope_theta outside rope_parameters is for blocks without a window only, as in Transformers.
    let rope = RopeKeys {
        theta: ("rope_theta", 500_000.0),
        theta_of_windows: Some((None, 500_000.0)),
        ..RopeKeys::WHOLE_HEADS
    };
    let window = window_of_some(keys);
    let model = alternating(keys, olmo(keys, names, rope), window, |block| !(block + 1).is_multiple_of(4));
    each_block(model, |block| block.rotation = Some(usize::from(block.rules.window.is_some())))
}

/// What OLMo 2 and 3 have in common.
fn olmo(keys: &Keys, names: Names, rope: RopeKeys) -> Architecture {
    let biases = attention_biases(keys, false);
    let model = common(keys, names, rope, &Defaults { epsilon: 1e-5, ..DEFAULTS });
    each_block(model, |block| {
        block.biases = biases;
        block.query_key_norm = Some(QueryKeyNorm::WholeWidth);
        block.norms = NORMS_AFTER;
    })
}

/// A norm after each half of a block, and none before.
const NORMS_AFTER: BlockNorms =
    BlockNorms { before_attention: false, after_attention: true, before_mlp: BeforeMlp::None, after_mlp: true };

/// EXAONE 4 (arXiv 2507.11407): norms after each half of a block and of every head of queries and keys; if some blocks have
/// windows, those without have no rotation.
fn exaone4(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "Exaone4ForSequenceClassification", ..LLAMA };
    let defaults = Defaults { kv_heads: Some(32), epsilon: 1e-5, ..DEFAULTS };
    let window = keys.length_if_any("sliding_window", Some(4096));
    // Without a window the key is null; with layer_types it may be a pattern of letters that the list spells out.
    let listed = keys.has("layer_types") || window.is_none();
    let period = if listed { 4 } else { keys.size_or("sliding_window_pattern", 4) };
    let model = common(keys, names, RopeKeys::WHOLE_HEADS, &defaults);
    let model = alternating(keys, model, window, |block| !(block + 1).is_multiple_of(period));
    each_block(model, |block| {
        block.query_key_norm = Some(QueryKeyNorm::PerHead);
        block.norms = NORMS_AFTER;
        block.rotation = (window.is_none() || block.rules.window.is_some()).then_some(0);
    })
}

/// Granite 3 (IBM, 2024): Llama with four multipliers, those of maximal update parametrization (arXiv 2203.03466).
/// Transformers has no class for its reward models.
fn granite(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "GraniteForCausalLM", ..LLAMA };
    let model = common(keys, names, RopeKeys::WHOLE_HEADS, &DEFAULTS);
    let (biases, mlp_biases) = (attention_biases(keys, false), keys.flag_or("mlp_bias", false));
    let scale = keys.number_or("attention_multiplier", 1.0);
    let multiplier = |key: &str| Some(keys.number_or(key, 1.0)).filter(|&multiplier| multiplier != 1.0);
    let residual_scale = multiplier("residual_multiplier");
    let model = each_block(model, |block| {
        (block.biases, block.mlp.biases) = (biases, mlp_biases);
        block.rules.scale = scale;
        block.residual_scale = residual_scale;
    });
    Architecture {
        embedding_scale: multiplier("embedding_multiplier"),
        logit_scale: multiplier("logits_scaling").map(|divisor| 1.0 / divisor),
        ..model
    }
}

/// SmolLM3 (Hugging Face, 2025): Llama without a rotation in every fourth block (arXiv 2501.18795).
fn smollm3(keys: &Keys) -> Architecture {
    let names = Names { reward_model: "SmolLM3ForSequenceClassification", ..LLAMA };
    let rope = RopeKeys { theta: ("rope_theta", 2e6), ..RopeKeys::WHOLE_HEADS };
    let defaults = Defaults { kv_heads: Some(4), positions: 32_768, tied: true, ..DEFAULTS };
    let mut model = common(keys, names, rope, &defaults);
    let (biases, mlp_biases) = (attention_biases(keys, false), keys.flag_or("mlp_bias", false));
    let interval = keys.size_or("no_rope_layer_interval", 4);
    let listed = keys.counts("no_rope_layers");
    if let Some(listed) = &listed {
        check_list(keys, "no_rope_layers", listed.len(), &model);
    }
    // 0 stands for a block without a rotation.
    let is_rotated = |block: usize| match &listed {
        Some(listed) => listed.get(block) != Some(&0),
        None => !(block + 1).is_multiple_of(interval),
    };
    for (number, block) in model.blocks.iter_mut().enumerate() {
        (block.biases, block.mlp.biases) = (biases, mlp_biases);
        block.rotation = is_rotated(number).then_some(0);
    }
    let used = keys.flag_or("use_sliding_window", false);
    let window = keys.length_if_any("sliding_window", None).filter(|_| used);
    alternating(keys, model, window, |block| !is_rotated(block))
}

/// GPT-NeoX and Pythia (arXiv 2204.06745): layer norms, both halves of a block reading norms of its input, a quarter of
/// each head rotated, biases, no gate, queries, keys and values stored head by head.
fn gpt_neox(keys: &Keys) -> Architecture {
    let names = Names {
        reward_model: "GPTNeoXForSequenceClassification",
        embedding: "gpt_neox.embed_in",
        block: "gpt_neox.layers.",
        stacked_query_key_value: "attention.query_key_value",
        attention_output: "attention.dense",
        up: "mlp.dense_h_to_4h",
        down: "mlp.dense_4h_to_h",
        norm: "gpt_neox.final_layer_norm",
        head: &["embed_out", "lm_head"],
        ..LLAMA
    };
    let rope =
        RopeKeys { theta: ("rotary_emb_base", 10_000.0), share: Some(("rotary_pct", 0.25)), ..RopeKeys::WHOLE_HEADS };
    let model = plain_mlp(keys, names, rope, Activation::Gelu);
    let biases = attention_biases(keys, true);
    let parallel = keys.flag_or("use_parallel_residual", true);
    each_block(model, |block| {
        block.biases = biases;
        block.residual = if parallel { Residual::Parallel } else { Residual::Sequential };
        block.stored = StoredHeads::HeadByHead;
    })
}
