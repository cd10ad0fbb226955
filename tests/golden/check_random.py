#!/usr/bin/env python3
"""Does haf-dist score models of any valid shape as Transformers does?

    python check_random.py HAF_DIST [COUNT [FIRST]]

Draws COUNT configurations (100), of all families in turn: sizes, windows, kinds of blocks, rotations and their limits, biases,
multipliers, experts. Of each a model with random weights and a tokenizer of letters is saved by Transformers, scored by the
program HAF_DIST in f32, and computed by Transformers, one sequence at a time. Exit code 0: every reward is within 2e-5 of
1 + its size; 1: not so.

Not here: gradients, packing (`tests/all/random_models.rs`), real models (check_export.py).
"""

import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import check_export
import check_families
import make_golden
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

BOUND = 2e-5
FAMILIES = """llama mistral ministral ministral3 qwen2 qwen3 qwen3_moe mixtral olmoe phi phi3 gemma2 gemma3_text olmo2 olmo3
smollm3 exaone4 granite gpt_neox glm glm4 cohere2""".split()
OWN_HEAD_WIDTH = "llama mistral ministral qwen3 gemma2 gemma3_text ministral3 qwen3_moe mixtral".split()
LISTED = "ministral qwen2 qwen3 gemma2 gemma3_text olmo3 smollm3 exaone4 cohere2".split()
PLAIN = {"rope_type": "default", "rope_theta": 50.0}


def rotation(family: str, columns: int, dice: random.Random) -> dict:
    kinds = ["default", "longrope"] if family == "phi3" else ["default", "linear", "dynamic", "yarn", "llama3"]
    kind = "yarn" if family == "ministral3" else dice.choice(kinds)
    found = {"rope_type": kind, "rope_theta": dice.choice([20.0, 100.0, 10000.0])}
    original = dice.randint(6, 40)
    match kind:
        case "linear":
            found["factor"] = dice.uniform(1.1, 5.0)
        case "dynamic":
            found["factor"] = dice.uniform(4.0, 6.0)
        case "longrope":
            for key, least in (("short_factor", 1.0), ("long_factor", 2.0)):
                found[key] = [dice.uniform(least, least + 1) for _ in range(columns // 2)]
        case "yarn":
            found |= {"factor": dice.uniform(1.1, 5.0), "original_max_position_embeddings": original}
            found |= {"beta_fast": dice.uniform(1.0, 5.0), "beta_slow": dice.uniform(0.1, 0.9)}
            if dice.random() < 0.3:
                found["attention_factor"] = dice.uniform(0.7, 1.4)
            if dice.random() < 0.3:
                found["truncate"] = False
        case "llama3":
            found |= {"factor": dice.uniform(1.1, 5.0), "original_max_position_embeddings": original}
            found |= {"low_freq_factor": 1.0, "high_freq_factor": dice.uniform(1.5, 4.0)}
    if family == "ministral3":
        found["llama_4_scaling_beta"] = dice.uniform(0.1, 1.0)
    return found


def drawn(family: str, dice: random.Random) -> dict:
    kv, head = dice.choice([1, 2]), dice.choice([4, 6, 8])
    heads = kv * dice.choice([1, 2, 3])
    kv = heads if family in ("gpt_neox", "phi") else kv
    head = 8 if family in ("phi", "phi3", "gpt_neox", "glm", "glm4") else head
    layers = dice.randint(1, 3)
    act = dice.choice(["silu", "gelu", "gelu_new", "quick_gelu", "relu"])
    share = dice.choice([0.5, 1.0]) if family in ("phi", "phi3", "gpt_neox", "glm", "glm4") else 1.0
    rope = rotation(family, int(head * share) // 2 * 2, dice)
    # Whole heads are not the default of these.
    if share != 1.0 or family in ("phi", "gpt_neox", "glm", "glm4"):
        rope["partial_rotary_factor"] = share
    config = {
        "vocab_size": check_families.VOCABULARY,
        "hidden_size": heads * dice.randint(3, 6) if family in OWN_HEAD_WIDTH else heads * head,
        "intermediate_size": dice.randint(5, 20),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        # `score` cuts what is longer than a model's limit; a dynamic rotation reaches beyond.
        "max_position_embeddings": 16 if rope["rope_type"] == "dynamic" else 64,
        "hidden_act": act,
        "hidden_activation": act,
        "tie_word_embeddings": dice.random() < 0.5,
        "rope_parameters": rope,
        "attention_bias": dice.random() < 0.5,
        "mlp_bias": dice.random() < 0.5,
        "pad_token_id": check_families.SPECIAL.index("<|spare|>"),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_implementation": "eager",
    }
    if family in OWN_HEAD_WIDTH:
        config["head_dim"] = head
    if family == "phi3":
        config["original_max_position_embeddings"] = dice.randint(8, 30)
    if family in LISTED:
        kinds = ["full_attention", "sliding_attention"]
        config["layer_types"] = [dice.choice(kinds) for _ in range(layers)]
        config["use_sliding_window"] = True
    if family in LISTED or dice.random() < 0.5:
        config["sliding_window"] = dice.randint(2, 20)
    match family:
        case "gemma3_text" | "olmo3":
            config["rope_parameters"] = {"full_attention": rope, "sliding_attention": PLAIN}
        case "granite":
            config |= {"embedding_multiplier": dice.uniform(0.5, 3), "residual_multiplier": dice.uniform(0.2, 1)}
            config |= {"attention_multiplier": dice.uniform(0.1, 1), "logits_scaling": dice.uniform(0.5, 3)}
        case "cohere2":
            config["logit_scale"] = dice.uniform(0.3, 2)
        case "phi":
            config["qk_layernorm"] = dice.random() < 0.5
        case "gpt_neox":
            config["use_parallel_residual"] = dice.random() < 0.5
        case "smollm3":
            config["no_rope_layers"] = [dice.randint(0, 1) for _ in range(layers)]
        case "qwen3_moe" | "mixtral" | "olmoe":
            experts = dice.randint(2, 6)
            config |= {"num_experts": experts, "num_experts_per_tok": dice.randint(1, experts)}
            config |= {"moe_intermediate_size": dice.randint(4, 9), "norm_topk_prob": dice.random() < 0.5}
            config |= {"use_sliding_window": dice.random() < 0.5, "experts_implementation": "eager"}
            config |= {"mlp_only_layers": dice.choice([[], [], [0], [1]])} if family == "qwen3_moe" else {}
            if family == "mixtral":
                config["num_local_experts"] = config.pop("num_experts")
    if family == "gemma2":
        config |= {"attn_logit_softcapping": dice.uniform(2, 6), "final_logit_softcapping": dice.uniform(2, 8)}
    if family.startswith("gemma"):
        config["query_pre_attn_scalar"] = dice.randint(4, 12)
    return config


@torch.no_grad()
def rewards(model, score: torch.Tensor, sequences: list) -> list[float]:
    """Each sequence alone, by a model that has seen none before."""
    found = []
    for prompt, answer in sequences:
        make_golden.as_new(model)
        hidden = model.base_model(input_ids=torch.tensor([prompt + answer]), use_cache=False).last_hidden_state[0, -1]
        found.append((hidden.double() @ score[0].double()).item())
    return found


def check(program: Path, family: str, seed: int, folder: Path) -> float:
    """The largest distance of a reward, of 1 + its size."""
    dice = random.Random(seed)
    torch.manual_seed(seed)
    config = drawn(family, dice)
    (folder / "drawn.json").write_text(json.dumps({"family": family} | config, indent=2))
    model = make_golden.random_model(family, config)
    model.save_pretrained(folder / "model")
    weights = folder / "model/model.safetensors"
    score = torch.randn(1, model.config.hidden_size)
    save_file(load_file(weights) | {"score.weight": score}, weights, metadata={"format": "pt"})
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|spare|>"}
    settings |= {"chat_template": check_families.TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "model/tokenizer.json").write_text(json.dumps(check_families.tokenizer()))
    (folder / "model/tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "rows.jsonl").write_text(check_families.rows(seed, 6))
    arguments = ["--checkpoint", "model", "--data", "rows.jsonl", "--dtype", "f32", "--threads", "1"]
    run = subprocess.run([program, "score", *arguments], cwd=folder, capture_output=True, text=True)
    if run.returncode:
        print(run.stderr[-2000:])
        return float("inf")
    scores = [json.loads(line) for line in run.stdout.splitlines()]
    rows = check_export.read_rows(folder / "rows.jsonl", None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    sequences, ours, *_ = check_export.gather(tokenizer, rows, scores, 512)
    theirs = rewards(model, score, sequences)
    return max(abs(mine - other) / (1 + abs(other)) for mine, other in zip(ours, theirs, strict=True))


def main() -> int:
    program, *numbers = sys.argv[1:]
    count, first = [*map(int, numbers), *(100, 0)[len(numbers) :]][:2]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found, failed = defaultdict(list), []
    for number in range(first, first + count):
        family = FAMILIES[number % len(FAMILIES)]
        with tempfile.TemporaryDirectory() as folder:
            far = check(Path(program).resolve(), family, number, Path(folder))
            found[family].append(far)
            if not far <= BOUND:
                failed.append(number)
                print(f"{family}, number {number}: {far:.1e}\n{(Path(folder) / 'drawn.json').read_text()}")
    for family, distances in found.items():
        print(f"| `{family}` | {len(distances)} | {max(distances):.1e} |")
    print(f"FAILED: {failed}" if failed else f"all {count} agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
