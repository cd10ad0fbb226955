#!/usr/bin/env python3
"""Do the programs that use reward models read from our exports the rewards that were trained, whatever the chat template?

    python check_exports.py HAF_DIST [--openrlhf FOLDER] [--families NAME ...] [--templates NAME ...]

A random model of each family is trained for a step by the program HAF_DIST, and exported with each chat template that TRL
ships, two kinds that it does not ship, and the three plain ones. Compared, in f32, with `haf-dist score`:

    class      AutoModelForSequenceClassification, one conversation at a time, tokens by apply_chat_template
    pipeline   text-classification with its default function, on the rendered text
    right      as TRL scores: texts by apply_chat_template, a batch padded on the right
    left       the same padded on the left
    openrlhf   OpenRLHF's reward model class on the same tokens, FOLDER being its unpacked wheel

A reward that differs by more than 1e-5 (of 1 + its size) is wrong. Of these the last column counts those that float32 itself
explains: `haf-dist score` is within 1e-5 of Transformers in float64, or at most three times as far from it as the other one,
and that one within 1e-4.

Each exported template is also rendered beside its original, in Transformers' sandbox, over a grid of conversations, the
original at the date of the training and the export today: those that end with the assistant's turn must be cut at the EOS,
and nothing else may change: generation prompts, user turns, assistant masks, continue_final_message. `haf-dist verify` and the script that it writes must agree with each checkpoint, and
name what is wrong with a spoilt copy. Exit code 0: all of it holds; 1: not so.

Needs torch, transformers, trl; for OpenRLHF peft besides. Not here: log-probs and bf16 (check_families.py).
"""

import argparse
import datetime
import importlib.abc
import importlib.machinery
import itertools
import json
import logging as python_logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import make_golden
import torch
import trl
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline
from transformers.utils import chat_template_utils, logging
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
FAMILIES = ["llama-tied", "mistral", "mistral-some-windows", "qwen2", "qwen3", "phi", "phi3", "gemma2", "gemma3", "olmo2"]
FAMILIES += ["smollm3", "gpt-neox-parallel"]
PLAIN = ["instruct", "hh", "plain"]
# Kinds that TRL has none of: brackets with the EOS token by name, and roles as words with no EOS at all.
OWN = {
    "brackets": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ raise_exception('user and assistant alone') }}{% endif %}{% endfor %}"
    ),
    "words": (
        "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    ),
}
# Of 1 + the reward's size.
TOLERANCE = 1e-5
# How far rounding may take another program's float32 from float64, and how much farther a reward of ours may be.
ROUNDING = 1e-4
FARTHER = 3
WAYS = ["class", "pipeline", "right", "left", "openrlhf"]
PROBE = "haf-probe"

# What TRL's templates end turns with; two names by role.
ENDS = ["<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<turn|>", "<end_of_turn>"]
ENDS += ["<|user|>", "<|return|>", "<end_of_utterance>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>"]
SPECIAL = ["<unk>", "<s>", "</s>", *ENDS, "<|spare|>", "<|other|>"]
VOCABULARY = 256 + len(SPECIAL)
CONFIG = """
[model]
path = "model"
dtype = "f32"
[data]
train = [{ path = "train.jsonl" }]
max_length = 2000
template = "TEMPLATE"
[train]
steps = 1
pairs_per_step = 2
learning_rate = 1e-3
[parallel]
threads = 1
[output]
dir = "run"
"""


# --- Conversations ----------------------------------------------------------------------------------------------------


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def answer(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    },
}
CALL = [{"type": "function", "id": "abcdef123", "function": {"name": "add", "arguments": {"a": 1}}}]
RESULT = {"role": "tool", "name": "add", "tool_call_id": "abcdef123", "content": "3"}
SCORED = [
    [user("Hi."), answer("Yes.")],
    [system("Be brief."), user("Hi."), answer("Yes, indeed.")],
    [user("Hi."), answer("Yes."), user("Sure?"), answer("No, I am not sure.")],
    [user("Hi.\n"), answer("  \n Yes.\n\n ")],
    [user("Gr\u00fc\u00dfe \u4f60\u597d"), answer("na\u00efve caf\u00e9 \U0001f642\n")],
    [user("Code?"), answer("```\nx = {'a': \"b\"}  # {{ y }}\n```")],
]
RENDERED = SCORED + [
    [user("Hi.")],
    [user("Hi."), answer("Yes."), user("Sure?")],
    [user("Hi."), answer("")],
    [user("Hi."), answer("Yes.", reasoning_content="Hm.")],
    [user("Hi."), answer("<think>\nHm\n</think>\n\nYes.")],
    [user("1+2?"), answer("", tool_calls=CALL)],
    [user("1+2?"), answer("", tool_calls=CALL), RESULT],
    [user("1+2?"), answer("", tool_calls=CALL), RESULT, answer("3.")],
]


# --- A model and its folders ------------------------------------------------------------------------------------------


def tokenizer() -> dict:
    """One token a byte, in GPT-2's letters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": 256 + i, "content": text} | plain for i, text in enumerate(SPECIAL)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {letter: byte for byte, letter in enumerate(letters)}, "merges": []},
    } | dict.fromkeys(["truncation", "padding", "normalizer", "post_processor"])


def write_model(folder: Path, family: str, template: str | None) -> None:
    case = make_golden.CASES[family]
    torch.manual_seed(case["seed"])
    settings = case["config"] | {"vocab_size": VOCABULARY, "max_position_embeddings": 4096}
    settings |= {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": None}
    model = make_golden.random_model(case["family"], settings)
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    # A head that is there is kept, and gives rewards that are worth a comparison.
    score = torch.randn(1, model.config.hidden_size)
    save_file(load_file(weights) | {"score.weight": score}, weights, metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    write_template(folder, template)


def write_template(folder: Path, template: str | None) -> None:
    settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def run(program: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def trained(program: Path, folder: Path, family: str, kind: str, template: str | None) -> Path:
    """A checkpoint of a run with this template."""
    write_model(folder / "model", family, template)
    rows = [{"prompt": "Hi.", "chosen": f"Yes {number}.", "rejected": "No."} for number in range(2)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.toml").write_text(CONFIG.replace("TEMPLATE", kind))
    run(program, folder, "--config", "run.toml")
    return folder / "run/step-1"


def exported(program: Path, checkpoint: Path, template: str, out: Path) -> Path | None:
    """The checkpoint's weights exported with another template, as that of a version which cut none; None where haf-dist
    cannot render the template."""
    older = out.with_name(out.name + ".older")
    gone = ["trainer", "self-test.json", "additional_chat_templates", "*.jinja"]
    shutil.copytree(checkpoint, older, ignore=shutil.ignore_patterns(*gone))
    settings = json.loads((older / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (older / "tokenizer_config.json").write_text(json.dumps(settings))
    trained_with = json.loads((older / "haf_dist.json").read_text())
    del trained_with["chat_template"]
    (older / "haf_dist.json").write_text(json.dumps(trained_with))
    try:
        run(program, out.parent, "export", str(older), str(out))
    except RuntimeError as error:
        if "chat template" not in str(error):
            raise
        return None
    finally:
        shutil.rmtree(older)
    return out


# --- Rendering --------------------------------------------------------------------------------------------------------


class TrainingDate(datetime.datetime):
    """Stands in for `datetime.datetime`: the clock that haf-dist trains with stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def render_original(*arguments, **more):
    """Renders at the date of the training."""
    clock, chat_template_utils.datetime = chat_template_utils.datetime, TrainingDate
    try:
        return render(*arguments, **more)
    finally:
        chat_template_utils.datetime = clock


def render(template: str, messages: list[dict], tools=None, prompt=False, mask=False, goes_on=False):
    """The text and the spans of the assistant's tokens; None where the template refuses the conversation."""
    try:
        texts, spans = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=mask,
            continue_final_message=goes_on,
            bos_token="<s>",
            eos_token="</s>",
        )
    except Exception:  # a template may refuse in any way it likes
        return None
    return texts[0], [span for span in spans[0] if span[0] < span[1]] if mask else None


def turn_end(template: str) -> tuple[str, str]:
    """The token that ends an answer's turn, and what the template writes after an answer."""
    tail = render_original(template, [user("Hi."), answer(PROBE)])[0].rpartition(PROBE)[2]
    found = [(tail.find(end), end) for end in [*ENDS, "</s>"] if end in tail]
    return (min(found)[1] if found else "</s>"), tail


def as_trained(text: str, end: str, tail: str) -> str:
    """A rendering up to the EOS of its last turn, which is added where the template wrote none."""
    if text.endswith(tail):
        after = tail.partition(end)[2] if end in tail else tail
        text = text[: len(text) - len(after)]
    elif text.rstrip().endswith(end):
        text = text.rstrip()
    return text if text.endswith(end) else text + end


def check_renderings(name: str, original: str, made: str, kept: bool) -> tuple[int, int, list[str]]:
    """How many renderings there are, how many were cut, and what is wrong. `kept`: the export says that it ends elsewhere."""
    end, tail = turn_end(original)
    tagged = "{% generation" in original or "{%- generation" in original
    count, cut, wrong = 0, 0, []
    for messages, tools, prompt, mask in itertools.product(RENDERED, [None, [TOOL]], [False, True], {False, tagged}):
        before = render_original(original, messages, tools, prompt, mask)
        after = render(made, messages, tools, prompt, mask)
        expected = before
        if before and messages[-1]["role"] == "assistant" and not prompt and not kept:
            text = as_trained(before[0], end, tail)
            spans = mask and [(first, min(last, len(text))) for first, last in before[1] if first < len(text)]
            expected = (text, spans if mask else None)
        count, cut = count + 1, cut + (expected != before)
        if after != expected:
            wrong.append(f"{name}: {messages[-1]} tools={bool(tools)} prompt={prompt} mask={mask}: {after} is not {expected}")
    for messages in RENDERED:
        if messages[-1]["role"] == "assistant":
            before, after = render_original(original, messages, goes_on=True), render(made, messages, goes_on=True)
            count += 1
            if before != after:
                wrong.append(f"{name}: continue_final_message of {messages[-1]}: {after} is not {before}")
    return count, cut, wrong


# --- Rewards ----------------------------------------------------------------------------------------------------------


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for what OpenRLHF imports and a reward on one CPU does not use."""

    NAMES = {"deepspeed", "flash_attn", "ring_flash_attn", "ray", "vllm", "pylatexenc", "optree", "loralib", "datasets"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__name__ = spec, [], spec.name
        return module

    def exec_module(self, module):
        pass


def openrlhf_model(wheel: Path, folder: Path):
    """OpenRLHF's reward model, from an export."""
    if "openrlhf" not in sys.modules:
        import peft  # noqa: F401  before the stubs: it looks for some of them

        sys.path.insert(0, str(next(path.parent for path in wheel.rglob("openrlhf") if path.is_dir())))
        sys.meta_path.insert(0, Stubs())
    import openrlhf.utils.utils
    from openrlhf.models.model import get_llm_for_sequence_regression

    # It knows bf16 and fp16 alone.
    openrlhf.utils.utils.convert_to_torch_dtype = lambda _: torch.float32
    return get_llm_for_sequence_regression(str(folder), "reward", attn_implementation="eager").eval()


@torch.no_grad()
def rewards(folder: Path, model, other, conversations: list[list[dict]]) -> dict[str, list[float]]:
    reads = PreTrainedTokenizerFast.from_pretrained(folder)
    apply = reads.apply_chat_template
    texts = [apply(messages, tokenize=False) for messages in conversations]
    tokens = [apply(messages, return_dict=True)["input_ids"] for messages in conversations]
    classify = pipeline("text-classification", model=model, tokenizer=reads)
    found = {
        "class": [model(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in tokens],
        "pipeline": [classify(text, add_special_tokens=False)[0]["score"] for text in texts],
    }
    for side in ("right", "left"):
        batch = reads(text=texts, padding=True, padding_side=side, add_special_tokens=False, return_tensors="pt")
        batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
        found[side] = model(**batch).logits[:, 0].tolist()
        if other is not None and side == "right":
            found["openrlhf"] = other(**batch).tolist()
    return found


def scored(program: Path, folder: Path, conversations: list[list[dict]]) -> list[float]:
    data = folder.with_name("rows.jsonl")
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    arguments = ["--checkpoint", str(folder), "--data", str(data), "--dtype", "f32", "--threads", "1"]
    return [json.loads(line)["reward"] for line in run(program, folder.parent, "score", *arguments).splitlines()]


def verified(program: Path, checkpoint: Path, script: Path) -> list[str]:
    """What the program and its script say of a checkpoint, and do not say of a spoilt one."""
    wrong = []
    spoilt = script.with_name("spoilt")
    shutil.copytree(checkpoint, spoilt, ignore=shutil.ignore_patterns("trainer"))
    config = json.loads((spoilt / "config.json").read_text())
    del config["problem_type"]
    (spoilt / "config.json").write_text(json.dumps(config))
    run(program, script.parent, "verify", str(checkpoint), "--python", str(script))
    for says, command in [("haf-dist", [program, "verify"]), ("script", [sys.executable, script])]:
        for folder, code, word in [(checkpoint, 0, "OK"), (spoilt, 1, "NOT: activation")]:
            done = subprocess.run([*command, folder], capture_output=True, text=True)
            if done.returncode != code or word not in done.stdout:
                wrong.append(f"{says}, verify {folder}: {done.returncode}\n{done.stdout}{done.stderr[-2000:]}")
    shutil.rmtree(spoilt)
    script.unlink()
    return wrong


@torch.no_grad()
def is_rounding(folder: Path, messages: list[dict], ours: float, theirs: float) -> bool:
    """Whether two rewards that differ are as near to float64's as float32 is here."""
    apply = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template
    tokens = torch.tensor([apply(messages, return_dict=True)["input_ids"]])
    options = {"dtype": torch.float64, "attn_implementation": "eager"}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    with make_golden.in_float64(model):
        exact = model(input_ids=tokens).logits[0, 0].item()
    far, others = [abs(reward - exact) / (1 + abs(exact)) for reward in (ours, theirs)]
    return others <= ROUNDING and far <= max(TOLERANCE, FARTHER * others)


def check_family(program: Path, family: str, templates: dict[str, str], wheel: Path | None) -> tuple[dict, list[str]]:
    """The largest difference by way, of 1 + the reward's size, and what is wrong."""
    largest, wrong, count, rounding = dict.fromkeys(WAYS, 0.0), [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        first = next(iter(templates.values()))
        (folder / "chat").mkdir()
        checkpoint = trained(program, folder / "chat", family, "chat", first)
        wrong += verified(program, checkpoint, folder / "verify.py")
        folders = {name: None for name in templates}
        for kind in PLAIN:
            (folder / kind).mkdir()
            folders[kind] = trained(program, folder / kind, family, kind, None)
        model = other = None
        for name in folders:
            plain = folders[name] is not None
            made = folders[name] or exported(program, checkpoint, templates[name], folder / name)
            conversations = SCORED if plain else [it for it in SCORED if render(templates[name], it)]
            # All chat templates are exported with the same weights.
            if plain or model is None:
                model = AutoModelForSequenceClassification.from_pretrained(made, dtype=torch.float32).eval()
                other = openrlhf_model(wheel, made) if wheel else None
            ours = scored(program, made, conversations)
            for way, theirs in rewards(made, model, other, conversations).items():
                for reward, seen, messages in zip(ours, theirs, conversations, strict=True):
                    far = abs(reward - seen) / (1 + abs(reward))
                    largest[way] = max(largest[way], far)
                    if far <= TOLERANCE:
                        continue
                    rounds = is_rounding(made, messages, reward, seen)
                    rounding += rounds
                    why = " (as far as float32 goes here)" if rounds else ""
                    wrong.append(f"{family}, {name}, {way}: {seen} is not {reward}{why} for {messages[-1]}")
            count += len(conversations)
    return {"conversations": count, "rounding": rounding, **largest}, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, help="haf-dist")
    parser.add_argument("--openrlhf", type=Path, help="the unpacked wheel of OpenRLHF; left out without")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--templates", nargs="+", help="names of templates; all without")
    arguments = parser.parse_args()
    program = arguments.program.resolve()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    python_logging.disable(python_logging.INFO)

    templates = OWN | {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))}
    if arguments.templates:
        templates = {name: templates[name] for name in arguments.templates}
    # Templates of pictures take contents in parts alone; rows of texts are not for them.
    shown = {name: render(text, [user("Hi."), answer(PROBE)]) for name, text in templates.items()}
    left_out = [name for name in templates if not shown[name] or PROBE not in shown[name][0]]
    templates = {name: text for name, text in templates.items() if name not in left_out}
    print(f"{len(templates)} chat templates; not for texts: {', '.join(left_out) or 'none'}")

    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        checkpoint = trained(program, folder, "llama-tied", "chat", next(iter(templates.values())))
        total, cut, kinds, refused = 0, 0, {}, []
        for name, original in templates.items():
            made = exported(program, checkpoint, original, folder / f"export-{name}")
            if made is None:
                refused.append(name)
                continue
            kind = json.loads((made / "haf_dist.json").read_text())["chat_template"]
            kinds.setdefault(kind, []).append(name)
            text = PreTrainedTokenizerFast.from_pretrained(made).get_chat_template()
            count, changed, found = check_renderings(name, original, text, kind == "not_as_trained")
            total, cut, wrong = total + count, cut + changed, wrong + found
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
        print(f"{total} renderings, {cut} cut at the EOS, {len(wrong)} wrong; exports: {counts}")
        print(f"exported as they are, though they end elsewhere: {', '.join(kinds.get('not_as_trained', [])) or 'none'}")
        print(f"templates that haf-dist cannot render: {', '.join(refused) or 'none'}", flush=True)
        templates = {name: text for name, text in templates.items() if name not in refused}

    print("| family | templates | conversations | " + " | ".join(WAYS) + " | rounding |")
    print("|---|---|---|" + "---|" * len(WAYS) + "---|")
    for family in arguments.families:
        figures, found = check_family(program, family, templates, arguments.openrlhf)
        wrong += found
        cells = ["-" if way == "openrlhf" and not arguments.openrlhf else f"{figures[way]:.1e}" for way in WAYS]
        counts = f"{len(templates) + len(PLAIN)} | {figures['conversations']}"
        print(f"| `{family}` | {counts} | " + " | ".join(cells) + f" | {figures['rounding']} |", flush=True)
    for what in wrong[:20]:
        print(what)
    print(f"FAILED: {len(wrong)}" if wrong else "all as trained")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
