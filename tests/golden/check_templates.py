#!/usr/bin/env python3
"""Does the chat template of an export end at the EOS, and write everything else as before, in Transformers?

    python check_templates.py HAF_DIST FOLDER_OR_TEMPLATE.jinja ...

For each template (TRL ships some seventy in trl/chat_templates) makes a folder with a small tokenizer, exports it with
`haf-dist export`, and renders both templates in Transformers' own environment over a grid of conversations, with and without a
generation prompt, with tools, with `continue_final_message`, and with masks of the assistant's tokens where the template marks
them. Exit code 0: every rendering without a final assistant's turn is the same, every other one ends at the EOS and is the same up
to there.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers.utils.chat_template_utils as templates
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = """<|endoftext|> <s> </s> <|im_start|> <|im_end|> <end_of_turn> <start_of_turn> <|eot_id|> <|end|> <|eot|> <|return|>
<turn|> <｜end▁of▁sentence｜> <|END_OF_TURN_TOKEN|> <|END_RESPONSE|> <|user|> <|assistant|> <|end_of_text|> <|eom_id|>
<end_of_utterance> <|END_OF_TURN|> <|im_sep|> [EOS] <|end_of_turn|> <|eom|> <end_of_message> <|endofturn|> <|eos|> [|endofturn|]
<eos> <bos> <|begin_of_text|> <|end_of_role|> <|message|> <seed:eos> <|END_TEXT|> <|role_end|>""".split()
USER = {"role": "user", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}]


def said(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


PROMPTS = [
    [USER],
    [SYSTEM, USER],
    [USER, said("One.\n"), {"role": "user", "content": " And?\n\n"}],
    [USER, said(""), {"role": "user", "content": "é漢🦀"}],
]
ANSWERS = [said("Two."), said(" \n spaces \n\n"), said(""), said("<think>\nhm\n</think>\n\nThree.")]


def grid():
    for prompt in PROMPTS:
        yield prompt, {}
        yield prompt, {"tools": TOOLS}
        for answer in ANSWERS:
            yield [*prompt, answer], {}
    yield [USER, said("x", reasoning_content="because")], {}


def folder_of(place: Path, template: str) -> PreTrainedTokenizerFast:
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<s>", pad_token="<|eot|>")
    fast.chat_template = template
    fast.save_pretrained(place)
    settings = dict(template="chat", max_length=64, max_prompt_length=32, truncation="cut", reward_at="eos", dtype="f32")
    (place / "haf_dist.json").write_text(json.dumps(settings))
    (place / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return fast


def rendered(template: str, messages: list, generation: bool, more: dict) -> str | None:
    compiled = templates._compile_jinja_template(template)
    special = dict(eos_token="<|endoftext|>", bos_token="<s>", pad_token="<|eot|>")
    try:
        return compiled.render(
            **{"messages": messages, "tools": None, "documents": None, "add_generation_prompt": generation, **special, **more}
        )
    except Exception:  # noqa: BLE001 - a template refuses in its own way
        return None


def masks(tokenizer, messages: list):
    out = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = out["input_ids"], out["assistant_masks"]
    return [token for token, marked in zip(ids, mask, strict=True) if marked]


def check(program: Path, path: Path, place: Path) -> tuple[str, int]:
    """A verdict, and how many renderings were compared."""
    original = path.read_text(encoding="utf-8")
    tokenizer = folder_of(place / "model", original)
    done = subprocess.run([program, "export", place / "model", place / "out"], capture_output=True, text=True)
    if done.returncode != 0:
        return "refused: " + done.stderr.strip().splitlines()[0][:150], 0
    exported = (place / "out" / "chat_template.jinja").read_text(encoding="utf-8")
    if exported == original:
        kept = [m for m, more in grid() if m[-1]["role"] == "assistant" and not more]
        ends = {text[-12:] for text in (rendered(original, m, False, {}) for m in kept) if text}
        warned = "assistant's tokens" in done.stderr
        return ("NOT CUT, and said so" if warned else f"untouched: ends with {sorted(ends)[:2]}"), 0
    compared = 0
    for messages, more in grid():
        for generation in (False, True):
            before, after = (rendered(text, messages, generation, more) for text in (original, exported))
            compared += 1
            if before is None or after is None:
                if before != after:
                    return f"one refuses, the other does not: {messages}", compared
                continue
            final = messages[-1]["role"] == "assistant" and not generation
            if final and before != after:
                tail = before[len(after):]
                for special in SPECIAL:
                    tail = tail.replace(special, "")
                if not before.startswith(after) or tail.strip() or not after.endswith(tuple(SPECIAL)):
                    if not (after.startswith(before.rstrip()) and after.endswith("<|endoftext|>")):
                        return f"cut wrongly: {before[-40:]!r} -> {after[-40:]!r}", compared
            elif before != after:
                return f"changed: {before[-60:]!r} -> {after[-60:]!r}", compared
    # What Transformers does with a whole tokenizer.
    other = PreTrainedTokenizerFast.from_pretrained(place / "out")
    assert other.chat_template == exported
    unfinished = [USER, said("I think")]
    pair = []
    for which in (tokenizer, other):
        try:
            pair.append(which.apply_chat_template(unfinished, tokenize=False, continue_final_message=True))
        except Exception as error:  # noqa: BLE001
            pair.append(type(error).__name__)
    if pair[0] != pair[1]:
        return f"continue_final_message: {pair}", compared
    if "generation %}" in original or "generation -%}" in original:
        conversation = [USER, said("One."), USER, said("Two.")]
        try:
            one, two = masks(tokenizer, conversation), masks(other, conversation)
        except Exception:  # noqa: BLE001
            one = two = []
        if one[: len(two)] != two or len(one) - len(two) > 1:
            return "masks of the assistant's tokens differ", compared
    return "ends at the EOS", compared


def main() -> int:
    program, *places = sys.argv[1:]
    paths = [p for place in map(Path, places) for p in (sorted(place.glob("*.jinja")) if place.is_dir() else [place])]
    verdicts: dict[str, list[str]] = {}
    total = 0
    for path in paths:
        with tempfile.TemporaryDirectory() as name:
            verdict, compared = check(Path(program).resolve(), path, Path(name))
        total += compared
        verdicts.setdefault(verdict.split(":")[0], []).append(path.stem)
        print(f"{path.stem:<45} {verdict}")
    print({verdict: len(names) for verdict, names in verdicts.items()}, f"{total} renderings compared")
    bad = [v for v in verdicts if v not in ("ends at the EOS", "untouched", "NOT CUT, and said so", "refused")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
