#!/usr/bin/env python3
"""What Transformers renders of the chat templates and conversations in this folder: writes truth.json.

    python make_truth.py            (Transformers 5.24 and Jinja 3.1.6; see README.md)
    python make_truth.py --others FOLDER    the same over a folder of other templates, into a truth.json there; then
    HAF_TEMPLATES=FOLDER cargo test --release --test all templates::

Every template of chat/ meets every conversation of conversations.jsonl through `apply_chat_template`: with a
generation prompt where the conversation ends before an answer, without one where it ends with it. An outcome is the
XXH3 hash of the text, or "raises". Each line of expressions.txt is a template of its own, kept as text. The clock stands
where haf-dist's does. Not here: tokens; those are token_truth's.
"""

import datetime
import json
import sys
from pathlib import Path

import jinja2
import transformers
import xxhash
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
# Kept as text too, so that a difference can be read.
SHOWN = {"tool-answer", "whitespace"}
SHOWN_TEMPLATES = {"thinking.jinja", "headers.jinja", "declared-types.jinja", "numbered-results.jinja"}


class Still(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def render(template: str, conversation: dict) -> str | None:
    """The text; None where Transformers raises."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({}, unk_token="<unk>")), **SPECIAL)
    messages = conversation["messages"]
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tools=conversation.get("tools"),
            documents=conversation.get("documents"),
            add_generation_prompt=messages[-1]["role"] != "assistant",
            tokenize=False,
            **conversation.get("arguments", {}),
        )
    # Jinja's errors, and Python's that a template runs into (None + "a", a missing key).
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError):
        return None


def outcomes(files: list[Path], conversations: list[dict]) -> dict:
    templates = {}
    for file in files:
        name = file.name
        texts = [render(file.read_text(encoding="utf-8"), conversation) for conversation in conversations]
        templates[name] = [
            "raises" if text is None
            else text if name in SHOWN_TEMPLATES and conversation["name"] in SHOWN
            else xxhash.xxh3_64_hexdigest(text.encode())
            for text, conversation in zip(texts, conversations)
        ]
    return templates


def expressions() -> dict:
    lines = (HERE / "expressions.txt").read_text(encoding="utf-8").split("\n")
    shown = {}
    for line in lines:
        if line and not line.startswith("#"):
            shown[line] = render(line.replace("␤", "\n"), {"messages": [{"role": "user", "content": "a-bc"}]})
    return shown


def main():
    chat_template_utils.datetime = Still
    conversations = [json.loads(line) for line in open(HERE / "conversations.jsonl", encoding="utf-8")]
    if sys.argv[1:2] == ["--others"]:
        files, out = sorted(Path(sys.argv[2]).glob("*.jinja")), Path(sys.argv[2], "truth.json")
        truth = {"templates": outcomes(files, conversations)}
    else:
        files, out = sorted(HERE.glob("chat/*.jinja")), HERE / "truth.json"
        truth = {
            "transformers": transformers.__version__,
            "jinja2": jinja2.__version__,
            "expressions": expressions(),
            "templates": outcomes(files, conversations),
        }
    out.write_text(json.dumps(truth, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    raised = sum(o == "raises" for t in truth["templates"].values() for o in t)
    print(f"{len(files)} templates, {len(files) * len(conversations)} renderings, {raised} raise")


if __name__ == "__main__":
    main()
