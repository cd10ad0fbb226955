#!/usr/bin/env python3
"""Does haf-dist read folders that other programs wrote as those programs do?

    python check_foreign.py HAF_DIST [PAIRS.jsonl]

Makes small Llama reward models with templates that end with the EOS, with a line break after it, and without an EOS; whose
pad token is one of their own, the EOS itself, or none; and one that TRL's RewardTrainer has trained, whole and with LoRA.
Then compares, pair by pair and in f32, `haf-dist score` with Transformers: the conversation rendered by the folder's own
template, one sequence at a time, the class's own pooling. For the trained ones the accuracy of `haf-dist eval` is compared with
TRL's own, which is a mean over batches: batches of one pair make it a mean over pairs.
PAIRS: rows with `prompt, chosen, rejected` as texts; some pairs of our own where it is left out.

Needs torch, transformers, trl, peft and datasets. Exit code 0: all equal to 1e-5.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import RewardConfig, RewardTrainer

TOLERANCE = 1e-5
TURN = "{{ '<|start|>' + message['role'] + '\\n' + message['content'] %s }}"
TAILS = {"eos": "+ '<|end|>'", "line break": "+ '<|end|>\\n'", "no eos": "+ '\\n'"}
PADS = {"own": "<|pad|>", "eos": "<|end|>", "none": None}
QUESTIONS = ["Name a fruit.", "How many legs has a spider?", "What is 2 + 3?", "Say hello.", "Is the sky green?", "Where is the sea?"]
RIGHT = ["A pear.", "Eight.", "Five, of course.", "Hello!", "No.\n\nIt is blue.", "\nBy the beach."]
WRONG = ["A brick.", "Two, I think.", "7", "No.", "Yes.", "In the cupboard."]


def tokenizer_of(tail: str, pad: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(QUESTIONS + RIGHT + WRONG, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token=PADS[pad])
    turn = "{% for message in messages %}" + TURN % TAILS[tail] + "{% endfor %}"
    fast.chat_template = turn + "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
    return fast


def model_of(tokenizer) -> LlamaForSequenceClassification:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=304,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model.eval()


def conversation(row: dict, side: str) -> list[dict]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]


def transformers_rewards(model, tokenizer, rows: list[dict]) -> list[list[float]]:
    def reward(row, side):
        text = tokenizer.apply_chat_template(conversation(row, side), tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return model(input_ids=ids).logits[0, 0].item()

    return [[reward(row, side) for side in ("chosen", "rejected")] for row in rows]


def haf_dist(program: Path, command: str, folder: Path, data: Path, *more: str) -> list[dict]:
    line = [program, command, "--checkpoint", folder, "--data", data, "--dtype", "f32", "--threads", "1", *more]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, cwd=folder.parent)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(name: str, program: Path, folder: Path, data: Path, rows: list[dict], model, tokenizer) -> list[list[float]]:
    theirs = transformers_rewards(model, tokenizer, rows)
    ours = [[row["reward_chosen"], row["reward_rejected"]] for row in haf_dist(program, "score", folder, data)]
    far = max(abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other))
    spread = torch.tensor(theirs).std().item()
    print(f"{name:<40} largest difference {far:.1e}, rewards spread over {spread:.2f}")
    if far > TOLERANCE or spread < 100 * TOLERANCE:
        sys.exit(f"{name}: not equal, or nothing to compare")
    return theirs


def trained(folder: Path, rows: list[dict], lora: bool):
    """What TRL's trainer saves after some steps, and its own accuracy on the rows."""
    tokenizer = tokenizer_of("line break", "own")
    start = folder / "start"
    model_of(tokenizer).save_pretrained(start)
    tokenizer.save_pretrained(start)
    data = Dataset.from_list([{side: conversation(row, side) for side in ("chosen", "rejected")} for row in rows])
    settings = RewardConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=1,
        max_steps=6,
        learning_rate=3e-3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    adapters = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["score"])
    trainer = RewardTrainer(
        model=str(start), args=settings, train_dataset=data, eval_dataset=data, peft_config=adapters if lora else None
    )
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(str(folder / "trained"))
    return folder / "trained", accuracy


def main() -> int:
    program = Path(sys.argv[1]).resolve()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        rows = [json.loads(line) for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()][:200]
    else:
        rows = [dict(prompt=q, chosen=r, rejected=w) for q, r, w in zip(QUESTIONS, RIGHT, WRONG, strict=True)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "pairs.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for tail in TAILS:
            for pad in PADS:
                place = folder / f"{tail}-{pad}".replace(" ", "-")
                tokenizer = tokenizer_of(tail, pad)
                model_of(tokenizer).save_pretrained(place)
                tokenizer.save_pretrained(place)
                # Read back, so that what is compared is what the folder says.
                model = AutoModelForSequenceClassification.from_pretrained(place, dtype=torch.float32).eval()
                tokenizer = AutoTokenizer.from_pretrained(place)
                compare(f"turn ends with {tail}, pad token: {pad}", program, place, data, rows, model, tokenizer)
        for lora in (False, True):
            what = "trained by TRL" + (" with LoRA" if lora else "")
            (folder / what).mkdir()
            place, accuracy = trained(folder / what, rows, lora)
            tokenizer = AutoTokenizer.from_pretrained(place)
            load = AutoPeftModelForSequenceClassification if lora else AutoModelForSequenceClassification
            model = load.from_pretrained(place, num_labels=1, dtype=torch.float32).eval()
            theirs = compare(what, program, place, data, rows, model, tokenizer)
            ours = haf_dist(program, "eval", place, data, "--json")[0]["accuracy"]
            pair_by_pair = sum(chosen > rejected for chosen, rejected in theirs) / len(theirs)
            print(f"{what:<40} accuracy: eval {ours:.4f}, TRL {accuracy:.4f}, pair by pair {pair_by_pair:.4f}")
            if abs(ours - accuracy) > 1e-6 or abs(ours - pair_by_pair) > 1e-6:
                sys.exit("the accuracies differ")
    print("every folder is read as Transformers reads it")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
