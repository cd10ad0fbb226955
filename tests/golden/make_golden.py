#!/usr/bin/env python3
"""Makes the golden files beside this script: tiny random models and what PyTorch and Transformers say of them.

Run by hand (`python make_golden.py`, with the names of cases for these alone); the output is committed, so that the
tests need no Python. README.md lists every file, tensor and metadata key. Not here: the project's own way of computing
any of this (packing, shared prefixes, a backward pass in segments). Each sequence goes through Transformers alone,
without padding, and the losses are plain formulas, so that the values are an independent truth.

Shapes: T tokens of a sequence, B pairs, D width, V vocabulary.
"""

import copy
import json
import shutil
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
BOS, EOS = 1, 2

# The keys and meanings of a configuration file's [loss] table. total = reward_weight * reward + alpha * policy.
HYBRID = {
    "objective": "hybrid",
    "alpha": 0.2,
    "reward_weight": 1.0,
    "policy": "dpo",
    "beta": 0.1,
    "simpo_gamma": 0.0,
    "label_smoothing": 0.0,
    "centering": 0.0,
}

# Further losses, on one model only. `margins` are per pair, in units of reward.
VARIANTS = {
    "reward": {
        "loss": HYBRID | {"objective": "reward", "label_smoothing": 0.1, "centering": 0.01},
        "margins": [0.25, 0.0, 1.5, 0.5, 0.75],
    },
    "hinge": {"loss": HYBRID | {"objective": "policy", "policy": "hinge", "beta": 0.5}},
    "ipo": {"loss": HYBRID | {"policy": "ipo"}},
    "simpo": {"loss": HYBRID | {"policy": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.1}},
    "sft": {"loss": HYBRID | {"objective": "policy", "policy": "sft"}},
}

# Gradients kept in the variants' files: enough to tell the losses apart, and small.
VARIANT_GRADIENTS = [
    "score.weight",
    "model.norm.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
]

COMMON = {"bos_token_id": BOS, "eos_token_id": EOS, "max_position_embeddings": 64, "attn_implementation": "eager"}

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# Longer sequences than the windows below, in the fewest numbers.
SMALL = COMMON | {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_parameters": DEFAULT_ROPE,
}
EXPERTS = SMALL | {"num_key_value_heads": 2, "intermediate_size": 8, "tie_word_embeddings": False, "pad_token_id": None}
EXPERTS |= {"experts_implementation": "eager"}
NEOX = SMALL | {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "tie_word_embeddings": False}

YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.1,
}
OWN_YARN = YARN | {"beta_fast": 3.0, "beta_slow": 0.3, "truncate": False, "attention_factor": 0.8}
GROWING = YARN | {
    "original_max_position_embeddings": 6,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
    "llama_4_scaling_beta": 0.5,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.5, 4.0],
    "partial_rotary_factor": 0.75,
}

# `without`: settings that take one speciality away; each must change the logits, or the case would not test it.
CASES = {
    "llama-tied": {
        "family": "llama",
        "seed": 8,
        "config": COMMON
        | {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 12,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "llama-untied": {
        "family": "llama",
        "seed": 5,
        "config": COMMON
        | {
            "vocab_size": 41,
            "hidden_size": 16,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 6,  # not 16 / 4
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            # Wavelengths 6.3, 29 and 132: one below 32 / 4 (kept), one between (blended), one over 32 / 1 (divided).
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        "without": [{"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}],
    },
    "llama-linear": {
        "family": "llama",
        "seed": 4,
        "config": COMMON
        | {
            "vocab_size": 29,
            "hidden_size": 12,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
        "without": [{"rope_parameters": DEFAULT_ROPE}],
        "sharded": True,
    },
    "mistral": {
        "family": "mistral",
        "seed": 1,
        "config": SMALL | {"num_key_value_heads": 2, "sliding_window": 4, "tie_word_embeddings": False},
        "without": [{"sliding_window": None}],
    },
    "qwen2": {
        "family": "qwen2",
        "seed": 2,
        # The upper of two blocks has the window.
        "config": SMALL
        | {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
        | {"tie_word_embeddings": True},
        "without": [{"use_sliding_window": False}, {"layer_types": ["sliding_attention"] * 2}],
    },
    "qwen3": {
        "family": "qwen3",
        "seed": 1,
        "config": SMALL | {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False},
        "without": [],
    },
    "phi": {
        "family": "phi",
        "seed": 19,
        "config": SMALL | {"layer_norm_eps": 1e-5, "rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.5}},
        "without": [{"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 1.0}}],
    },
    "phi-normed": {
        "family": "phi",
        "seed": 4,
        "config": SMALL
        | {"layer_norm_eps": 1e-5, "qk_layernorm": True, "num_key_value_heads": 2, "tie_word_embeddings": True}
        | {"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.5}},
        "without": [{"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 1.0}}],
    },
    "phi3": {
        "family": "phi3",
        "seed": 1,
        "config": SMALL
        | {"num_key_value_heads": 2, "sliding_window": 4, "tie_word_embeddings": False, "pad_token_id": None}
        | {"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 1.0}},
        "without": [{"sliding_window": None}],
    },
    "gemma2": {
        "family": "gemma2",
        "seed": 1,
        # The lower of two blocks has the window. Widths of 20 make the embedding's scale no whole number.
        "config": SMALL
        | {"hidden_size": 20, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 3, "pad_token_id": None}
        | {"query_pre_attn_scalar": 10, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0},
        "without": [
            {"layer_types": ["full_attention"] * 2},
            {"layer_types": ["sliding_attention"] * 2},
            {"query_pre_attn_scalar": 6},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
        ],
    },
    "llama-yarn": {
        "family": "llama",
        "seed": 5,
        # A passage that starts and ends between whole numbers, and a magnitude of its own. Of eight frequencies it has five.
        "config": SMALL
        | {"num_key_value_heads": 1, "head_dim": 16, "num_attention_heads": 2, "tie_word_embeddings": False}
        | {"rope_parameters": OWN_YARN},
        "without": [
            {"rope_parameters": OWN_YARN | {"truncate": True}},
            {"rope_parameters": OWN_YARN | {"attention_factor": None}},
        ],
    },
    "mistral-some-windows": {
        # Ministral's form: Transformers reads such a folder as `ministral`, with the window in the named blocks.
        "family": "ministral",
        "model_type": "mistral",
        "seed": 1,
        "config": SMALL
        | {"num_key_value_heads": 2, "sliding_window": 4, "tie_word_embeddings": False}
        | {"head_dim": 4, "layer_types": ["sliding_attention", "full_attention"]},
        "without": [{"layer_types": ["sliding_attention"] * 2}, {"layer_types": ["full_attention"] * 2}],
    },
    "gemma3": {
        "family": "gemma3_text",
        "seed": 1,
        # The lower of two blocks has the window, and another rotation.
        "config": SMALL
        | {"hidden_size": 20, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 3, "pad_token_id": None}
        | {"query_pre_attn_scalar": 10, "layer_types": ["sliding_attention", "full_attention"]}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            }
        },
        "without": [
            {"layer_types": ["full_attention"] * 2},
            {"layer_types": ["sliding_attention"] * 2},
            {"query_pre_attn_scalar": 6},
            {"rope_parameters": {"full_attention": DEFAULT_ROPE, "sliding_attention": DEFAULT_ROPE}},
        ],
    },
    "olmo2": {
        "family": "olmo2",
        "seed": 1,
        "config": SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": None},
        "without": [],
    },
    "smollm3": {
        "family": "smollm3",
        "seed": 6,
        # The upper of two blocks has no rotation, but a window.
        "config": SMALL
        | {"num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": None, "no_rope_layers": [1, 0]}
        | {"use_sliding_window": True, "sliding_window": 3},
        "without": [
            {"no_rope_layers": [1, 1], "layer_types": ["full_attention", "sliding_attention"]},
            {"no_rope_layers": [0, 0], "layer_types": ["full_attention", "sliding_attention"]},
            {"use_sliding_window": False, "layer_types": ["full_attention"] * 2},
        ],
    },
    "olmo3": {
        "family": "olmo3",
        "seed": 1,
        # The lower of two blocks has the window and a plain rotation. Of four frequencies of the upper one is kept, two are
        # between and one is divided.
        "config": SMALL
        | {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": False}
        | {"pad_token_id": None, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
        | {"rope_parameters": {"full_attention": YARN, "sliding_attention": DEFAULT_ROPE}},
        "without": [
            {"layer_types": ["full_attention"] * 2},
            {"layer_types": ["sliding_attention"] * 2},
            {"rope_parameters": {"full_attention": YARN | {"beta_slow": 1.0}, "sliding_attention": DEFAULT_ROPE}},
            {"rope_parameters": {"full_attention": YARN | {"attention_factor": 1.0}, "sliding_attention": DEFAULT_ROPE}},
            {"rope_parameters": {"full_attention": DEFAULT_ROPE, "sliding_attention": DEFAULT_ROPE}},
        ],
    },
    "ministral3": {
        "family": "ministral3",
        "seed": 3,
        # Queries grow from the seventh token on.
        "config": SMALL
        | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": False}
        | {"pad_token_id": None, "rope_parameters": GROWING},
        "without": [
            {"rope_parameters": GROWING | {"llama_4_scaling_beta": 0.0}},
            {"rope_parameters": GROWING | {"mscale_all_dim": 1.0}},
            {"rope_parameters": GROWING | {"original_max_position_embeddings": 64}},
        ],
    },
    "llama-dynamic": {
        "family": "llama",
        "seed": 1,
        # Sequences of 5 to 12 tokens: on both sides of the limit, in some pairs one on each.
        "config": SMALL
        | {"num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 8}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 6.0}},
        "without": [
            {"rope_parameters": DEFAULT_ROPE | {"rope_theta": 100.0}},
            {"max_position_embeddings": 11},
        ],
    },
    "phi3-longrope": {
        "family": "phi3",
        "seed": 2,
        # As above. Three quarters of each head are rotated, as in Phi-4-mini.
        "config": SMALL
        | {"hidden_size": 32, "num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": None}
        | {"original_max_position_embeddings": 8, "rope_parameters": LONG},
        "without": [
            {"original_max_position_embeddings": 16},
            {"rope_parameters": LONG | {"long_factor": LONG["short_factor"]}},
            {"rope_parameters": LONG | {"attention_factor": 1.0}},
        ],
    },
    "granite": {
        "family": "granite",
        "seed": 23,
        "config": SMALL
        | {"num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": None, "attention_multiplier": 0.3}
        | {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 0.5},
        "without": [
            {"attention_multiplier": 0.5},
            {"embedding_multiplier": 1.0},
            {"residual_multiplier": 1.0},
            {"logits_scaling": 1.0},
        ],
    },
    "exaone4": {
        "family": "exaone4",
        "seed": 4,
        # The lower of two blocks has a window and a rotation, the upper none of both.
        "config": SMALL
        | {"num_key_value_heads": 2, "tie_word_embeddings": False, "sliding_window": 3}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        "without": [
            {"layer_types": ["full_attention"] * 2},
            {"layer_types": ["sliding_attention"] * 2},
            {"sliding_window": 11},
        ],
    },
    "glm4": {
        "family": "glm4",
        "seed": 1,
        # Four of six columns of a head are rotated, neighbors together.
        "config": SMALL
        | {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False, "pad_token_id": None}
        | {"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 2 / 3}},
        "without": [{"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 1.0}}],
    },
    "glm": {
        "family": "glm",
        "seed": 1,
        "config": SMALL
        | {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True, "pad_token_id": None}
        | {"rope_parameters": DEFAULT_ROPE | {"rope_theta": 100.0, "partial_rotary_factor": 0.5}},
        "without": [{"rope_parameters": DEFAULT_ROPE | {"rope_theta": 100.0, "partial_rotary_factor": 1.0}}],
    },
    "cohere2": {
        "family": "cohere2",
        "seed": 1,
        # The lower of two blocks has a window and a rotation, the upper none of both. Without biases: a key's has no gradient in
        # a block without rotation.
        "config": SMALL
        | {"num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": None, "sliding_window": 3}
        | {"layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.7},
        "without": [
            {"layer_types": ["full_attention"] * 2},
            {"layer_types": ["sliding_attention"] * 2},
            {"sliding_window": 11},
            {"logit_scale": 1.0},
        ],
    },
    "qwen3-moe": {
        "family": "qwen3_moe",
        "seed": 1,
        "config": EXPERTS
        | {"head_dim": 6, "moe_intermediate_size": 7, "num_experts": 5, "num_experts_per_tok": 2}
        | {"norm_topk_prob": True, "sliding_window": 4, "use_sliding_window": True},
        "without": [{"num_experts_per_tok": 3}, {"norm_topk_prob": False}, {"use_sliding_window": False}],
    },
    "qwen3-moe-mixed": {
        "family": "qwen3_moe",
        "seed": 9,
        # The middle one of three blocks has experts.
        "config": EXPERTS
        | {"num_hidden_layers": 3, "moe_intermediate_size": 5, "num_experts": 4, "num_experts_per_tok": 2}
        | {"norm_topk_prob": False, "decoder_sparse_step": 2},
        "without": [{"num_experts_per_tok": 3}, {"norm_topk_prob": True}],
    },
    "mixtral": {
        "family": "mixtral",
        "seed": 4,
        "config": EXPERTS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
        "without": [{"num_experts_per_tok": 3}, {"sliding_window": None}],
    },
    "olmoe": {
        "family": "olmoe",
        "seed": 1,
        "config": EXPERTS | {"num_experts": 6, "num_experts_per_tok": 3},
        "without": [{"num_experts_per_tok": 4}, {"norm_topk_prob": True}],
    },
    "gpt-neox-odd": {
        "family": "gpt_neox",
        "seed": 15,
        # Three of six columns: Transformers rotates four, by the frequencies of three.
        "config": NEOX
        | {"hidden_size": 24, "hidden_act": "quick_gelu"}
        | {"rope_parameters": DEFAULT_ROPE | {"rope_theta": 20.0, "partial_rotary_factor": 0.5}},
        "without": [
            {"hidden_act": "gelu"},
            {"rope_parameters": DEFAULT_ROPE | {"rope_theta": 20.0, "partial_rotary_factor": 2 / 3}},
        ],
    },
    "gpt-neox-parallel": {
        "family": "gpt_neox",
        "seed": 1,
        # As many tokens as the tokenizer of the tests of whole runs.
        "config": NEOX | {"vocab_size": 97, "rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.5}},
        "without": [
            {"use_parallel_residual": False},
            {"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 1.0}},
        ],
    },
    "gpt-neox-sequential": {
        "family": "gpt_neox",
        "seed": 1,
        "config": NEOX
        | {"use_parallel_residual": False, "rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 1.0}},
        "without": [{"use_parallel_residual": True}],
    },
}


# What files call a parameter otherwise than the model in memory: by family and name.
RENAMED = {("gpt_neox", "lm_head.weight"): "embed_out.weight"}


# --- Models and pairs -------------------------------------------------------------------------------------------------


def new_model(family: str, settings: dict):
    # Configurations write into the tables that they are given.
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **copy.deepcopy(settings))).eval()


# No expert is chosen by rounding: the least distance, among all tokens of a case, of the last share that is chosen from the
# first that is not.
LEAST_GAP = 5e-4


def random_model(family: str, settings: dict):
    """A model whose every weight matters: sharp attention, logits far from uniform, norms and biases not trivial."""
    model = new_model(family, settings)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if name.endswith("bias"):
            value = 0.3 * noise
        elif parameter.dim() == 1:  # of a norm; Gemma's count from 1
            usual = 0.0 if family.startswith("gemma") else 1.0
            of_heads = any(part in name for part in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"))
            value = usual + (0.6 if of_heads else 0.0) + 0.2 * noise
        elif parameter.shape[0] == model.config.vocab_size:
            value = 0.5 * noise
        else:
            sharp = any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "query_key_value"))
            value = (1.3 if sharp else 1.0) * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)
    return model


def perturbed(model):
    """The reference: near the policy, but not it; otherwise half of the gradients would be trivial."""
    reference = copy.deepcopy(model)
    for parameter in reference.parameters():
        parameter.data += 0.2 * parameter.data.std() * torch.randn(parameter.shape)
    return reference


def random_pairs(vocabulary: int) -> list[dict]:
    """Five pairs, each with its own difficulty for whoever packs them."""

    def words(count: int) -> list[int]:
        return torch.randint(EOS + 1, vocabulary, (count,)).tolist()

    def prompt(count: int) -> list[int]:
        return [BOS] + words(count - 1)

    start, cut, short = words(2), words(2), words(2)
    other_start = short[0] + 1 if short[0] + 1 < vocabulary else EOS + 1
    return [
        # The answers share their first two tokens.
        {"prompt": prompt(5), "chosen": start + [3] + words(1) + [EOS], "rejected": start + [4] + words(3) + [EOS]},
        # They differ from the first token.
        {"prompt": prompt(3), "chosen": [other_start] + words(4) + [EOS], "rejected": short + [EOS]},
        # The chosen answer is the end of the turn and nothing else.
        {"prompt": prompt(6), "chosen": [EOS], "rejected": words(3) + [EOS]},
        # Both are equally long.
        {"prompt": prompt(4), "chosen": [5] + words(2) + [EOS], "rejected": [6] + words(2) + [EOS]},
        # The chosen answer was cut short: it has no EOS, and all of it is the start of the rejected one.
        {"prompt": prompt(3), "chosen": cut, "rejected": cut + words(3) + [EOS]},
    ]


# --- What the model says ----------------------------------------------------------------------------------------------


def as_new(model) -> None:
    """Rotations that grow with the longest sequence seen forget it."""
    for module in model.modules():
        # Models with a rotation a kind of layer have the kind's name in front.
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            prefix = name.removesuffix("max_seq_len_cached")
            if (original := getattr(module, f"{prefix}original_inv_freq", None)) is not None:
                setattr(module, f"{prefix}inv_freq", original.clone())
                setattr(module, name, module.original_max_seq_len)


def read_answer(model, score: torch.Tensor, prompt: list[int], answer: list[int]):
    """One sequence alone: logits [T, V], reward at its last token, log-prob of each token of the answer."""
    tokens = torch.tensor(prompt + answer)
    as_new(model)
    hidden = model.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]  # [T, D], after the norm
    logits = model.lm_head(hidden) / getattr(model.config, "logits_scaling", 1.0)
    logits = logits * getattr(model.config, "logit_scale", 1.0)
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    reward = (hidden[-1] * score[0]).sum()
    # The logits at a position speak of the token after it.
    logps = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, tokens[len(prompt) :, None])[:, 0]
    return logits, reward, logps


def read_pairs(model, score: torch.Tensor, pairs: list[dict]) -> dict:
    """Rewards and summed log-probs [B, 2] (chosen, rejected), answer lengths [B, 2], and every sequence's logits."""
    sides = ("chosen", "rejected")
    read = [[read_answer(model, score, pair["prompt"], pair[side]) for side in sides] for pair in pairs]
    return {
        "rewards": torch.stack([torch.stack([reward for _, reward, _ in pair]) for pair in read]),
        "logps": torch.stack([torch.stack([logps.sum() for _, _, logps in pair]) for pair in read]),
        "lengths": torch.tensor([[len(logps) for _, _, logps in pair] for pair in read]),
        "logits": [[logits for logits, _, _ in pair] for pair in read],
    }


# --- Losses -----------------------------------------------------------------------------------------------------------


def smoothed(z: torch.Tensor, smoothing: float) -> torch.Tensor:
    """-log sigmoid(z), where a share `smoothing` of the pairs is taken to be labeled the wrong way round."""
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def reward_loss(rewards: torch.Tensor, margins: torch.Tensor, loss: dict) -> torch.Tensor:
    """Bradley-Terry with margin, plus the centering term; mean over pairs."""
    chosen, rejected = rewards.unbind(1)
    bradley_terry = smoothed(chosen - rejected - margins, loss["label_smoothing"])
    return (bradley_terry + loss["centering"] * (chosen + rejected) ** 2).mean()


def policy_logits(logps: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor, loss: dict) -> torch.Tensor:
    """What the policy loss is a function of, one a pair: by how much the policy prefers the chosen answer."""
    beta = loss["beta"]
    if loss["policy"] == "simpo":
        average = logps / lengths
        return beta * (average[:, 0] - average[:, 1]) - loss["simpo_gamma"]
    delta = (logps[:, 0] - logps[:, 1]) - (reference[:, 0] - reference[:, 1])
    return delta if loss["policy"] == "ipo" else beta * delta


def policy_loss(logps: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor, loss: dict) -> torch.Tensor:
    """The policy loss, mean over pairs."""
    z = policy_logits(logps, reference, lengths, loss)
    match loss["policy"]:
        case "dpo" | "simpo":
            each = smoothed(z, loss["label_smoothing"])
        case "hinge":
            each = torch.relu(1 - z)
        case "ipo":
            each = (z - 1 / (2 * loss["beta"])) ** 2
        case "sft":
            each = -logps[:, 0]
    return each.mean()


def all_losses(read: dict, reference: torch.Tensor, margins: torch.Tensor, loss: dict) -> torch.Tensor:
    """[3]: reward loss, policy loss, total; zero for a loss that the objective leaves out."""
    zero = read["rewards"].new_zeros(())
    reward = zero if loss["objective"] == "policy" else reward_loss(read["rewards"], margins, loss)
    policy = zero if loss["objective"] == "reward" else policy_loss(read["logps"], reference, read["lengths"], loss)
    return torch.stack([reward, policy, loss["reward_weight"] * reward + loss["alpha"] * policy])


# --- Checks before anything is written --------------------------------------------------------------------------------


class Problem:
    """One model, head, pairs and loss, in one precision: the losses as a function of the parameters."""

    def __init__(self, model, score, pairs, reference, margins, loss):
        self.model, self.pairs, self.reference, self.margins, self.loss = model, pairs, reference, margins, loss
        # Tied weights appear once, under model.embed_tokens.weight: their gradient is the sum of both uses.
        self.parameters = dict(model.named_parameters()) | {"score.weight": score.requires_grad_()}

    def read(self) -> dict:
        return read_pairs(self.model, self.parameters["score.weight"], self.pairs)

    def losses(self) -> torch.Tensor:
        return all_losses(self.read(), self.reference, self.margins, self.loss)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(self.losses()[2], list(self.parameters.values()), allow_unused=True)
        return {name: g for name, g in zip(self.parameters, found) if g is not None}

    def double(self) -> "Problem":
        score = self.parameters["score.weight"].detach().double()
        model = copy.deepcopy(self.model).double()
        return Problem(model, score, self.pairs, self.reference.double(), self.margins.double(), self.loss)


class Float64Torch(types.ModuleType):
    """Stands in for `torch` inside a model's module, which casts norms and the softmax to float32 by name."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def in_float64(model):
    """Nothing that is float64 becomes float32 on the way through `model`."""
    module, cast = sys.modules[type(model).__module__], torch.Tensor.float
    module.torch = Float64Torch("torch")
    torch.Tensor.float = lambda tensor: tensor if tensor.dtype == torch.float64 else cast(tensor)
    try:
        yield
    finally:
        module.torch, torch.Tensor.float = torch, cast


def check_gradients(problem: Problem, gradients: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Float64 gradients against finite differences, then the float32 ones against those; the largest error of each."""
    with in_float64(problem.model):
        exact = problem.double()
        exact_gradients = exact.gradients()
        worst_difference = max(finite_difference_error(exact, name, g) for name, g in exact_gradients.items())
    worst_rounding = max(((gradients[name] - g).norm() / g.norm()).item() for name, g in exact_gradients.items())
    assert worst_difference < 1e-6, f"autograd and finite differences disagree by {worst_difference:.1e}"
    # The tests allow 1e-5: float32's own rounding must leave room below it.
    assert worst_rounding < 3e-6, f"float32 gradients are off by {worst_rounding:.1e}: choose another seed"
    return worst_difference, worst_rounding


@torch.no_grad()
def finite_difference_error(problem: Problem, name: str, gradient: torch.Tensor, step: float = 1e-5) -> float:
    """Two random coordinates and one random direction of a parameter: the largest error, relative to the gradient."""
    parameter, norm = problem.parameters[name], gradient.norm().item()
    assert norm > 1e-4, f"the gradient of {name} is trivial: {norm:.1e}"
    directions = [torch.zeros(parameter.numel()).double() for _ in range(2)]
    for direction, coordinate in zip(directions, torch.randint(parameter.numel(), (2,))):
        direction[coordinate] = 1.0
    directions.append(torch.nn.functional.normalize(torch.randn(parameter.numel()).double(), dim=0))
    kept, errors = parameter.data.clone(), []
    for direction in directions:
        direction = direction.view_as(parameter)
        sides = []
        for sign in (1, -1):
            parameter.data = kept + sign * step * direction
            sides.append(problem.losses()[2].item())
        parameter.data = kept
        slope = (sides[0] - sides[1]) / (2 * step)
        errors.append(abs(slope - (gradient * direction).sum().item()) / norm)
    return max(errors)


@torch.no_grad()
def check_not_trivial(problem: Problem, case: dict) -> str:
    """Attention and logits far from uniform, losses not saturated, both outcomes present, specialities that bite."""

    def sharpness(probabilities: torch.Tensor) -> float:
        entropy = -(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1)
        return (entropy / torch.tensor(float(probabilities.shape[-1])).log()).mean().item()  # 1: uniform

    model, read = problem.model, problem.read()
    longest = max((pair["prompt"] + pair["rejected"] for pair in problem.pairs), key=len)
    run = model(input_ids=torch.tensor([longest]), output_attentions=True, use_cache=False)
    attention = sharpness(torch.stack([layer[0, :, -1] for layer in run.attentions]))
    logits = sharpness(run.logits[0].softmax(-1))
    assert attention < 0.8 and logits < 0.8, f"close to uniform: attention {attention:.2f}, logits {logits:.2f}"

    differences = read["rewards"][:, 0] - read["rewards"][:, 1]
    z = policy_logits(read["logps"], problem.reference, read["lengths"], HYBRID)
    for what, values in (("reward", differences), ("dpo", z)):
        assert values.abs().max() < 5, f"{what}: saturated: {values}"
        assert values.min() < -0.05 and values.max() > 0.05, f"{what}: every pair has the same outcome: {values}"

    whole = read_answer(model, problem.parameters["score.weight"], longest[:1], longest[1:])[0]
    assert torch.equal(whole, run.logits[0]), "the model computes its logits otherwise than read_answer"
    for settings in case.get("without", []):
        other = new_model(case["family"], case["config"] | settings)
        other.load_state_dict(model.state_dict())
        change = (other(input_ids=torch.tensor([longest])).logits - run.logits).norm() / run.logits.norm()
        assert change > 0.01, f"{settings} changes the logits by {change:.1e} only"
    gap = least_gap(problem)
    assert gap > LEAST_GAP, f"experts are chosen by {gap:.1e}"
    shown = " ".join(f"{value:.2f}" for value in torch.cat([differences, z]).tolist())
    shown += f"; experts chosen by {gap:.1e}" if gap < 1 else ""
    return f"entropy of attention {attention:.2f}, of logits {logits:.2f} (1: uniform); preferences {shown}"


@torch.no_grad()
def least_gap(problem: Problem) -> float:
    """Between the K-th and the next expert's share of a token; 1 without experts."""
    gaps = [1.0]

    def watch(router, _, output):
        shares = output[0].softmax(-1).sort(-1, descending=True).values
        gaps.append((shares[:, router.top_k - 1] - shares[:, router.top_k]).min().item())

    routers = [module for module in problem.model.modules() if type(module).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(watch) for router in routers]
    problem.read()
    for hook in hooks:
        hook.remove()
    return min(gaps)


@torch.no_grad()
def shares_of(problem: Problem) -> dict[str, torch.Tensor]:
    """What routers give each expert: of each sequence, [blocks with experts, T, experts]."""
    shares = []
    routers = [module for module in problem.model.modules() if type(module).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(lambda _, __, output: shares.append(output[0].softmax(-1))) for router in routers]
    problem.read()
    for hook in hooks:
        hook.remove()
    sequences = [(number, side) for number in range(len(problem.pairs)) for side in ("chosen", "rejected")]
    of_sequence = [shares[start : start + len(routers)] for start in range(0, len(shares), len(routers))]
    named = zip(sequences, of_sequence, strict=True)
    return {f"pair{number}.shares_{side}": torch.stack(of_blocks) for (number, side), of_blocks in named}


def balance_loss(problem: Problem) -> torch.Tensor:
    """DeepSeek-V3's loss (arXiv 2412.19437, section 2.1.2): of each sequence in each block, mean of all. It is 1 where experts
    are used alike."""
    losses = []

    def watch(router, _, output):
        shares = output[0].softmax(-1)
        chosen = torch.zeros_like(shares).scatter(-1, output[2], 1.0)
        experts, tokens = shares.shape[1], shares.shape[0]
        load = experts / (router.top_k * tokens) * chosen.sum(0)
        losses.append((load * shares.mean(0)).sum())

    routers = [module for module in problem.model.modules() if type(module).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(watch) for router in routers]
    problem.read()
    for hook in hooks:
        hook.remove()
    return torch.stack(losses).mean()


def balance_of(problem: Problem, family: str) -> dict[str, torch.Tensor]:
    """The loss that balances experts, and its gradients where they are not zero."""
    parameters = dict(problem.model.named_parameters())
    loss = balance_loss(problem)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(parameters, found) if gradient is not None}
    gradients = as_in_files(problem.model, family, gradients)
    kept = {f"balance.grad.{name}": gradient for name, gradient in gradients.items() if gradient.norm() > 0}
    return {"balance.loss": loss.reshape(1)} | kept


# --- Files ------------------------------------------------------------------------------------------------------------


def save_model(model, folder: Path, **options) -> None:
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def save_sharded(model, folder: Path) -> None:
    """The same weights in several files with an index, and config.json in the form of Transformers before version 5."""
    save_model(model, folder, max_shard_size="6KB")
    assert (folder / "model.safetensors.index.json").exists()
    config = json.loads((folder / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.rope_parameters == model.config.rope_parameters, loaded.config.rope_parameters


def as_in_files(model, family: str, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the names of files, which hold every expert's matrices by themselves."""
    found = {}
    names = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    if family == "mixtral":
        names = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
    for key, value in values.items():
        key = RENAMED.get((family, key), key)
        if family == "mixtral":
            key = key.replace(".mlp.", ".block_sparse_moe.")
        prefix, _, last = key.rpartition(".")
        if not prefix.endswith(".experts"):
            found[key] = value
            continue
        parts = names[last]
        for expert, matrix in enumerate(value):
            for name, part in zip(parts, matrix.chunk(len(parts))):
                found[f"{prefix}.{expert}.{name}.weight"] = part
    return found


def metadata(loss: dict, margins: torch.Tensor, pairs: list[dict]) -> dict[str, str]:
    """Under one key: safetensors writes several in no fixed order, and a second run should give the same bytes."""
    about = {
        "loss": loss,
        "margins": margins.tolist(),
        "pairs": len(pairs),
        "losses_order": ["reward", "policy", "total"],
        "made_with": f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}",
    }
    return {"golden": json.dumps(about)}


def values_of(read: dict, reference: torch.Tensor, pairs: list[dict]) -> dict[str, torch.Tensor]:
    tensors = {}
    for i, pair in enumerate(pairs):
        for part in ("prompt", "chosen", "rejected"):
            tensors[f"pair{i}.{part}"] = torch.tensor(pair[part], dtype=torch.int64)
        tensors[f"pair{i}.logits_chosen"], tensors[f"pair{i}.logits_rejected"] = read["logits"][i]
        tensors[f"pair{i}.rewards"] = read["rewards"][i]
        tensors[f"pair{i}.logps"] = read["logps"][i]
        tensors[f"pair{i}.reference_logps"] = reference[i]
    return tensors


def write(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path, metadata=about)


def make_case(name: str, case: dict) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(case["seed"])
    model = random_model(case["family"], case["config"])
    score = 0.5 * torch.randn(1, model.config.hidden_size)
    pairs = random_pairs(model.config.vocab_size)
    with torch.no_grad():
        reference = read_pairs(perturbed(model), score, pairs)["logps"]
    no_margins = torch.zeros(len(pairs))

    problem = Problem(model, score, pairs, reference, no_margins, HYBRID)
    print(f"{name}: {check_not_trivial(problem, case)}")
    gradients = problem.gradients()
    report(name, check_gradients(problem, gradients), problem)

    save_model(model, folder)
    if model_type := case.get("model_type"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}, indent=2) + "\n")
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.config.model_type == case["family"], loaded.config.model_type
    if case.get("sharded"):
        save_sharded(model, folder / "sharded")
    tensors = values_of(problem.read(), reference, pairs) | {"score.weight": score, "losses": problem.losses()}
    in_file = as_in_files(model, case["family"], gradients)
    assert in_file.keys() - {"score.weight"} == load_file(folder / "model.safetensors").keys(), in_file.keys()
    tensors |= {f"grad.{key}": gradient for key, gradient in in_file.items()}
    if least_gap(problem) < 1:
        tensors |= balance_of(problem, case["family"]) | shares_of(problem)
    write(tensors, folder / "golden.safetensors", metadata(HYBRID, no_margins, pairs))

    for variant, settings in VARIANTS.items() if name == "llama-tied" else ():
        margins = torch.tensor(settings.get("margins", no_margins.tolist()))
        problem = Problem(model, score, pairs, reference, margins, settings["loss"])
        if variant == "hinge":
            with torch.no_grad():
                read = problem.read()
                z = policy_logits(read["logps"], reference, read["lengths"], settings["loss"])
            assert (z - 1).abs().min() > 1e-2 and z.min() < 1 < z.max(), f"both sides of the hinge, none on it: {z}"
        gradients = problem.gradients()
        report(f"{name} {variant}", check_gradients(problem, gradients), problem)
        kept = {f"grad.{key}": gradients[key] for key in VARIANT_GRADIENTS if key in gradients}
        about = metadata(settings["loss"], margins, pairs)
        write({"losses": problem.losses()} | kept, folder / f"golden-{variant}.safetensors", about)


def report(what: str, errors: tuple[float, float], problem: Problem) -> None:
    difference, rounding = errors
    losses = ", ".join(f"{loss:.4f}" for loss in problem.losses().tolist())
    print(f"{what}: losses {losses}; finite differences within {difference:.1e}, float32 rounding {rounding:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # one order of summation
    logging.disable_progress_bar()
    for name in sys.argv[1:] or CASES:
        make_case(name, CASES[name])
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    print(f"{size / 1000:.0f} kB in all")
