"""The plot of one benchmark run: pairs/s of haf-dist and its peers, peak memory beside it. Needs matplotlib.

What the figures mean: summarize.py.
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402 (the backend comes first)

from summarize import PEERS, Measurements, best, median, ours, peer  # noqa: E402

LABELS = {"hybrid": "padded PyTorch, as the paper's code", "hybrid-tuned": "tuned PyTorch", "trl-reward": "TRL RewardTrainer",
          "reward-tuned": "tuned PyTorch", "trl-dpo": "TRL DPOTrainer"}
OURS, THEIRS, TEXT = "#1f6f8b", "#b8b8b8", "#333333"
# The same lines make the same file.
STYLE = {"svg.hashsalt": "haf-dist", "font.family": "DejaVu Sans", "font.size": 10, "text.color": TEXT,
         "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT}


def bars(data: Measurements) -> list[tuple[str, str, float | None, float | None, bool]]:
    """Objective, label, pairs/s, GB and whether it is ours: of the long run, or of the rounds where an objective has no
    long run of every program. What failed has no figures."""
    found = []
    for objective, modes in PEERS.items():
        programs = ((ours(objective), "haf-dist"), *((peer(mode), LABELS[mode]) for mode in modes))
        measured = {record["name"] for record in data.records if record["set"] == "full"}
        kind = "full" if all(name in measured for name, _ in programs) else "rounds"
        if kind == "rounds" and measured:
            programs = [(name, f"{label} (rounds)") for name, label in programs]
        for name, label in programs:
            rates, peaks = data.values(kind, name), data.values(kind, name, "peak_rss_gb")
            if rates or data.failed(kind, name):
                found.append((objective, label, best(rates), median(peaks), name == ours(objective)))
    return found


def draw(data: Measurements, target: Path) -> bool:
    """Writes the SVG; nothing, and False, where nothing was measured."""
    rows = bars(data)
    if not rows:
        return False
    places, place, before = [], 0.0, rows[0][0]
    for objective, *_ in rows:
        place += 0.6 if objective != before else 0.0
        places.append(place)
        place, before = place + 1.0, objective
    colors = [OURS if mine else THEIRS for *_, mine in rows]
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, 2, sharey=True, figsize=(9.6, 1.2 + 0.42 * (place + 0.6)), layout="constrained")
        for axis, column, title, form in ((axes[0], 2, "pairs per second (more is better)", "{:.2f}"),
                                          (axes[1], 3, "peak memory, GB (less is better)", "{:.1f}")):
            values = [row[column] or 0.0 for row in rows]
            drawn = axis.barh(places, values, height=0.74, color=colors)
            axis.bar_label(drawn, [form.format(value) if value else "failed" for value in values], padding=4)
            axis.set_title(title, fontsize=11, loc="left", color=TEXT)
            axis.set_xlim(0, 1.16 * max(values, default=1.0) or 1.0)
            axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
            axis.tick_params(axis="both", length=0)
            axis.set_xticks([])
        axes[0].set_yticks(places, [f"{objective}: {label}" for objective, label, *_ in rows])
        axes[0].invert_yaxis()
        run = data.run
        dtype = next((record["results"][-1].get("dtype") for record in data.records if record["results"]), "")
        figure.supxlabel(f"{run['model']}, {run['pairs']}, {dtype}, one thread on one core of {run['machine']['processor']}; "
                         f"commit {run['commit'][:7]}", fontsize=8.5, x=0.01, ha="left")
        figure.savefig(target, metadata={"Date": None})
        pyplot.close(figure)
    return True
