#!/usr/bin/env python3
"""Makes the golden files of merged adapters: what PEFT's merge_and_unload leaves of the weights that they change.

Run by hand after make_lora.py (`python make_merged.py`, with peft installed); the output is committed. It reads the
adapters as they are there, so that nothing random is made again.
"""

import warnings

import torch
from make_golden import HERE
from make_lora import CASES
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

# Scaled by a root, rows of several projections in one matrix, rows head by head in files.
MERGED = ["lora-all", "lora-phi3", "lora-neox", "lora-gemma3", "lora-olmo3", "lora-glm4", "lora-qwen3-moe"]


def make_case(name: str) -> None:
    base = HERE / CASES[name]["base"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, HERE / name).merge_and_unload().state_dict()
    changed = {key: value for key, value in merged.items() if not torch.equal(value, before[key])}
    adapters = load_file(HERE / name / "adapter_model.safetensors")
    # Every adapter has changed its weight, and the head is the adapter's.
    assert len(changed) == sum(".lora_A." in key for key in adapters) + 1, sorted(changed)
    assert torch.equal(merged["score.weight"], adapters["base_model.model.score.weight"])
    save_file({key: value.contiguous() for key, value in changed.items()}, HERE / name / "merged.safetensors")
    print(f"{name}: {len(changed)} tensors")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in MERGED:
        make_case(name)
