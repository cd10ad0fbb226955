"""The page of one benchmark run, from its measurements: text() and nothing else. No clock, no machine, no files.

What the figures mean and how goals are judged: summarize.py.
"""

from summarize import PEERS, Goal, Measurements, best, goals, median, not_compared, ours, peer, peers_ahead, reductions

NAMES = [name for objective, modes in PEERS.items() for name in (ours(objective), *(peer(mode) for mode in modes))]


def table(head: list[str], rows: list[list[str]], texts: tuple[int, ...] = (0,)) -> str:
    """A Markdown table; columns numbered in `texts` are text, the others figures."""
    lines = [head, ["---" if column in texts else "---:" for column in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def plain(text: str) -> str:
    """Text that cannot break a table."""
    return text.replace("|", "/").replace("\n", " ")


def goals_table(data: Measurements) -> str:
    """Goal against measured."""

    def row(goal: Goal) -> list[str]:
        digits = 0 if goal.unit == "%" else 1
        bound = [number(value, digits, goal.unit).replace(".0x", "x") for value in (goal.at_least, goal.hoped)]
        if goal.lower_is_better:
            bound[0] = f"at most {bound[0]}"
        found = [number(value, 1 if goal.unit == "%" else 2, goal.unit) for value in (goal.best, goal.median, goal.single)]
        return [goal.name, *bound, *found, goal.verdict(data)]

    head = ["goal", "at least", "hoped for", "best of rounds", "median of rounds", "long run", "verdict"]
    return table(head, [row(goal) for goal in goals(data)], (0, len(head) - 1))


def speed_table(data: Measurements) -> str:
    """Pairs/s and peak memory of every program and mode."""
    rows = []
    for name in NAMES:
        rounds, single = data.values("rounds", name), data.values("full", name)
        memory = [median(data.values(kind, name, "peak_rss_gb")) for kind in ("rounds", "full", "f32")]
        cells = [number(best(rounds), 3), number(median(rounds), 3), number(median(single), 3), number(memory[0], 1),
                 number(memory[1], 1), number(median(data.values("f32", name)), 3), number(memory[2], 1)]
        failed = [kind for kind in ("rounds", "full", "f32") if data.failed(kind, name)]
        rows.append([f"`{name}`" + (f" **failed: {', '.join(failed)}**" if failed else ""), *cells])
    head = ["", "best pairs/s", "median pairs/s", "long run pairs/s", "GB", "long run GB", "f32 pairs/s", "f32 GB"]
    return table(head, rows)


def engine_table(data: Measurements) -> str:
    """What our own engine reaches, per objective."""
    rows = []
    for objective in PEERS:
        results = data.of("full", ours(objective)) or data.of("rounds", ours(objective))
        if results:
            top = max(results, key=lambda result: result["pairs_per_s"])
            useful, products = (top.get(key) for key in ("useful_flops_per_s", "matmul_flops_per_s"))
            share = 100 * useful / products if useful and products else None
            rows.append([objective, number(top.get("tokens_per_s"), 0), number(useful and useful / 1e9, 0),
                         number(products and products / 1e9, 0), number(share, 0, "%")])
    return table(["objective", "tokens/s", "useful GFLOP/s", "matrix products, GFLOP/s", "share"], rows)


def sharing_table(data: Measurements) -> str:
    """The hybrid step with and without prefix sharing."""
    rows = []
    for name in ("hybrid", "hybrid unshared"):
        rates = data.values("sharing", ours(name))
        formula = median(data.values("sharing", ours(name), "sharing_formula"))
        rows.append([f"`{ours(name)}`", number(best(rates), 3), number(median(rates), 3), number(formula, 3)])
    return table(["", "best pairs/s", "median pairs/s", "gain by the formula"], rows)


def ranks_table(data: Measurements) -> str:
    """One rank against two."""
    rows = []
    for name in ("hybrid, one rank", "hybrid, two ranks"):
        rates = data.values("ranks", ours(name))
        pairs = median(data.values("ranks", ours(name), "pairs"))
        useful = [value / 1e9 for value in data.values("ranks", ours(name), "useful_flops_per_s")]
        rows.append([f"`{ours(name)}`", number(pairs, 0), number(best(rates), 3), number(median(rates), 3),
                     number(best(useful), 0), number(median(useful), 0)])
    head = ["", "pairs", "best pairs/s", "median pairs/s", "best useful GFLOP/s", "median useful GFLOP/s"]
    return table(head, rows)


def machine_lines(run: dict) -> str:
    """What it was measured on, and how to measure it again."""
    machine, versions = run["machine"], run["versions"]
    changed = " with uncommitted changes" if run["changed"] else ""
    return table(["", ""], [
        ["processor", f"{machine['processor']} (family/model {machine['family_model']}), {machine['cores']} cores, "
                      f"L3 {machine['l3_cache']}, hypervisor {machine['hypervisor']}"],
        ["instruction sets", ", ".join(machine["flags"]) or "none of those that matter"],
        ["memory, system", f"{machine['memory_gb']} GB, {machine['system']}"],
        ["pinned to", f"core {run['core']}, one thread; load before the start {run['load']:.2f}"],
        ["model", run["model"]],
        ["pairs", f"`{run['pairs']}`, sha256 {run['pairs_sha256'][:16]}"],
        ["commit", f"{run['commit'][:12]}{changed}"],
        ["command", f"`{plain(run['command'])}`"],
        ["started", run["at"]],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
    ], (0, 1))


def section(title: str, *parts: str) -> str:
    """A heading and what is under it."""
    return "\n\n".join([f"## {title}", *(part for part in parts if part)])


def counts(data: Measurements) -> str:
    """How many pairs and rounds there were."""
    rounds = max((record["round"] for record in data.records if record["set"] == "rounds"), default=0)
    found = []
    for kind, words in (("rounds", f"{rounds} round(s) of"), ("full", "a long run of"), ("f32", "an f32 run of")):
        pairs = [value for name in NAMES for value in data.values(kind, name, "pairs")]
        if pairs:
            found.append(f"{words} {max(pairs)} pairs")
    return ", ".join(found) or "nothing was measured"


def text(data: Measurements, picture: str | None, raw: str) -> str:
    """The whole page."""
    run = data.run
    parts = [f"# Benchmark, {run['at'][:10]}"]
    parts.append(
        f"Training steps of haf-dist and of what a user would run instead (`benches/peer.py`), on the same pairs, model, "
        f"dtype and thread, in turn on one machine: {counts(data)}. Loading, tokenizing and a warm-up step are not "
        f"timed; the optimizer's update is. Raw lines: [{raw}]({raw}).")
    if run["quick"]:
        parts.append("**A quick run (`--quick`): it shows that everything works; its figures are only hints.**")
    if picture:
        parts.append(f"![Pairs per second and peak memory of haf-dist and its peers]({picture})")
    failures = [f"- {record['set']}, round {record['round']}, `{record['name']}`: {plain(record['error'])}"
                for record in data.failures()]
    if failures:
        parts.append(section("What failed", "\n".join(failures)))
    ahead = peers_ahead(data)
    reduction = "\n".join(["```text", *data.text("reduction"), "```"]) if reductions(data) else "Not measured."
    parts += [
        section("Goals", goals_table(data),
                "Judged by the worst of the three figures. The goals were set for 96 pairs of hh-rlhf's harmless test "
                "file; on other pairs lengths, and so ratios, differ. f32 must keep 60% of the goals for bf16."),
        section("Where a peer is ahead", "\n".join(f"- {line}" for line in ahead) or "Nowhere in what was measured.",
                *not_compared(data)),
        section("Pairs per second and peak memory", speed_table(data)),
        section("Our engine", engine_table(data)),
        section("Prefix sharing", sharing_table(data)),
        section("Two ranks", ranks_table(data)),
        section("Reduction", reduction),
        section("Machine and command", machine_lines(run)),
    ]
    return "\n\n".join(parts) + "\n"
