"""Writes rewardbench2.json: synthetic rows and scores, and what rewardbench 0.1.4 makes of them.

Run as `python make_rewardbench2.py`, see authors.py. What is done with the functions' results is scripts/run_v2.py.
"""

import pathlib
import random

from datasets import Dataset

import authors

reroll, _, process = authors.functions("reroll_and_score_dataset", "sample_stats", "process_single_model")
SUBSETS = ["Factuality", "Focus", "Math", "Precise IF", "Safety"]


def row(identifier, subset, right, wrong):
    prompt = f"Question {identifier} of {subset}?"
    chosen = [f"right {'a' * index}" for index in range(right)]
    rejected = [f"wrong {'b' * index}" for index in range(wrong)]
    return {
        "id": identifier, "prompt": prompt, "chosen": chosen, "rejected": rejected, "num_correct": right,
        "num_incorrect": wrong, "total_completions": right + wrong, "subset": subset,
    }


def case(name, rows, scores):
    flat = [
        {"text": text, "id": one["id"], "subset": one["subset"], "row": index, "scores": value}
        for index, (one, values) in enumerate(zip(rows, scores))
        for text, value in zip(one["chosen"] + one["rejected"], values)
    ]
    rerolled = reroll(Dataset.from_list(flat), [one["total_completions"] for one in rows], cols_to_combine=["text", "scores"])
    rerolled = rerolled.add_column("num_correct", [one["num_correct"] for one in rows])
    expected = {}
    for subset in sorted({one["subset"] for one in rows}):
        of_subset = rerolled.filter(lambda one: one["subset"] == subset)
        if subset.lower() == "ties":
            # Rows are read again from our own scores: a data set has null for NaN.
            samples = [
                {"id": one["id"], "scores": values, "num_correct": one["num_correct"]}
                for one, values in zip(rows, scores) if one["subset"] == subset
            ]
            expected[subset] = process(samples)[1]
        else:
            expected[subset] = sum(of_subset["results"]) / len(of_subset["results"])
    if len(expected) == 6:
        expected["all"] = sum(expected.values()) / 6
    return {"name": name, "rows": rows, "scores": scores, "expected": expected}


def main():
    draw = random.Random(0)
    value = lambda: draw.choice([draw.gauss(0, 1), draw.gauss(0, 1), 0.5, 0.5])
    odd = lambda: draw.choice([value(), value(), value(), float("nan")])
    scored = lambda rows, of: [[of() for _ in range(one["total_completions"])] for one in rows]
    best = [row(f"{subset}-{index}", subset, 1, 3) for subset in SUBSETS for index in range(8)]
    ties = [row(f"ref:{k}", "Ties", 1, 4) for k in range(8)] + [row(f"tied:{k}", "Ties", 2 + k % 4, 5) for k in range(8)]
    # Right answers mostly on top, so that every term counts.
    good = [[draw.gauss(4, 0.4) if i < one["num_correct"] else draw.gauss(0, 2) for i in range(one["total_completions"])] for one in ties]
    halves = [row("ref:1", "Ties", 1, 2), row("tied:2", "Ties", 3, 2), row("tied:3", "Ties", 2, 2)]
    one_right = [row("ref:1", "Ties", 1, 2), row("tied:1", "Ties", 1, 2)]
    flat = [row("ref:1", "Ties", 1, 2), row("tied:1", "Ties", 3, 2)]
    cases = [
        case("all six", best + ties, scored(best, value) + good),
        case("best of four with NaN", best[:16], scored(best[:16], odd)),
        case("only ties, scores at random", ties, scored(ties, value)),
        case("ties with NaN", ties, scored(ties, odd)),
        case("rows without their other half", halves, [[3.0, 1.0, 2.0], [3.0, 3.5, 2.5, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]),
        case("nothing to tie", one_right, [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]),
        case("no spread", flat, [[3.0, 1.0, 2.0], [2.0, 2.0, 2.0, 1.0, 2.0]]),
    ]
    pathlib.Path(__file__).with_name("rewardbench2.json").write_text(authors.dump(cases))


main()
