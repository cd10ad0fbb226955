#!/usr/bin/env python3
"""Runs the commands of README.md and docs/: every line that starts with `$ ` in a fenced block of the kind `console`.

    python3 launch/test_docs.py [--list] [--bin FOLDER] [PAGE...]

Each page has a scratch folder of its own, with what a reader has by then: configs/ and launch/, a config my.toml (the one that
README shows), pairs under data/, and models under models/ and .deps/. The models are a few narrow blocks of tests/golden/ with
a tokenizer of letters, the pairs are made here: what is tested is that commands are spelled as the program takes them and end
as the page says, not what a real model learns. No command asks the network.

A comment before a block says what is different about it:

    <!-- not run: REASON -->           the block stays unrun, and the table says why
    <!-- run with: KEY=VALUE ... -->   added to each command of the block, as --set KEY=VALUE; a word with -- as it is
    <!-- first: COMMAND -->            run before the block, unseen by readers
    <!-- exit: N -->                   its last command ends with this code in place of 0
    <!-- expect: TEXT -->              its output, both streams together, has this text
    <!-- file: NAME -->                not commands: the block is the content of this file
    <!-- needs: runs/my-run -->        once for a page: a finished run of my.toml is there; `runs/lora` is one with adapters

What a block shows of an error is held to the program: each of its lines that begins with `error:`, `hint:` or `WARN` must be printed.
The scratch folder's name stands there as /home/me/project. Ends with 1 where something differs. Standard library only.

Not here: links and paths of the pages (tests/all/docs.rs).
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOME = "/home/me/project"
LIMIT = 180  # seconds a command
LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!"
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|spare|>", "<|other|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DIRECTIVES = ("not run", "run with", "first", "exit", "expect", "file", "needs")


class Block:
    """A fenced block: its kind, its lines, the comments before it, and the line where it begins."""

    def __init__(self, kind, lines, notes, line):
        self.kind, self.lines, self.notes, self.line = kind, lines, notes, line

    def commands(self):
        """The commands, lines that end with a backslash joined with what follows."""
        commands, open_ = [], False
        for line in self.lines:
            if open_:
                commands[-1] += "\n" + line.removeprefix("> ")
            elif line.startswith("$ "):
                commands.append(line[2:])
            open_ = (open_ or line.startswith("$ ")) and line.endswith("\\")
        return commands

    def promised(self):
        """The lines of errors, hints and warnings that the block shows."""
        return [line.strip() for line in self.lines if line.strip().startswith(("error:", "hint:", "WARN "))]


def blocks(path):
    """The fenced blocks of a page, and the page's own comments."""
    found, notes, lines, kind, start = [], {}, None, "", 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.fullmatch(r"```(\w*)", line.strip())
        if lines is not None and fence:
            if kind != "console" and any(text.startswith("$ ") for text in lines):
                raise SystemExit(f"error: {path}:{start}: commands belong into a block of the kind `console`")
            found.append(Block(kind, lines, notes, start))
            lines, notes = None, {}
        elif lines is not None:
            lines.append(line)
        elif fence:
            lines, kind, start = [], fence[1], number
        elif note := re.fullmatch(r"<!-- ([a-z ]+): (.+) -->", line.strip()):
            if note[1] not in DIRECTIVES:
                raise SystemExit(f"error: {path}:{number}: unknown comment `{note[1]}`; expected one of {DIRECTIVES}")
            notes[note[1]] = note[2]
            if note[1] == "needs":
                found.append(Block("needs", [notes.pop("needs")], {}, number))
        elif line.strip():
            # A comment belongs to the block right after it.
            notes = {}
    return found


def rows(first, count, layout):
    """Pairs of several lengths, none twice."""
    words = ["yes", "no", "a cat", "the dog", "42", "maybe so", "I do not know"]
    for number in range(first, first + count):
        chosen, rejected = words[number % 7] + f" {number}", words[(number * 3 + 1) % 7] + "."
        yield layout(f"What is {'x' * (number % 9)}{number}?", chosen, rejected)


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def safer(prompt, chosen, rejected):
    return {
        "prompt": prompt, "response_0": rejected, "response_1": chosen, "better_response_id": 1,
        "safer_response_id": 1, "is_response_0_safe": False, "is_response_1_safe": True,
    }


def best_of(prompt, chosen, rejected):
    return {"prompt": prompt, "responses": [chosen, rejected, "no idea"], "scores": [1, 0, 0]}


def answer(prompt, chosen, _):
    return {"prompt": prompt, "answer": chosen}


def write_rows(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def write_model(folder):
    """The smallest model of the golden files, made to take 2,048 tokens, with a tokenizer of one token a letter."""
    golden = ROOT / "tests/golden/llama-tied"
    folder.mkdir(parents=True)
    config = json.loads((golden / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 2048
    vocabulary = {text: number for number, text in enumerate([*SPECIAL, *LETTERS])}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    added = [{"id": number, "content": text, "special": True, **flags} for number, text in enumerate(SPECIAL)]
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": added, "pre_tokenizer": split, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    for name, value in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", names)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    shutil.copy(golden / "model.safetensors", folder)


def write_world(folder):
    """What a reader of any page has: configs, scripts, models, pairs, and README's my.toml."""
    for name in ("configs", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    write_model(folder / "models/my-chat-model")
    write_model(folder / ".deps/SmolLM2-135M-Instruct")
    for place, layout in (("data", pair), (".deps/socialiqa", pair), ("data/safety", safer)):
        for name, first, count in (("train", 0, 64), ("dev", 100, 20), ("test", 200, 24)):
            write_rows(folder / place / f"{name}.jsonl", rows(first, count, layout))
    write_rows(folder / "data/best-of.jsonl", rows(300, 6, best_of))
    write_rows(folder / "data/answers.jsonl", rows(300, 6, answer))
    for block in blocks(ROOT / "README.md"):
        if block.notes.get("file") == "my.toml":
            (folder / "my.toml").write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            return
    raise SystemExit("error: README.md shows no my.toml (a block after `<!-- file: my.toml -->`)")


def environment(folder, programs):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HAF_", "RUST_LOG"))}
    return {
        **kept,
        "PATH": f"{programs}:{kept.get('PATH', '')}",
        "XDG_CACHE_HOME": str(folder / ".cache/home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(folder / ".cache/hub"),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "120",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def run(command, folder, programs):
    """Exit code and output of a command; 124 where it does not end in time."""
    arguments = ["bash", "-c", "set -o pipefail\n" + command]
    job = subprocess.Popen(
        arguments, cwd=folder, env=environment(folder, programs), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )
    try:
        output, _ = job.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, 9)
        return 124, job.communicate()[0]
    return job.returncode, output.replace(str(folder), HOME)


def with_additions(command, words):
    for word in words.split():
        command += f" {word}" if word.startswith("--") else f" --set '{word}'"
    return command


def finish_runs(base, programs, wanted):
    """The runs that pages start from, trained once."""
    commands = {
        "runs/my-run": "haf-dist train my.toml",
        "runs/lora": "haf-dist train my.toml lora.rank=2 'lora.targets=[\"gate_proj\"]' output.dir=runs/lora",
    }
    for name in sorted(wanted):
        if name not in commands:
            raise SystemExit(f"error: no run {name} is made here; expected one of {sorted(commands)}")
        code, output = run(commands[name], base, programs)
        if code != 0:
            raise SystemExit(f"error: {commands[name]} ended with {code}:\n{output}")


def check_block(block, folder, programs):
    """What is wrong with a block's commands: nothing, or one text."""
    shown, words = "", block.notes.get("run with", "")
    commands = [with_additions(command, words) for command in block.commands()]
    if "first" in block.notes:
        commands.insert(0, block.notes["first"])
    for number, command in enumerate(commands, 1):
        code, output = run(command, folder, programs)
        shown += output
        expected = int(block.notes.get("exit", 0)) if number == len(commands) else 0
        if code != expected:
            return f"`{command}` ended with {code}, not {expected}:\n{output}"
    # Whatever width the program writes to, words are the same.
    flat = " ".join(shown.split())
    promises = block.promised() + ([block.notes["expect"]] if "expect" in block.notes else [])
    missing = [text for text in promises if " ".join(text.split()) not in flat]
    return f"nothing of this was printed: {missing}; but:\n{shown}" if missing else None


def check_page(page, base, programs):
    """(commands run, reasons of those that are not, failures)."""
    done, unrun, failures = 0, [], []
    with tempfile.TemporaryDirectory() as scratch:
        # A name without links: the program prints paths in full.
        folder = pathlib.Path(scratch).resolve() / "project"
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("runs"))
        for block in blocks(page):
            if block.kind == "needs":
                for name in block.lines[0].split():
                    shutil.copytree(base / name, folder / name)
            elif "file" in block.notes:
                (folder / block.notes["file"]).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            elif block.kind != "console":
                continue
            elif "not run" in block.notes:
                unrun += [block.notes["not run"]] * len(block.commands())
            else:
                done += len(block.commands())
                problem = check_block(block, folder, programs)
                if problem:
                    failures.append(f"{page.relative_to(ROOT)}:{block.line}: {problem}")
    return done, unrun, failures


class Controls(unittest.TestCase):
    """What must be noticed. Needs no program."""

    def page(self, text):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name).resolve() / "page.md"
        path.write_text(text, encoding="utf-8")
        return path

    def problem(self, text):
        page = self.page(text)
        return check_block(blocks(page)[0], page.parent, page.parent)

    def test_what_differs_is_noticed(self):
        self.assertIsNone(self.problem("```console\n$ true\n```\n"))
        self.assertIn("ended with 1, not 0", self.problem("```console\n$ true\n$ false\n```\n"))
        self.assertIn("ended with 0, not 2", self.problem("<!-- exit: 2 -->\n```console\n$ true\n```\n"))
        self.assertIsNone(self.problem("```console\n$ echo 'error: a  b'\nerror: a b\n```\n"))
        self.assertIn("nothing of this", self.problem("```console\n$ echo 'error: a'\nerror: b\n```\n"))
        self.assertIn("nothing of this", self.problem("<!-- expect: yes -->\n```console\n$ echo no\n```\n"))

    def test_what_cannot_be_understood_is_refused(self):
        for text in ("<!-- not runn: why -->\n```console\n$ true\n```\n", "```sh\n$ true\n```\n"):
            with self.assertRaises(SystemExit):
                blocks(self.page(text))

    def test_commands_are_joined_and_comments_belong_to_the_next_block(self):
        first, second = blocks(self.page("<!-- not run: why -->\n```console\n$ a \\\n    b\nout\n```\n\ntext\n```text\nx\n```\n"))
        self.assertEqual((first.commands(), first.notes), (["a \\\n    b"], {"not run": "why"}))
        self.assertEqual((second.kind, second.notes), ("text", {}))


def main():
    parser = argparse.ArgumentParser(description="Runs the commands of README.md and docs/.")
    parser.add_argument("--list", action="store_true", help="print the commands, and run none")
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path(target) / "release", help="folder of haf-dist")
    parser.add_argument("pages", nargs="*", type=pathlib.Path, help="pages [default: README.md and all of docs/]")
    options = parser.parse_args()
    pages = [page.resolve() for page in options.pages] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if options.list:
        for page in pages:
            for block in (block for block in blocks(page) if block.kind == "console"):
                for command in block.commands():
                    reason = block.notes.get("not run")
                    print(f"{page.relative_to(ROOT)}:{block.line}: {command}" + (f"   (not run: {reason})" if reason else ""))
        return 0
    programs = options.bin.resolve()
    if not (programs / "haf-dist").is_file():
        raise SystemExit(f"error: there is no haf-dist in {programs}\n  hint: cargo build --release, or name its folder with --bin")
    started, failures, table = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        base = pathlib.Path(scratch).resolve()
        write_world(base)
        wanted = {name for page in pages for block in blocks(page) if block.kind == "needs" for name in block.lines[0].split()}
        finish_runs(base, programs, wanted)
        for page in pages:
            done, unrun, wrong = check_page(page, base, programs)
            failures += wrong
            table.append((str(page.relative_to(ROOT)), done, unrun))
    print("| page | commands run | not run |\n| --- | ---: | --- |")
    for name, done, unrun in table:
        reasons = "; ".join(f"{unrun.count(reason)}: {reason}" for reason in dict.fromkeys(unrun))
        print(f"| {name} | {done} | {reasons} |")
    print(f"{sum(done for _, done, _ in table)} commands in {time.monotonic() - started:.0f} s, {len(failures)} wrong")
    for failure in failures:
        print("\n" + failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
