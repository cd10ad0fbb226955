#!/usr/bin/env python3
"""Makes the golden files of LoRA: adapters as PEFT saves them, and what PEFT says of them and of their gradients.

Run by hand after make_golden.py (`python make_lora.py`, with peft installed); the output is committed. The bases are the
models that make_golden.py has made. Rewards, log-probs, losses and gradients are those of PEFT's layers in Transformers'
model, one sequence at a time; the reference is the same model with its adapters disabled. Every B is random, not zero:
otherwise no gradient would reach an A.

Not here: the formulas of the losses and the checks of gradients, which are make_golden.py's.
"""

import copy
import shutil
import sys
import warnings

import torch
from make_golden import HERE, HYBRID, Problem, check_gradients, metadata, random_pairs, read_pairs, report, values_of, write
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

MLP = ["gate_proj", "up_proj", "down_proj"]
CASES = {
    # The paper's projections and alpha; a scale of 4.
    "lora-mlp": {"seed": 21, "base": "llama-tied", "lora": {"r": 4, "lora_alpha": 16, "target_modules": MLP}},
    # Beside biases, several projections of one product, and a scale of 6 / sqrt(3).
    "lora-all": {
        "seed": 22,
        "base": "llama-untied",
        "lora": {
            "r": 3,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", *MLP],
        },
    },
    # One matrix holds queries, keys and values, head by head in files.
    "lora-neox": {
        "seed": 24,
        "base": "gpt-neox-parallel",
        "lora": {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
        },
    },
    # One matrix holds the rows of several projections, one after the other.
    "lora-phi3": {
        "seed": 25,
        "base": "phi3",
        "lora": {"r": 3, "lora_alpha": 6, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]},
    },
    # Norms of heads, norms before and after each half, weights of norms that count from 1.
    "lora-gemma3": {
        "seed": 26,
        "base": "gemma3",
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]},
    },
    # No norms before the halves, norms over all heads.
    "lora-olmo3": {
        "seed": 29,
        "base": "olmo3",
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"]},
    },
    # The rows of queries and keys are sorted otherwise in memory than in files.
    "lora-glm4": {
        "seed": 30,
        "base": "glm4",
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "gate_up_proj"]},
    },
    # Beside experts, which have none.
    "lora-qwen3-moe": {
        "seed": 29,
        "base": "qwen3-moe",
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "o_proj"]},
    },
    # Some projections of a product have no adapter: those before, between and after.
    "lora-some": {
        "seed": 23,
        "base": "llama-tied",
        "lora": {"r": 2, "lora_alpha": 3, "target_modules": ["k_proj", "up_proj"]},
    },
}


class LoraProblem(Problem):
    """The losses as a function of the adapters and the head; the base does not change."""

    def __init__(self, model, score, pairs, reference, margins, loss):
        super().__init__(model, score, pairs, reference, margins, loss)
        self.parameters = {name: p for name, p in self.parameters.items() if "lora_" in name or name == "score.weight"}

    def double(self) -> "LoraProblem":
        plain = super().double()
        score = plain.parameters["score.weight"].detach()
        return LoraProblem(plain.model, score, plain.pairs, plain.reference, plain.margins, plain.loss)


def saved_name(name: str) -> str:
    """A parameter's name in PEFT's file."""
    return "base_model.model." + name.replace(".default", "")


def make_case(name: str, case: dict) -> None:
    torch.manual_seed(case["seed"])
    base, folder = HERE / case["base"], HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    if "moe" in case["base"]:
        options["experts_implementation"] = "eager"
    causal = AutoModelForCausalLM.from_pretrained(base, **options).eval()
    plain = copy.deepcopy(causal)
    peft = get_peft_model(causal, LoraConfig(task_type="CAUSAL_LM", **case["lora"])).eval()
    model = peft.base_model.model  # with PEFT's layers in place of its own
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.1)
    width = model.config.hidden_size
    score = torch.randn(1, width) / width**0.5
    pairs = random_pairs(model.config.vocab_size)
    no_margins = torch.zeros(len(pairs))
    with torch.no_grad(), peft.disable_adapter():
        off = read_pairs(model, score, pairs)
    with torch.no_grad():
        alone = read_pairs(plain, score, pairs)
    assert torch.equal(off["logps"], alone["logps"]), "adapters disabled is the base"
    reference = alone["logps"]

    problem = LoraProblem(model, score, pairs, reference, no_margins, HYBRID)
    gradients = problem.gradients()
    report(name, check_gradients(problem, gradients), problem)
    read = problem.read()
    assert (read["logps"] - reference).abs().min() > 1e-2, "an adapter that changes little shows little"

    # As PEFT saves a reward model with these adapters; its own rewards must be ours.
    config = LoraConfig(task_type="SEQ_CLS", **case["lora"])
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **options)
    whole = get_peft_model(whole, config).eval()
    values = dict(model.named_parameters())
    for parameter_name, parameter in whole.base_model.model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.copy_(values[parameter_name].data)
    whole.base_model.model.score.modules_to_save.default.weight.data.copy_(score.data)
    for index, pair in enumerate(pairs):
        for side, name_of_side in enumerate(("chosen", "rejected")):
            tokens = torch.tensor([pair["prompt"] + pair[name_of_side]])
            reward = whole(input_ids=tokens).logits[0, 0].item()
            assert abs(reward - read["rewards"][index, side].item()) < 1e-6
    whole.peft_config["default"].base_model_name_or_path = f"../{case['base']}"
    # Sets have no order of their own.
    whole.peft_config["default"].target_modules = sorted(config.target_modules)
    whole.save_pretrained(folder)
    (folder / "README.md").unlink()

    tensors = {key: value for key, value in values_of(read, reference, pairs).items() if ".logits_" not in key}
    tensors |= {"losses": problem.losses()}
    tensors |= {f"grad.{saved_name(key)}": gradient for key, gradient in gradients.items()}
    write(tensors, folder / "golden.safetensors", metadata(HYBRID, no_margins, pairs))


if __name__ == "__main__":
    torch.set_num_threads(1)  # one order of summation
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in sys.argv[1:] or CASES:
        make_case(name, CASES[name])
