#!/usr/bin/env python3
"""Does `haf-dist score` give a folder of a model that reads images too the rewards of Transformers' text model within it?

    python check_text_parts.py HAF_DIST

A tiny random Gemma 3 and Mistral 3 (with Mistral Small's and with Ministral 3's text model), as Transformers saves them
whole. Exit code 0: every reward is within check_random's bound; 1: not so.

Not here: text models by themselves (check_random.py).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import check_export
import check_families
import check_random
import make_golden
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    Gemma3ForConditionalGeneration,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

TEXT = {"vocab_size": check_families.VOCABULARY, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64}
TEXT |= {"pad_token_id": 6, "bos_token_id": 1, "eos_token_id": 2}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
VISION |= {"patch_size": 14}
GEMMA = {"model_type": "gemma3_text", "sliding_window": 5, "query_pre_attn_scalar": 10}
GEMMA |= {"layer_types": ["sliding_attention", "full_attention"]}
# By name: the whole's class and type, its text model, its vision model, and what stands beside both.
CASES = {
    "gemma3": (Gemma3ForConditionalGeneration, GEMMA, {"model_type": "siglip_vision_model"}, {"mm_tokens_per_image": 1}),
    "mistral3, mistral": (
        Mistral3ForConditionalGeneration,
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "pixtral"},
        {},
    ),
    "mistral3, ministral3": (
        Mistral3ForConditionalGeneration,
        {"model_type": "ministral3", "rope_parameters": make_golden.GROWING},
        {"model_type": "pixtral"},
        {},
    ),
}


@torch.no_grad()
def check(program: Path, name: str, folder: Path) -> float:
    """The largest distance of a reward, of 1 + its size."""
    kind, text, vision, more = CASES[name]
    torch.manual_seed(1)
    parts = {"text_config": TEXT | text, "vision_config": VISION | vision}
    config = AutoConfig.for_model(name.split(",")[0], tie_word_embeddings=False, **parts, **more)
    model = kind(config).eval()
    for parameter_name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        usual = 0.0 if "gemma" in name else 1.0
        parameter.copy_(0.2 * noise + usual if parameter.dim() == 1 else noise / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder / "model")
    weights = folder / "model/model.safetensors"
    score = torch.randn(1, TEXT["hidden_size"])
    save_file(load_file(weights) | {"score.weight": score}, weights, metadata={"format": "pt"})
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|spare|>"}
    settings |= {"chat_template": check_families.TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "model/tokenizer.json").write_text(json.dumps(check_families.tokenizer()))
    (folder / "model/tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "rows.jsonl").write_text(check_families.rows(1, 12))
    arguments = ["--checkpoint", "model", "--data", "rows.jsonl", "--dtype", "f32", "--threads", "1"]
    run = subprocess.run([program, "score", *arguments], cwd=folder, capture_output=True, text=True)
    if run.returncode:
        print(run.stderr[-2000:])
        return float("inf")
    rows = check_export.read_rows(folder / "rows.jsonl", None)
    scores = [json.loads(line) for line in run.stdout.splitlines()]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    sequences, ours, *_ = check_export.gather(tokenizer, rows, scores, 512)
    # The text model within the whole, in f64: then what is left is the rounding of one side.
    language_model = model.model.language_model.double()
    far, spread = 0.0, []
    with make_golden.in_float64(language_model):
        for (prompt, answer), mine in zip(sequences, ours, strict=True):
            hidden = language_model(input_ids=torch.tensor([prompt + answer]), use_cache=False).last_hidden_state[0, -1]
            other = (hidden @ score[0].double()).item()
            far = max(far, abs(mine - other) / (1 + abs(other)))
            spread.append(other)
    assert max(spread) - min(spread) > 0.1, "rewards that are all alike show nothing"
    return far


def main() -> int:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    failed = []
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            far = check(Path(sys.argv[1]).resolve(), name, Path(folder))
        print(f"| `{name}` | {far:.1e} |")
        if not far <= check_random.BOUND:
            failed.append(name)
    print(f"FAILED: {failed}" if failed else "all agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
