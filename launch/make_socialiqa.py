#!/usr/bin/env python3
"""Turns SocialIQA's multiple-choice questions into pairs of a right and a wrong answer: train, dev and test.

Only for the file in the Python package evals 3.0.1.post1. The pairs are what they are: right against wrong answers
that people wrote, not preferences between two answers of a model.

Usage: make_socialiqa.py FILE.jsonl FOLDER
FOLDER must not exist. Needs nothing but Python's standard library.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

QUESTION = re.compile(r"^(?P<prompt>.*?)\s*A: (?P<A>.*?); B: (?P<B>.*?); C: (?P<C>.*?)\.?$", re.DOTALL)
TEST_QUESTIONS = 500
DEV_QUESTIONS = 150
SEED = "haf-dist quickstart 1"

NOTICE = """# SocialIQA pairs

Made from SocialIQA (Sap et al., 2019, "Social IQa: Commonsense Reasoning about Social Interactions", Allen Institute
for AI), license CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/), as shipped in the Python package
evals 3.0.1.post1 (theory_of_mind/socialiqa/test.jsonl).

Changed: each question with three answers became one row for each (right, wrong) pair, without the list of options;
rows were split by question into {counts}.
The chosen answer is the right one of a multiple-choice question: no human compared the two answers.
"""


def refuse(message: str) -> None:
    """Ends the program with one line on stderr."""
    sys.exit(f"make_socialiqa.py: {message}")


def read_pairs(source: Path) -> dict[str, list[dict]]:
    """Question -> its pairs. Questions that differ only in case or spacing are one question."""
    questions: dict[str, list[dict]] = {}
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        match = QUESTION.match(row["input"][0]["content"])
        if match is None or row["ideal"] not in "ABC":
            refuse(f"{source}, line {number}: expected `question A: ...; B: ...; C: ...` and an ideal of A, B or C")
        prompt, right = match["prompt"], match[row["ideal"]].strip()
        pairs = questions.setdefault(" ".join(prompt.lower().split()), [])
        for wrong in (match[letter].strip() for letter in "ABC" if letter != row["ideal"]):
            pair = {"prompt": prompt, "chosen": right, "rejected": wrong, "domain": "socialiqa"}
            # A wrong answer that reads like the right one tells nothing.
            if wrong.lower() != right.lower() and pair not in pairs:
                pairs.append(pair)
    return {question: pairs for question, pairs in questions.items() if pairs}


def split(questions: dict[str, list[dict]]) -> dict[str, list[list[dict]]]:
    """Splits by the hash of the question's text: the same on every machine, whatever the order of the file."""
    order = sorted(questions, key=lambda question: hashlib.sha256(f"{SEED}\n{question}".encode()).digest())
    if len(order) < 2 * (TEST_QUESTIONS + DEV_QUESTIONS):
        refuse(f"only {len(order)} questions: is it the whole file?")
    held_out = TEST_QUESTIONS + DEV_QUESTIONS
    names = {"test": order[:TEST_QUESTIONS], "dev": order[TEST_QUESTIONS:held_out], "train": order[held_out:]}
    return {name: [questions[question] for question in chosen] for name, chosen in names.items()}


def main() -> None:
    """Reads the arguments and writes the folder."""
    if len(sys.argv) != 3:
        refuse("usage: make_socialiqa.py FILE.jsonl FOLDER")
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    if folder.exists():
        refuse(f"{folder} exists already")
    if not source.is_file():
        refuse(f"{source} is not a file")
    splits = split(read_pairs(source))

    folder.mkdir(parents=True)
    counts = []
    for name in ("train", "dev", "test"):
        rows = [pair for pairs in splits[name] for pair in pairs]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        counts.append(f"{name} ({len(splits[name])} questions, {len(rows)} pairs)")
    (folder / "README.md").write_text(NOTICE.format(counts=", ".join(counts)), encoding="utf-8")
    print("; ".join(counts))


if __name__ == "__main__":
    main()
