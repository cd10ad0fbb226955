"""Writes rm_bench.json: synthetic rows and scores, and what RM-Bench's formula makes of them.

The formula is written anew after `compute_accuracy` of scripts/utils.py (THU-KEG/RM-Bench at 659399c): a matrix of shares,
its lower triangle, diagonal and upper triangle, means over domains told by the start of their names. Needs numpy.

The authors' function fails where a domain is missing. The case with one domain is our reading of it: the figures of that domain,
and none over all domains.
"""

import json
import pathlib
import random

import numpy as np

LEVELS = {"easy": np.tril(np.ones((3, 3)), -1), "normal": np.eye(3), "hard": np.triu(np.ones((3, 3)), 1)}


def row(index, domain):
    answers = lambda word: [word * length for length in (1 + index % 2, 5, 9)]
    return {"id": index, "prompt": f"Question {index % 5}?", "chosen": answers("right "), "rejected": answers("wrong "), "domain": domain}


def levels(scores):
    wins = np.mean([[[float(right > wrong) for wrong in one[3:]] for right in one[:3]] for one in scores], axis=0)
    return {name: float((wins * mask).sum() / mask.sum()) for name, mask in LEVELS.items()}


def case(name, rows, scores):
    domains = {}
    for domain in ["chat", "code", "math", "safety"]:
        of_domain = [one for row, one in zip(rows, scores) if row["domain"].startswith(domain)]
        if of_domain:
            domains[domain] = levels(of_domain)
    expected = {f"{domain} {level}": share for domain, of in domains.items() for level, share in of.items()}
    means = {domain: float(np.mean(list(of.values()))) for domain, of in domains.items()}
    expected.update(means)
    if len(domains) == 4:
        expected.update({level: float(np.mean([of[level] for of in domains.values()])) for level in LEVELS})
        expected["all"] = float(np.mean(list(means.values())))
    plain = [[None if np.isnan(value) else value for value in one] for one in scores]
    return {"name": name, "rows": rows, "scores": plain, "expected": expected}


def main():
    draw = random.Random(0)
    score = lambda: draw.choice([draw.gauss(0, 1), draw.gauss(0, 1), 0.5, 0.5, float("nan")])
    names = ["chat", "code", "math", "safety-refuse", "safety-response"]
    every = [row(index, names[index % 5]) for index in range(43)]
    one = [row(index, "math") for index in range(6)]
    cases = [
        case(name, rows, [[score() for _ in range(6)] for _ in rows])
        for name, rows in [("every domain, with ties and NaN", every), ("one domain", one)]
    ]
    pathlib.Path(__file__).with_name("rm_bench.json").write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


main()
