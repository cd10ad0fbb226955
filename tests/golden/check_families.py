#!/usr/bin/env python3
"""Does Transformers read from a checkpoint of every family the scores that haf-dist reports?

    python check_families.py HAF_DIST [CASE ...]

For each case of make_golden.py (without names: one or two of each family) a random model with a tokenizer of letters,
trained for a few steps by the program HAF_DIST, then scored by it and by check_export.py, in f32 and in bf16. With experts
there are several models, since rounding to bf16 sends some tokens to other experts, which counts more than all else; for
Transformers such flips are counted. Exit code 0: all within the tolerances below; 1: not so.

Not here: real models and data; check_export.py takes those.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import check_export
import make_golden
import torch
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

# AutoTokenizer gives some families a class that is not made for a tokenizer of letters.
check_export.AutoTokenizer = PreTrainedTokenizerFast
# Absolute and relative.
check_export.TOLERANCES["f32"] = {"reward": (1e-5, 1e-5), "logp": (1e-5, 1e-5)}
# bf16 is measured from float32: at most so many times as far as Transformers' own.
WORSE = 1.5
# So many models of a case with experts: over one, chance decides who flips more.
DRAWN = 6
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|spare|>", "<|other|>"]
LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!"
VOCABULARY = 97
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONFIG = """
[model]
path = "model"
dtype = "f32"
[data]
train = [{ path = "train.jsonl" }]
max_length = 48
max_prompt_length = 24
[train]
steps = 4
pairs_per_step = 6
learning_rate = 1e-3
[parallel]
threads = 1
[output]
dir = "run"
"""


def tokenizer() -> dict:
    """One token a letter."""
    texts = SPECIAL + list(LETTERS)
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text} | plain for i, text in enumerate(SPECIAL)],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {text: i for i, text in enumerate(texts)}, "unk_token": "<unk>"},
    } | dict.fromkeys(["truncation", "padding", "normalizer", "post_processor"])


def rows(first: int, count: int) -> str:
    def row(number: int) -> dict:
        answers = [f"{word} {number}" for word in ("yes", "no", "a cat", "the dog", "maybe so", "I do not know")]
        chosen, rejected = answers[number % 6], answers[(number + 1 + number % 5) % 6]
        return {"prompt": f"What is {'x' * (number % 7)}?", "chosen": chosen, "rejected": rejected + "."}

    return "".join(json.dumps(row(number)) + "\n" for number in range(first, first + count))


def check(program: Path, name: str) -> bool:
    case = make_golden.CASES[name]
    experts = any("experts" in key for key in case["config"])
    passed, far = True, {}
    for drawn in range(DRAWN if experts else 1):
        with tempfile.TemporaryDirectory() as folder:
            passed &= check_f32(program, name, case["seed"] + drawn, Path(folder))
            for what, errors in errors_in_bf16(Path(folder) / "run/step-4", Path(folder), experts).items():
                far.setdefault(what, []).append(errors)
    for what, errors in far.items():
        ours, theirs = torch.cat(errors, 1).square().mean(1).sqrt().tolist()
        passed &= ours <= WORSE * theirs
        print(f"{what} in bf16: off by {ours:.1e} (root mean square), Transformers' by {theirs:.1e}")
    return passed


def check_f32(program: Path, name: str, seed: int, folder: Path) -> bool:
    case = make_golden.CASES[name]
    torch.manual_seed(seed)
    model = make_golden.random_model(case["family"], case["config"] | {"vocab_size": VOCABULARY})
    model.save_pretrained(folder / "model")
    # A head that is there is kept, and gives rewards that are worth a comparison.
    weights = folder / "model/model.safetensors"
    score = torch.randn(1, model.config.hidden_size)
    save_file(load_file(weights) | {"score.weight": score}, weights, metadata={"format": "pt"})
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for path, text in {
        "model/tokenizer.json": json.dumps(tokenizer()),
        "model/tokenizer_config.json": json.dumps(settings),
        "run.toml": CONFIG,
        "train.jsonl": rows(0, 12),
        "test.jsonl": rows(40, 9),
    }.items():
        (folder / path).write_text(text)
    run = {"cwd": folder, "check": True, "stderr": subprocess.DEVNULL}
    subprocess.run([program, "--config", "run.toml"], stdout=subprocess.DEVNULL, **run)
    checkpoint = folder / "run/step-4"
    for dtype in ("f32", "bf16"):
        arguments = ["--checkpoint", "run/step-4", "--data", "test.jsonl", "--dtype", dtype, "--threads", "1"]
        with (folder / f"scores-{dtype}.jsonl").open("w") as file:
            subprocess.run([program, "score", *arguments], stdout=file, **run)
    print(f"{name}: {json.loads((checkpoint / 'config.json').read_text())['architectures'][0]}")
    sys.argv = ["check_export.py", str(checkpoint), str(folder / "test.jsonl"), str(folder / "scores-f32.jsonl")]
    return check_export.main() == 0


def errors_in_bf16(checkpoint: Path, folder: Path, experts: bool) -> dict:
    """Of rewards and log-probs [ours and Transformers', sequences]. Which of two programs rounds better is chance; ours must
    not be much worse."""
    rows, scores = (check_export.read_rows(folder / name, None) for name in ("test.jsonl", "scores-bf16.jsonl"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    sequences, rewards, logps, _, _ = check_export.gather(tokenizer, rows, scores, 512)
    readers = {"rewards": (rewards, check_export.rewards_of), "log-probs": (logps, check_export.logps_of)}
    far, chosen = {}, []
    for what, (ours, read) in readers.items():
        chosen.clear()
        watch = register_module_forward_hook(lambda module, _, output: note_experts(module, output, chosen))
        exact, theirs = (torch.tensor(read(checkpoint, dtype, sequences)) for dtype in (torch.float32, torch.bfloat16))
        watch.remove()
        far[what] = torch.stack([torch.tensor(ours), theirs]) - exact
    if experts:
        half = len(chosen) // 2
        exact, rounded = torch.cat(chosen[:half]), torch.cat(chosen[half:])
        flips = (exact != rounded).any(1).sum().item()
        print(f"of {len(exact)} tokens (with padding) Transformers sends {flips} to other experts in bf16")
    return far


def note_experts(module: torch.nn.Module, output: tuple, chosen: list) -> None:
    """A router's choice for every token, in ascending order."""
    if type(module).__name__.endswith("TopKRouter"):
        chosen.append(output[2].sort(-1).values)


def main() -> int:
    program, *names = sys.argv[1:]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    failed = []
    # In llama-dynamic Transformers goes by the longest sequence of a batch and of what it has seen before.
    left_out = ("llama-untied", "llama-linear", "llama-dynamic")
    for name in names or [name for name in make_golden.CASES if name not in left_out]:
        if not check(Path(program).resolve(), name):
            failed.append(name)
    print(f"FAILED: {', '.join(failed)}" if failed else "every family passed")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
