#!/usr/bin/env python3
"""Does Transformers read from an exported checkpoint the scores that haf-dist reports?

    haf-dist score --checkpoint DIR --data pairs.jsonl > scores.jsonl      (see `haf-dist score --help` for its options)
    python check_export.py DIR pairs.jsonl scores.jsonl [--dtype f32|bf16] [--limit N] [--max-length N]

Rewards come from AutoModelForSequenceClassification with its own pooling rule, in batches padded on the right;
log-probs from AutoModelForCausalLM. Exit code 0: all within the tolerances below; 1: not so; 2: nothing to compare.

Reads rows with `prompt, chosen, rejected` (strings or message lists; the prompt may be implicit), with
`prompt, answer|response|completion`, PKU-SafeRLHF's, and hh-rlhf's transcripts; renders with the chat template.
Not here: truncation (rows over --max-length are skipped and counted) and the plain templates.
"""

import argparse
import gzip
import json
import os
import sys
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

# Largest difference allowed: absolute + relative * |value|. bf16 keeps 8 bits, and rounds in another order here.
TOLERANCES = {
    "f32": {"reward": (1e-4, 0.0), "logp": (1e-3, 0.0)},
    "bf16": {"reward": (5e-2, 3e-2), "logp": (2.5e-1, 2e-2)},
}
BATCH = 4
SINGLE_ANSWER = ("answer", "response", "completion")


# --- Rows -------------------------------------------------------------------------------------------------------------


def read_rows(path: Path, limit: int | None) -> list[dict]:
    """JSONL, JSONL.gz or one JSON array."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        first = file.read(1)
        file.seek(0)
        rows = json.load(file) if first == "[" else (json.loads(line) for line in file if line.strip())
        return list(islice(rows, limit))


def split_transcript(text: str) -> tuple[list[dict], str]:
    """An hh-rlhf transcript: its turns before the last answer, and that answer."""
    before, _, answer = text.rpartition("\n\nAssistant:")
    messages = []
    for turn in before.replace("\n\nHuman:", "\0u").replace("\n\nAssistant:", "\0a").split("\0")[1:]:
        messages.append({"role": "user" if turn[0] == "u" else "assistant", "content": turn[1:].removeprefix(" ")})
    return messages, answer.removeprefix(" ")


def conversations(row: dict) -> dict[str, tuple[list[dict], str]]:
    """From the names of a row's rewards in the scores to (messages of the prompt, answer)."""

    def text(answer) -> str:
        return answer if isinstance(answer, str) else answer[-1]["content"]

    def messages(prompt) -> list[dict]:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt

    if "response_0" in row:
        better = row["better_response_id"]
        prompt = messages(row["prompt"])
        return {"chosen": (prompt, row[f"response_{better}"]), "rejected": (prompt, row[f"response_{1 - better}"])}
    if "chosen" not in row:
        key = next(key for key in SINGLE_ANSWER if key in row)
        return {"": (messages(row["prompt"]), text(row[key]))}
    if "prompt" in row:
        return {side: (messages(row["prompt"]), text(row[side])) for side in ("chosen", "rejected")}
    if isinstance(row["chosen"], str):
        return {side: split_transcript(row[side]) for side in ("chosen", "rejected")}
    return {side: (row[side][:-1], text(row[side])) for side in ("chosen", "rejected")}


def tokenize(tokenizer, prompt: list[dict], answer: str) -> tuple[list[int], list[int]]:
    """The conversation as one text, then parted where the prompt alone would differ. The answer ends with its turn's
    EOS; what the template adds after that is dropped."""
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + [{"role": "assistant", "content": answer}], tokenize=False)
    turn, eos, _ = whole.rpartition(tokenizer.eos_token)
    # The template writes special tokens itself: the tokenizer must not add another BOS.
    alone, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (before, turn + eos if eos else whole + tokenizer.eos_token)
    )
    common = next((at for at, (one, other) in enumerate(zip(alone, ids)) if one != other), min(len(alone), len(ids)))
    return ids[:common], ids[common:]


def gather(tokenizer, rows: list[dict], scores: list[dict], max_length: int) -> tuple[list, list, list, list, int]:
    """Sequences, our rewards and log-probs of them, whether each is of a pair; and how many rows are too long."""
    sequences, rewards, logps, in_pairs, skipped = [], [], [], [], 0
    for row, score in zip(rows, scores, strict=True):
        sides = {side: tokenize(tokenizer, *conversation) for side, conversation in conversations(row).items()}
        if max(len(prompt) + len(answer) for prompt, answer in sides.values()) > max_length:
            skipped += 1
            continue
        for side, sequence in sides.items():
            suffix = f"_{side}" if side else ""
            sequences.append(sequence)
            rewards.append(score[f"reward{suffix}"])
            logps.append(score.get(f"logp{suffix}"))
            in_pairs.append(bool(side))
    return sequences, rewards, logps, in_pairs, skipped


# --- Transformers' view -----------------------------------------------------------------------------------------------


def padded_batches(sequences: list[tuple[list[int], list[int]]], pad: int):
    """Right padding with the checkpoint's pad id, which must occur in no sequence: (where, tokens, mask)."""
    for start in range(0, len(sequences), BATCH):
        batch = [prompt + answer for prompt, answer in sequences[start : start + BATCH]]
        assert all(pad not in tokens for tokens in batch), f"the pad id {pad} occurs in a sequence"
        longest = max(map(len, batch))
        ids = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens in batch])
        mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in batch])
        yield start, ids, mask


def load(kind, folder: Path, dtype: torch.dtype, **options):
    """The model in a folder; where that is an adapter's, its base with the adapter through PEFT."""
    config = folder / "config.json"
    if config.exists() and "num_experts_per_tok" in json.loads(config.read_text(encoding="utf-8")):
        # PyTorch's grouped product takes widths of whole 16 bytes alone, which small models need not have.
        options.setdefault("experts_implementation", "eager")
    if not (folder / "adapter_config.json").exists():
        return kind.from_pretrained(folder, dtype=dtype, **options).eval()
    from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(folder)
    base = kind.from_pretrained(adapter.base_model_name_or_path, dtype=dtype, **options)
    # PEFT saves no config of the base: the tokenizer beside the adapter says what to pad with.
    base.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    if kind is AutoModelForCausalLM:
        adapter.task_type, adapter.modules_to_save = "CAUSAL_LM", None  # the reward head stays aside
    return PeftModel.from_pretrained(base, folder, config=adapter).eval()


@torch.no_grad()
def rewards_beside(folder: Path, dtype: torch.dtype, sequences: list) -> list[float]:
    """Of a family that has no class of its own for rewards: the causal model's, by the head beside it."""
    model = load(AutoModelForCausalLM, folder, dtype)
    with safe_open(folder / "model.safetensors", "pt") as file:
        score = file.get_tensor("score.weight")[0]
    rewards = []
    for start, ids, mask in padded_batches(sequences, model.config.pad_token_id):
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        for row, (prompt, answer) in enumerate(sequences[start : start + len(ids)]):
            rewards.append((hidden[row, len(prompt) + len(answer) - 1] @ score).item())
    return rewards


@torch.no_grad()
def rewards_of(folder: Path, dtype: torch.dtype, sequences: list) -> list[float]:
    config = folder / "config.json"
    if config.exists() and json.loads(config.read_text())["architectures"][0].endswith("ForCausalLM"):
        return rewards_beside(folder, dtype, sequences)
    model = load(AutoModelForSequenceClassification, folder, dtype, num_labels=1)
    config = model.config
    assert config.pad_token_id is not None, "config.json has no pad_token_id: Transformers cannot score a batch"
    assert config.pad_token_id != config.eos_token_id, "pad is EOS: Transformers would read the token before the EOS"
    rewards = []
    for _, ids, mask in padded_batches(sequences, config.pad_token_id):
        rewards += model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    return rewards


@torch.no_grad()
def logps_of(folder: Path, dtype: torch.dtype, sequences: list) -> list[float]:
    model = load(AutoModelForCausalLM, folder, dtype)
    logps = []
    for start, ids, mask in padded_batches(sequences, model.config.pad_token_id):
        logits = model(input_ids=ids, attention_mask=mask).logits
        for row, (prompt, answer) in enumerate(sequences[start : start + len(ids)]):
            # The logits at a position speak of the token after it.
            said = logits[row, len(prompt) - 1 : len(prompt) + len(answer) - 1].float().log_softmax(-1)
            logps.append(said.gather(1, torch.tensor(answer)[:, None]).sum().item())
    return logps


# --- Comparison -------------------------------------------------------------------------------------------------------


def compare(what: str, ours: list[float], theirs: list[float], tolerance: tuple[float, float]) -> bool:
    absolute, relative = tolerance
    ours, theirs = torch.tensor(ours).double(), torch.tensor(theirs).double()
    difference = (ours - theirs).abs()
    passed = bool((difference <= absolute + relative * theirs.abs()).all())  # a NaN fails
    print(
        f"{what}: {len(ours)} values, largest difference {difference.max():.2e} at {int(difference.argmax())}, "
        f"allowed {absolute:g} + {relative:g} * |value|: {'PASS' if passed else 'FAIL'}"
    )
    return passed


def accuracy(pairs: torch.Tensor) -> float:
    """Share of pairs [B, 2] in which the chosen answer has the higher reward; a tie is one half."""
    difference = pairs[:, 0] - pairs[:, 1]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def compare_order(ours: list[float], theirs: list[float], tolerance: tuple[float, float]) -> bool:
    """Both must order every pair alike, unless its rewards are closer than the tolerance of either."""
    ours, theirs = torch.tensor(ours).double().view(-1, 2), torch.tensor(theirs).double().view(-1, 2)
    apart = [pairs[:, 0] - pairs[:, 1] for pairs in (ours, theirs)]
    close = apart[1].abs() <= 2 * tolerance[0] + tolerance[1] * theirs.abs().sum(1)
    differ = (apart[0].sign() != apart[1].sign()) & ~close
    print(
        f"accuracy: ours {accuracy(ours):.4f}, Transformers {accuracy(theirs):.4f}; {int(differ.sum())} of {len(ours)} "
        f"pairs ordered otherwise ({int(close.sum())} too close to tell): {'FAIL' if differ.any() else 'PASS'}"
    )
    return not differ.any()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="an exported folder")
    parser.add_argument("data", type=Path, help="the rows that were scored")
    parser.add_argument("scores", type=Path, help="what `haf-dist score` wrote for them, one object a row")
    parser.add_argument("--dtype", choices=TOLERANCES, default="f32", help="precision of both computations")
    parser.add_argument("--limit", type=int, help="read at most this many rows")
    parser.add_argument("--max-length", type=int, default=512, help="skip rows with a longer sequence, in tokens")
    arguments = parser.parse_args()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]

    rows, scores = read_rows(arguments.data, arguments.limit), read_rows(arguments.scores, arguments.limit)
    if len(rows) != len(scores):
        print(f"{len(rows)} rows but {len(scores)} scores: were they made from this file?", file=sys.stderr)
        return 2
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    sequences, our_rewards, our_logps, in_pairs, skipped = gather(tokenizer, rows, scores, arguments.max_length)
    compared = len(rows) - skipped
    print(f"{compared} rows compared in {arguments.dtype}, {skipped} over {arguments.max_length} tokens skipped")
    if not sequences:
        print("nothing to compare", file=sys.stderr)
        return 2

    allowed = TOLERANCES[arguments.dtype]
    rewards = rewards_of(arguments.checkpoint, dtype, sequences)
    passed = compare("rewards", our_rewards, rewards, allowed["reward"])
    if any(in_pairs):
        ours, theirs = ([value for value, paired in zip(of, in_pairs) if paired] for of in (our_rewards, rewards))
        passed &= compare_order(ours, theirs, allowed["reward"])
    if all(logp is None for logp in our_logps):
        print("log-probs: the scores hold none")
    else:
        chosen = [i for i, logp in enumerate(our_logps) if logp is not None]
        logps = logps_of(arguments.checkpoint, dtype, [sequences[i] for i in chosen])
        passed &= compare("log-probs", [our_logps[i] for i in chosen], logps, allowed["logp"])
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
