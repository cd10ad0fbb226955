#!/usr/bin/env python3
"""Turns the raw lines of one benchmark into a page of tables and a plot: summarize.py RESULTS.jsonl

Writes RESULTS.md and RESULTS.svg beside it; the same lines always give the same page. What each record holds is in
record.py; what is measured is in launch/bench.sh. The plot needs matplotlib (plot.py), the page nothing.

Every goal is judged by the worst of its figures: best of the rounds, median of the rounds, the long run.
"""

import json
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

OURS = "haf-dist"
# Which peers a user would run in place of each objective.
PEERS = {"hybrid": ("hybrid", "hybrid-tuned"), "reward": ("trl-reward", "reward-tuned"), "policy": ("trl-dpo",)}
# The goals for pairs/s: objective, peer, at least, hoped for.
RATES = (("hybrid", "hybrid", 8, 11), ("hybrid", "hybrid-tuned", 3.5, 5), ("reward", "trl-reward", 4, 6),
         ("policy", "trl-dpo", 8, 11))
# What f32 must keep of the goals above, at least.
F32_SHARE = 0.6
# The goals for peak memory, in percent: objective, peer, at most, hoped for.
MEMORY = (("hybrid", "hybrid", 32, 25), ("reward", "trl-reward", 48, 36), ("hybrid", "trl-reward", 48, 36))


def ours(objective: str) -> str:
    """The name under which our measurement of an objective is recorded."""
    return f"{OURS} {objective}"


def peer(mode: str) -> str:
    """The name under which a peer's measurement is recorded."""
    return f"peer {mode}"


class Measurements:
    """The records of one run, by set and name."""

    def __init__(self, records: list[dict]):
        self.run = next((record for record in records if record["set"] == "run"), {})
        self.records = [record for record in records if record["set"] != "run"]

    def of(self, kind: str, name: str) -> list[dict]:
        """The last JSON line of every measurement of that name that did not fail, in order."""
        found = (record for record in self.records if (record["set"], record["name"]) == (kind, name))
        return [record["results"][-1] for record in found if record["error"] is None and record["results"]]

    def values(self, kind: str, name: str, key: str = "pairs_per_s") -> list[float]:
        """One number of each of them."""
        # peer.py counts memory in units of 1,024 * 10^6 bytes, haf-dist in 10^9 bytes.
        factor = 1.024 if key == "peak_rss_gb" and name.startswith("peer ") else 1
        return [factor * result[key] for result in self.of(kind, name) if isinstance(result.get(key), (int, float))]

    def text(self, kind: str) -> list[str]:
        """Lines of text that the measurements of a set printed."""
        records = (record for record in self.records if record["set"] == kind and record["error"] is None)
        return [line for record in records for line in record["text"]]

    def failures(self) -> list[dict]:
        """The records of what failed."""
        return [record for record in self.records if record["error"] is not None]

    def failed(self, kind: str, name: str) -> bool:
        """Did every measurement of that name fail?"""
        records = [record for record in self.records if (record["set"], record["name"]) == (kind, name)]
        return bool(records) and all(record["error"] is not None for record in records)


@dataclass
class Goal:
    """A goal and the figures it is judged by."""

    name: str
    at_least: float
    hoped: float
    unit: str = "x"
    lower_is_better: bool = False
    # Each may be missing.
    best: float | None = None
    median: float | None = None
    single: float | None = None
    needs: list[tuple[str, str]] = field(default_factory=list)

    def figures(self) -> list[float]:
        """Those that there are."""
        return [figure for figure in (self.best, self.median, self.single) if figure is not None]

    def verdict(self, data: Measurements) -> str:
        """How the worst figure compares. What failed leaves no verdict, whatever else was measured."""
        if any(data.failed(*need) for need in self.needs):
            return "**a measurement failed**"
        if not self.figures():
            return "not measured"
        if self.lower_is_better:
            worst = max(self.figures())
            met, hoped = worst <= self.at_least, worst <= self.hoped
        else:
            worst = min(self.figures())
            met, hoped = worst >= self.at_least, worst >= self.hoped
        return "as hoped" if hoped else "met" if met else "**missed**"


def ratio(above: float | None, below: float | None, factor: float = 1.0) -> float | None:
    """factor * above / below, where there are both."""
    return factor * above / below if above is not None and below else None


def best(values: list[float]) -> float | None:
    """The largest."""
    return max(values, default=None)


def median(values: list[float]) -> float | None:
    """The median."""
    return statistics.median(values) if values else None


def rate_goal(data: Measurements, objective: str, mode: str, at_least: float, hoped: float) -> Goal:
    """Pairs/s of an objective against a peer's."""
    mine, theirs = (data.values("rounds", name) for name in (ours(objective), peer(mode)))
    return Goal(f"{objective} against `{mode}`, pairs/s", at_least, hoped, best=ratio(best(mine), best(theirs)),
                median=ratio(median(mine), median(theirs)),
                single=ratio(*(median(data.values("full", name)) for name in (ours(objective), peer(mode)))),
                needs=[(kind, name) for kind in ("rounds", "full") for name in (ours(objective), peer(mode))])


def f32_goal(data: Measurements, objective: str, mode: str, at_least: float, hoped: float) -> Goal:
    """The same in f32, measured once."""
    names = (ours(objective), peer(mode))
    return Goal(f"f32: {objective} against `{mode}`, pairs/s", F32_SHARE * at_least, hoped,
                single=ratio(*(median(data.values("f32", name)) for name in names)),
                needs=[("f32", name) for name in names])


def memory_goal(data: Measurements, objective: str, mode: str, at_most: float, hoped: float) -> Goal:
    """Peak memory of an objective as percent of a peer's."""
    names = (ours(objective), peer(mode))
    peaks = {kind: [median(data.values(kind, name, "peak_rss_gb")) for name in names] for kind in ("rounds", "full")}
    return Goal(f"{objective}: peak memory against `{mode}`", at_most, hoped, "%", lower_is_better=True,
                median=ratio(*peaks["rounds"], 100), single=ratio(*peaks["full"], 100),
                needs=[(kind, name) for kind in ("rounds", "full") for name in names])


def sharing_goal(data: Measurements) -> Goal:
    """Gain by prefix sharing as percent of what the tokens saved promise."""
    shared, unshared = (data.values("sharing", ours(name)) for name in ("hybrid", "hybrid unshared"))
    formula = median(data.values("sharing", ours("hybrid unshared"), "sharing_formula"))
    share = 100 / formula if formula else None
    return Goal("prefix sharing: gain, of the formula", 92, 97, "%",
                best=ratio(best(shared), best(unshared), share) if share else None,
                median=ratio(median(shared), median(unshared), share) if share else None,
                needs=[("sharing", ours("hybrid")), ("sharing", ours("hybrid unshared"))])


def useful_goal(data: Measurements) -> Goal:
    """Useful FLOP/s of the hybrid step as percent of libtorch's matrix products of the same shapes."""
    name, keys = ours("hybrid"), ("useful_flops_per_s", "matmul_flops_per_s")
    # Best against best: a round whose products alone were disturbed must not look like a good one.
    useful, products = (data.values("rounds", name, key) for key in keys)
    return Goal("hybrid: useful FLOP/s, of matrix products", 60, 75, "%", best=ratio(best(useful), best(products), 100),
                median=ratio(median(useful), median(products), 100),
                single=ratio(*(median(data.values("full", name, key)) for key in keys), 100),
                needs=[("rounds", name), ("full", name)])


def ranks_goal(data: Measurements) -> Goal:
    """Useful FLOP/s of two ranks with the pairs doubled as percent of twice one rank's: the second half of the pairs has
    other lengths, so pairs/s would compare different work."""
    names = ("hybrid, one rank", "hybrid, two ranks")
    one, two = (data.values("ranks", ours(name), "useful_flops_per_s") for name in names)
    return Goal("two ranks, pairs doubled, against one", 92, 97, "%", best=ratio(best(two), best(one), 50),
                median=ratio(median(two), median(one), 50),
                needs=[("ranks", ours(f"hybrid, {count}")) for count in ("one rank", "two ranks")])


def plan_goal(data: Measurements) -> Goal:
    """How far `haf-dist plan` is from the measured peak memory, up or down: the objective for which it is farthest."""

    def farthest(*kinds: str) -> float | None:
        results = (result for kind in kinds for objective in PEERS for result in data.of(kind, ours(objective)))
        found = [abs(100 * result["planned_peak_gb"] / result["peak_rss_gb"] - 100)
                 for result in results if result.get("planned_peak_gb")]
        return max(found, default=None)

    return Goal("`plan`'s peak memory against the measured one (rounds and f32; long run), off by", 10, 5, "%",
                lower_is_better=True, median=farthest("rounds", "f32"), single=farthest("full"))


def reductions(data: Measurements) -> list[tuple[int, float, float]]:
    """Megabytes, best gain, median gain: of each row of the reduction benchmark's table, from its milliseconds, because
    its own column of gains is rounded too far to be judged by."""
    row = re.compile(r"^\s*(\d+)" + r"\s+([\d.]+) \| ([\d.]+)" * 3 + r"\s")
    found = (row.match(line) for line in data.text("reduction"))
    return [(int(match[1]), float(match[2]) / float(match[6]), float(match[3]) / float(match[7])) for match in found if match]


def reduction_goal(data: Measurements) -> Goal:
    """The smallest gain over MPI_Allreduce among the sizes."""
    rows = reductions(data)
    return Goal("reduction on two ranks against MPI_Allreduce, worst size", 2, 4,
                best=min((gain for _, gain, _ in rows), default=None),
                median=min((gain for _, _, gain in rows), default=None), needs=[("reduction", "two ranks")])


def goals(data: Measurements) -> list[Goal]:
    """Every goal with what was measured."""
    return [
        *(rate_goal(data, *row) for row in RATES),
        *(memory_goal(data, *row) for row in MEMORY),
        sharing_goal(data),
        useful_goal(data),
        ranks_goal(data),
        reduction_goal(data),
        plan_goal(data),
        *(f32_goal(data, *row) for row in RATES),
    ]


def peers_ahead(data: Measurements) -> list[str]:
    """A sentence for every figure in which a peer of the same objective is ahead of us."""
    found = []
    for kind, words in (("rounds", "best of the rounds"), ("full", "long run"), ("f32", "f32")):
        for objective, modes in PEERS.items():
            for mode in modes:
                names = (ours(objective), peer(mode))
                mine, theirs = (best(data.values(kind, name)) for name in names)
                if mine is not None and theirs is not None and theirs > mine:
                    found.append(f"`{mode}` is faster than our {objective}: {theirs:.2f} against {mine:.2f} pairs/s "
                                 f"({words}).")
                mine, theirs = (best(data.values(kind, name, "peak_rss_gb")) for name in names)
                if mine is not None and theirs is not None and theirs < mine:
                    found.append(f"`{mode}` takes less memory than our {objective}: {theirs:.1f} against {mine:.1f} GB "
                                 f"({words}).")
    return found


def not_compared(data: Measurements) -> list[str]:
    """What peers_ahead has no figures for, of the sets that were measured at all."""
    found = []
    for kind, words in (("rounds", "the rounds"), ("full", "the long run"), ("f32", "f32")):
        names = [(ours(objective), peer(mode)) for objective, modes in PEERS.items() for mode in modes]
        gaps = sorted({name for pair in names for name in pair if not data.values(kind, name)})
        if any(record["set"] == kind for record in data.records) and gaps:
            found.append(f"Not measured in {words}: {', '.join(f'`{name}`' for name in gaps)}.")
    return found


def read(path: Path) -> Measurements:
    """The records of a results file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return Measurements([json.loads(line) for line in lines if line.strip()])


def main() -> int:
    """Reads the file and writes page and plot beside it."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".jsonl"):
        print("usage: summarize.py RESULTS.jsonl", file=sys.stderr)
        return 2
    import page  # Both read this file's names.

    source = Path(sys.argv[1])
    data = read(source)
    picture = source.with_suffix(".svg")
    try:
        import plot

        drawn = plot.draw(data, picture)
    except ImportError as missing:
        print(f"no plot: {missing}; launch/bench.sh sets up a Python that has it", file=sys.stderr)
        drawn = False
    target = source.with_suffix(".md")
    target.write_text(page.text(data, picture.name if drawn else None, source.name), encoding="utf-8")
    print(f"{target}{f', {picture}' if drawn else ''}")
    return 0


if __name__ == "__main__":
    # page.py and plot.py import this file by its name.
    sys.modules["summarize"] = sys.modules[__name__]
    sys.exit(main())
