#!/usr/bin/env python3
"""What token ids does Transformers' apply_chat_template give? tests/all/token_truth.rs compares haf-dist's with them.

    python make_truth.py                        makes the folders beside this script again: small tokenizers of our own
    python make_truth.py --real NAME=DIR[:TEMPLATE]... --out OUT
                                                the same cases for real tokenizers; then
    HAF_TOKEN_TRUTH=OUT cargo test --release --test all token_truth::

DIR holds tokenizer.json and tokenizer_config.json; TEMPLATE lends one of the templates below to a folder without one.
Needs transformers and tokenizers. The day is Llama 3's fallback, 26 July 2024, as haf-dist's is.
"""

import argparse
import datetime
import json
import shutil
import sys
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent


class Day(datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat_template_utils.datetime = Day

# Templates in the manner of the families, written for these tests.
TEMPLATES = {
    # One turn in brackets, the system's text inside the first, spaces around the answer, EOS after it.
    "llama2": """{%- if messages[0].role == 'system' -%}
    {%- set system = '<<SYS>>\\n' + messages[0].content | trim + '\\n<</SYS>>\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('user and assistant take turns') -}}
    {%- endif -%}
    {%- if turn.role == 'user' -%}
        {{- bos_token ~ '[INST] ' ~ (system if loop.first else '') ~ turn['content'].strip() ~ ' [/INST]' -}}
    {%- else -%}
        {{- ' ' ~ turn['content'].strip() ~ ' ' ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}""",
    # The same brackets, no space before the answer, no system turn, contents as they are.
    "mistral": """{{ bos_token }}{% for turn in messages %}
{% if turn['role'] == 'user' %}{{ '[INST] ' + turn['content'] + ' [/INST]' }}{% elif turn['role'] == 'assistant' %}{{ turn['content'] + eos_token }}{% else %}{{ raise_exception('only user and assistant') }}{% endif %}
{% endfor %}""",
    # Headers, trimmed contents, a date in a system turn that is always there.
    "llama3": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + strftime_now("%d %b %Y") + "\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
    # A default system turn, contents as they are.
    "chatml": """{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # An empty thought before the last answer, which the generation prompt does not write; earlier thoughts are cut off.
    "thinking": """{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.last %}
        {%- set content = '<think>\\n\\n</think>\\n\\n' + content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
}

TEXT = """The quick brown fox jumps over the lazy dog, and the dog does not mind. User and assistant take turns: one asks,
the other answers. How many are 12 and 345? They are 357, I think; let us see whether that's right or isn't.
  Two spaces start this line.\tA tab is in it.   Three spaces end it.   \n\n\nÉté, naïve, Straße, żółć, Ελληνικά, русский,
日本語の文章です。中文也有。한국어도 있다. Emoji: 🦀🎉👩‍👩‍👧. Code: fn main() { println!("hi"); } // 0x1F != 31.0e-2
[INST] and [/INST], <<SYS>> and <</SYS>> are brackets; system, user, assistant are roles; Today is a date in Jul 2024.
"""
# Llama 3's and Qwen's way to cut a text into words, which byte-level merges do not cross.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# name -> (tokenizer, template)
OWN = {
    "llama2": ("pieces", "llama2"),
    "mistral": ("pieces", "mistral"),
    "llama3": ("bytes", "llama3"),
    "chatml": ("bytes", "chatml"),
    "thinking": ("composed bytes", "thinking"),
}


def pieces():
    """In the manner of SentencePiece: words start with a bar, unknown characters are bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    # The training alphabet leaves the emoji out, so that they fall back to bytes.
    kept = "".join(character for character in TEXT if ord(character) < 0x1F000)
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(kept.splitlines(keepends=True), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    return Tokenizer.from_str(json.dumps(state)), {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level(composed):
    """In the manner of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    if composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names += ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


def cases(tokenizer):
    """Conversations and two answers each."""

    def talk(*texts, system=None):
        turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
        return ([{"role": "system", "content": system}] if system is not None else []) + turns

    by_id = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    special = sorted({*tokenizer.all_special_tokens, *by_id[:8]})
    inside = "a" + "b ".join(special) + "c"
    several = talk("One?", "First.", "Two?", "Second, 12 and 345.", "Three?")
    return [
        ("one turn", talk("How many are 12 and 345?"), ["They are 357.", "I don't know."]),
        ("system turn", talk("Who are you?", system="You are brief. "), ["A fox.", "A dog."]),
        ("empty system turn", talk("Who?", system=""), ["A fox.", "A dog."]),
        ("several turns", several, ["Third.", "No third."]),
        ("several turns and a system", [{"role": "system", "content": "s"}] + several, ["Third.", "No third."]),
        ("unicode", talk("Été naïve żółć 日本語 한국어 🦀👩‍👩‍👧 e\u0301 \u202eabc"), ["Ελληνικά 🎉", "русский\u00a0中文"]),
        ("white space", talk("  two \t tabs\n\n\nlines  "), ["\n\nstarts and ends\n", "  spaces  "]),
        ("answers that may join the prompt's end", talk("q"), ["\nline", " space"]),
        ("digits and signs", talk("1234567 != 0x1F, isn't it?"), ["31.0e-2", "...?!"]),
        ("empty turns", talk("", "", ""), ["", "x"]),
        ("empty answer", talk("q"), ["", "y"]),
        ("special tokens in the user's text", talk(inside), ["plain", inside]),
        ("words of the template in the text", talk("[INST] x [/INST] <<SYS>>", "assistant", "user\n"), ["[/INST]", "</s>x"]),
        ("a thought", talk("q", "<think>\nhm\n</think>\n\nr", "s"), ["<think>\nx\n</think>\n\nt", "u"]),
        ("two of the user's in a row", talk("q") + talk("r"), ["a", "b"]),
    ]


def truth(tokenizer):
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)

    def ids(messages, **options):
        try:
            return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        except TemplateError as error:  # The template's own refusal.
            print(f"  refused: {error}", file=sys.stderr)
            return None

    rows = []
    for name, prompt, answers in cases(tokenizer):
        sequences = []
        for answer in answers:
            sequence = ids([*prompt, {"role": "assistant", "content": answer}])
            # The reward is read at the special token that ends the turn; a line break may follow it.
            while sequence and sequence[-1] not in special:
                sequence = sequence[:-1]
            sequences.append(sequence)
        start = ids(prompt, add_generation_prompt=True)
        rows.append({"name": name, "prompt": prompt, "answers": answers, "prompt_ids": start, "ids": sequences})
    return rows


def write(folder):
    rows = truth(AutoTokenizer.from_pretrained(folder))
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    (folder / "truth.json").write_text(f"[\n{lines}\n]\n")
    print(f"{folder}: {len(rows)} cases")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="append", default=[], metavar="NAME=DIR[:TEMPLATE]")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not arguments.real:
        makers = {"pieces": pieces, "bytes": lambda: byte_level(False), "composed bytes": lambda: byte_level(True)}
        for name, (kind, template) in OWN.items():
            folder = HERE / name
            folder.mkdir(exist_ok=True)
            tokenizer, special = makers[kind]()
            state = json.loads(tokenizer.to_str())
            (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")) + "\n")
            config = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
            (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
            (folder / "chat_template.jinja").write_text(TEMPLATES[template])
            write(folder)
    for given in arguments.real:
        name, _, rest = given.partition("=")
        source, _, template = rest.partition(":")
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            if (Path(source) / file).exists():
                shutil.copyfile(Path(source) / file, folder / file)
        if template:
            (folder / "chat_template.jinja").write_text(TEMPLATES[template])
        write(folder)


if __name__ == "__main__":
    main()
