#!/usr/bin/env python3
"""Asks `haf-dist models` about real config.json files, and Transformers for their number of parameters.

    python check_configs.py HAF_DIST FOLDER

FOLDER holds a folder a model, each with its config.json; weights and tokenizers are not needed. Of each model a row of a
Markdown table: whether its config.json is accepted, and whether the number of parameters is Transformers' to the unit (built
on the meta device, of a model that reads images the text part); or the keys that are refused. Ends with exit code 1 where a
number differs, or a refusal names no key.

Not here: what the models compute (make_golden.py).
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging


def counted(folder: Path) -> int:
    """Parameters of the causal model in Transformers; a tied matrix counts once."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # Its weights are not quantized here, and the numbers of a quantized layer are others.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config.get_text_config())
    return sum(parameter.numel() for parameter in model.parameters())


def refusals(said: dict) -> list[str]:
    """What is wrong with config.json, without its path."""
    messages = (reason["message"] for reason in said["reasons"])
    return [message.split("config.json: ", 1)[1] for message in messages if "config.json: " in message]


def asked(haf_dist: str, folder: Path) -> dict:
    answer = subprocess.run([haf_dist, "models", str(folder), "--json"], capture_output=True, text=True)
    # Without weights nothing would load; anything but 2 is a failure of the program.
    if answer.returncode != 2:
        raise SystemExit(f"{folder}: exit code {answer.returncode}: {answer.stderr}")
    return json.loads(answer.stdout)


def row(haf_dist: str, folder: Path) -> tuple[bool, list[str]]:
    """Whether all is well, and what to say: model, family, outcome, parameters."""
    config = json.loads((folder / "config.json").read_text())
    family = config.get("model_type", "")
    said = asked(haf_dist, folder)
    if refused := refusals(said):
        named = all(re.match(r"[a-z_0-9]+( = |: | is missing| \")|text_config ", reason) for reason in refused)
        return named, [folder.name, family, "; ".join(refused), ""]
    # Transformers' causal model has no reward head.
    ours, theirs = said["parameters"] - said["width"], counted(folder)
    equal = f"{ours:,}" if ours == theirs else f"{ours:,}, Transformers has {theirs:,}"
    return ours == theirs, [folder.name, family, "accepted", equal]


def main() -> None:
    logging.set_verbosity_error()
    haf_dist, folder = sys.argv[1:]
    good, accepted, total = True, 0, 0
    print("| model | `model_type` | outcome | parameters |\n|---|---|---|---|")
    for config in sorted(Path(folder).glob("*/config.json")):
        well, cells = row(haf_dist, config.parent)
        good, accepted, total = good and well, accepted + (cells[2] == "accepted"), total + 1
        print("| " + " | ".join(cells) + " |" + ("" if well else " <- wrong"), flush=True)
    print(f"\n{accepted} of {total} accepted; " + ("all is well" if good else "something is wrong"))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
