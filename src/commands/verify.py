#!/usr/bin/env python3
"""Checks that Transformers computes the rewards that a folder's model gave when haf-dist saved it.

    python verify.py FOLDER [--dtype f32|bf16]

Reads FOLDER/self-test.json and compares, for each conversation: the chat template's rendering, its tokens, the position at
which the reward is read, and the reward by the model class, by the text-classification pipeline with its default function,
in batches padded on the right and on the left, and from messages as TRL scores them. Exit code 0: all are as saved;
1: the table names the differences. Needs torch and transformers; an adapter's folder needs peft as well.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline


class CausalWithHead(torch.nn.Module):
    """A causal model and its reward head, for a family that has no class for both."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.config = self.model.config
        with safe_open(folder / "model.safetensors", "pt") as file:
            self.score = file.get_tensor("score.weight").float()

    def forward(self, input_ids, attention_mask):
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        places = torch.arange(input_ids.shape[1]) * (input_ids != self.config.pad_token_id)
        last = hidden[torch.arange(len(hidden)), places.argmax(-1)]
        return SimpleNamespace(logits=last.float() @ self.score.T)


def load(folder: Path, dtype: torch.dtype, tokenizer):
    config = folder / "config.json"
    if config.exists() and json.loads(config.read_text(encoding="utf-8"))["architectures"][0].endswith("ForCausalLM"):
        return CausalWithHead(folder, dtype).eval()
    if not (folder / "adapter_config.json").exists():
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    from peft import PeftConfig, PeftModel

    named = PeftConfig.from_pretrained(folder).base_model_name_or_path
    base = folder / named if (folder / named / "config.json").exists() else named
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=dtype, num_labels=1)
    # PEFT does not save the base's config: set the values that an export has in config.json.
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.problem_type = "regression"
    return PeftModel.from_pretrained(model, folder).eval()


@torch.no_grad()
def rewards_of(model, tokenizer, sequences: list[list[int]], side: str) -> list[float]:
    batch = tokenizer.pad({"input_ids": sequences}, padding_side=side, return_tensors="pt")
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()


@torch.no_grad()
def as_trl(model, tokenizer, conversations: list[list[dict]]) -> list[float]:
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    options = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
    batch = tokenizer(text=texts, **options)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()


def by_pipeline(model, tokenizer, texts: list[str]) -> list[float]:
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    return [classify(text, add_special_tokens=False)[0]["score"] for text in texts]


def difference(saved: float, seen: float, tolerance: dict, dtype: str) -> str:
    """The likely cause of a difference; empty if it is within the tolerance."""
    if abs(seen - saved) <= tolerance[dtype]:
        return ""
    if abs(seen - 1 / (1 + math.exp(-saved))) <= tolerance[dtype]:
        return "activation"
    return "precision" if abs(seen - saved) <= tolerance["bf16"] else "reward"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder with self-test.json")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="precision of the computation")
    arguments = parser.parse_args()
    folder, dtype = arguments.folder, arguments.dtype
    test = json.loads((folder / "self-test.json").read_text(encoding="utf-8"))
    cases = test["conversations"]
    for out in test.get("left_out", []):
        print(f"left out: {out['name']} ({out['why']})")
    if not cases:
        print("no conversation to check")
        return 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(folder, {"f32": torch.float32, "bf16": torch.bfloat16}[dtype], tokenizer)
    pad = model.config.get_text_config().pad_token_id

    wrong: dict[str, set[str]] = {case["name"]: set() for case in cases}
    for case in cases:
        name, tokens = case["name"], case["tokens"]
        if tokenizer.apply_chat_template(case["messages"], tokenize=False) != case["text"]:
            wrong[name].add("rendering")
        if tokenizer(case["text"], add_special_tokens=False)["input_ids"] != tokens:
            wrong[name].add("tokens")
        if max((at for at, token in enumerate(tokens) if token != pad), default=-1) != len(tokens) - 1:
            wrong[name].add("position")

    sequences, texts = [case["tokens"] for case in cases], [case["text"] for case in cases]
    ways = {
        "model class": [rewards_of(model, tokenizer, [sequence], "right")[0] for sequence in sequences],
        "padded right": rewards_of(model, tokenizer, sequences, "right"),
        "padded left": rewards_of(model, tokenizer, sequences, "left"),
        "from messages": as_trl(model, tokenizer, [case["messages"] for case in cases]),
    }
    # The pipeline takes only Transformers' own classes.
    if not isinstance(model, CausalWithHead):
        ways["pipeline"] = by_pipeline(model, tokenizer, texts)
    print(f"{'conversation':<32} {'saved':>10}  largest distance by way")
    for index, case in enumerate(cases):
        distances = {way: abs(rewards[index] - case["reward"]) for way, rewards in ways.items()}
        for way, rewards in ways.items():
            if cause := difference(case["reward"], rewards[index], test["tolerance"], dtype):
                wrong[case["name"]].add(f"{cause} ({way})")
        found = wrong[case["name"]]
        way = max(distances, key=distances.get)
        verdict = "NOT: " + ", ".join(sorted(found)) if found else "OK"
        print(f"{case['name']:<32} {case['reward']:>10.6f}  {distances[way]:.1e} {way:<14} {verdict}")
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
