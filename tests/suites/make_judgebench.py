"""Writes judgebench.json: synthetic rows and scores, and what JudgeBench's formula makes of them.

The formula is written anew after `SkyworkReward.get_judgment` of utils/judges.py and `compute_final_metrics` of
utils/metrics.py (ScalerLab/JudgeBench at 12a499c). Standard library only. Scores stand for the right answer, then the wrong.
"""

import json
import math
import pathlib
import random

SOURCES = {"mmlu-pro-law": "Knowledge", "livebench-reasoning": "Reasoning", "livebench-math": "Math", "livecodebench": "Coding"}


def row(index, source):
    label = "A>B" if index % 3 else "B>A"
    return {
        "pair_id": str(index), "original_id": str(index % 6), "source": source, "question": f"Question {index % 6}?",
        "response_model": "model", "response_A": "a" * (index % 4 + 1), "response_B": "b" * (index % 3 + 2), "label": label,
    }


def case(name, rows, scores):
    hits = {}
    for one, (right, wrong) in zip(rows, scores):
        score_a, score_b = (right, wrong) if one["label"] == "A>B" else (wrong, right)
        decision = "A>B" if score_a > score_b else "B>A"
        for subset in (SOURCES[one["source"]], "all"):
            hits.setdefault(subset, []).append(decision == one["label"])
    expected = {subset: sum(all) / len(all) for subset, all in hits.items()}
    plain = [[None if math.isnan(value) else value for value in one] for one in scores]
    return {"name": name, "rows": rows, "scores": plain, "expected": expected}


def main():
    draw = random.Random(0)
    score = lambda: draw.choice([draw.gauss(0, 1), draw.gauss(0, 1), 0.5, 0.5, 0.5, float("nan")])
    every = [row(index, list(SOURCES)[index % 4]) for index in range(45)]
    one = [row(index, "livecodebench") for index in range(7)]
    ties = [row(index, "livebench-math") for index in range(6)]
    cases = [case(name, rows, [[score(), score()] for _ in rows]) for name, rows in [("every source, with ties and NaN", every), ("one source", one)]]
    cases.append(case("ties only: a decision for B", ties, [[0.5, 0.5] for _ in ties]))
    pathlib.Path(__file__).with_name("judgebench.json").write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


main()
