"""Writes rewardbench.json: synthetic rows and scores, and what rewardbench 0.1.4 makes of them.

Run as `python make_rewardbench.py`, see authors.py.
"""

import pathlib
import random

import authors

COUNTS, SECTIONS = authors.constants()
(sections,) = authors.functions("calculate_scores_per_section")


def row(index, subset):
    prompt = f"Question {index % 7} of {subset}?"
    return {"id": index, "prompt": prompt, "subset": subset, "chosen": "yes " * (index % 5 + 1), "rejected": "no " * (index % 4 + 1)}


def case(name, rows, scores):
    by_subset = {}
    for one, (chosen, rejected) in zip(rows, scores):
        # rewardbench.py: 1 if chosen > rejected, else 0.
        by_subset.setdefault(one["subset"], []).append(1 if chosen > rejected else 0)
    metrics = {subset: sum(hits) / len(hits) for subset, hits in by_subset.items()}
    by_section = sections(COUNTS, SECTIONS, metrics)
    expected = dict(metrics)
    # A section without subsets is 0 there; here it is not printed.
    present = {section for section, subsets in SECTIONS.items() if any(subset in metrics for subset in subsets)}
    expected.update({section: score for section, score in by_section.items() if section in present})
    if len(present) == len(SECTIONS):
        expected["all"] = sum(by_section.values()) / len(by_section)
    return {"name": name, "rows": rows, "scores": scores, "expected": expected}


def main():
    draw = random.Random(0)
    score = lambda: draw.choice([draw.gauss(0, 1), draw.gauss(0, 1), 0.5, 0.5, float("nan")])
    subsets = [subset for group in SECTIONS.values() for subset in group]
    every = [row(index, subset) for index, subset in enumerate(subset for subset in subsets for _ in range(9))]
    one = [row(index, "donotanswer") for index in range(11)]
    part = [row(index, subset) for index, subset in enumerate(["math-prm", "hep-cpp", "hep-cpp", "mt-bench-easy"])]
    named = [("every subset, with ties and NaN", every), ("one subset", one), ("a part of two sections", part)]
    cases = [case(name, rows, [[score(), score()] for _ in rows]) for name, rows in named]
    pathlib.Path(__file__).with_name("rewardbench.json").write_text(authors.dump(cases))


main()
