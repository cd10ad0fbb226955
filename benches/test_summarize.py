"""Promises of summarize.py and its page, on made-up measurements: python3 -m unittest discover -s benches

Nothing is measured here, and nothing needs more than the standard library.
"""

import unittest

import page
import summarize
from summarize import Measurements

RUN = {
    "set": "run", "at": "2030-01-02T03:04:05+00:00", "command": "launch/bench.sh", "quick": False, "commit": "0" * 40,
    "changed": False, "pairs": "pairs.jsonl", "pairs_sha256": "f" * 64, "model": "model", "core": 1, "load": 0.0,
    "machine": {"processor": "P", "family_model": "1/2", "cores": 2, "l3_cache": "1 MiB", "hypervisor": "none",
                "flags": ["avx2"], "memory_gb": 8.0, "system": "Linux 6"},
    "versions": {"torch": "2.13.0"},
}


def record(kind: str, name: str, rate: float | None, memory: float = 4.0, number: int = 1, **more) -> dict:
    """A measurement; one without a rate failed."""
    result = {"pairs": 32, "pairs_per_s": rate, "peak_rss_gb": memory, **more}
    return {"set": kind, "name": name, "round": number, "command": "c", "seconds": 1.0, "text": [],
            "results": [] if rate is None else [result], "error": "exit code 1: out of | memory" if rate is None else None}


def goal(records: list[dict], start: str) -> tuple[summarize.Goal, str]:
    """The goal whose name starts so, and its verdict."""
    data = Measurements([RUN, *records])
    found = next(goal for goal in summarize.goals(data) if goal.name.startswith(start))
    return found, found.verdict(data)


class Goals(unittest.TestCase):
    """What the figures are and how they are judged."""

    def rounds(self, mine: list[float], theirs: list[float]) -> list[dict]:
        return [record("rounds", "haf-dist hybrid", rate) for rate in mine] + [
            record("rounds", "peer hybrid", rate) for rate in theirs]

    def test_best_and_median_are_of_each_side(self):
        found, verdict = goal(self.rounds([9, 10, 12], [1.0, 1.0, 1.25]), "hybrid against `hybrid`")
        self.assertAlmostEqual(found.best, 12 / 1.25)
        self.assertAlmostEqual(found.median, 10)
        self.assertIsNone(found.single)
        self.assertEqual(verdict, "met")

    def test_the_worst_figure_decides(self):
        records = self.rounds([12], [1])
        self.assertEqual(goal(records, "hybrid against `hybrid`")[1], "as hoped")
        records += [record("full", "haf-dist hybrid", 7.9), record("full", "peer hybrid", 1)]
        self.assertEqual(goal(records, "hybrid against `hybrid`")[1], "**missed**")

    def test_a_failed_peer_is_no_success(self):
        records = [record("rounds", "haf-dist hybrid", 9), record("rounds", "peer hybrid", None)]
        self.assertEqual(goal(records, "hybrid against `hybrid`")[1], "**a measurement failed**")
        self.assertEqual(goal([], "hybrid against `hybrid`")[1], "not measured")
        # Nor is a failed long run behind rounds that were good.
        records = [*self.rounds([9], [1]), record("full", "haf-dist hybrid", 9), record("full", "peer hybrid", None)]
        self.assertEqual(goal(records, "hybrid against `hybrid`")[1], "**a measurement failed**")

    def test_a_round_with_disturbed_products_is_not_the_best_one(self):
        records = [record("rounds", "haf-dist hybrid", 1, useful_flops_per_s=useful, matmul_flops_per_s=products)
                   for useful, products in ((1.7e11, 2e11), (1.3e11, 1.2e11))]
        self.assertAlmostEqual(goal(records, "hybrid: useful FLOP/s")[0].best, 85)

    def test_memory_is_compared_in_one_unit(self):
        records = [record("rounds", "haf-dist hybrid", 1, memory=4.096), record("rounds", "peer hybrid", 1, memory=16)]
        found, verdict = goal(records, "hybrid: peak memory against `hybrid`")
        self.assertAlmostEqual(found.median, 25)
        self.assertEqual(verdict, "as hoped")
        records[0] = record("rounds", "haf-dist hybrid", 1, memory=6)
        self.assertEqual(goal(records, "hybrid: peak memory against `hybrid`")[1], "**missed**")

    def test_sharing_is_a_share_of_the_formula(self):
        records = [record("sharing", "haf-dist hybrid", 1.425), record("sharing", "haf-dist hybrid unshared", 1, sharing_formula=1.5)]
        self.assertAlmostEqual(goal(records, "prefix sharing")[0].best, 95)

    def test_two_ranks_are_measured_against_twice_one(self):
        # The second half of the pairs is longer: pairs/s alone would say 80%.
        records = [record("ranks", "haf-dist hybrid, one rank", 1.0, useful_flops_per_s=2e11),
                   record("ranks", "haf-dist hybrid, two ranks", 1.6, useful_flops_per_s=3.8e11)]
        self.assertAlmostEqual(goal(records, "two ranks")[0].best, 95)

    def test_the_plan_is_held_to_its_worst_prediction(self):
        records = [record("rounds", "haf-dist hybrid", 1, memory=4.0, planned_peak_gb=3.7),
                   record("f32", "haf-dist reward", 1, memory=4.0, planned_peak_gb=4.5)]
        found, verdict = goal(records, "`plan`'s peak memory")
        self.assertAlmostEqual(found.median, 12.5)
        self.assertEqual(verdict, "**missed**")
        self.assertEqual(goal(records[:1], "`plan`'s peak memory")[1], "met")

    def test_f32_must_keep_a_share_of_the_goals(self):
        records = [record("f32", "haf-dist hybrid", 5.0), record("f32", "peer hybrid", 1.0)]
        self.assertEqual(goal(records, "f32: hybrid against `hybrid`")[1], "met")

    def test_the_worst_size_of_the_reduction_counts(self):
        line = {"set": "reduction", "name": "two ranks", "round": 1, "error": None, "results": [],
                "text": ["   MB   gain", "    1   0.3 | 0.4   9 | 9   0.1 | 0.1   3.0x | 4.0x",
                         "   64   3.98 | 5   9 | 9   1.00 | 1.25   4.0x | 4.0x"]}
        found, verdict = goal([line], "reduction")
        self.assertAlmostEqual(found.best, 3.0)
        line["text"].pop(1)
        found, verdict = goal([line], "reduction")
        self.assertEqual((found.best, found.median, verdict), (3.98, 4.0, "met"), "by the times, not by the rounded gain")
        line["text"][1] = "   64   3.9 | 5   9 | 9   2 | 2.5   1.9x | 2.0x"
        self.assertEqual(goal([line], "reduction")[1], "**missed**")


class Page(unittest.TestCase):
    """What a reader is told."""

    def test_a_peer_that_is_ahead_is_named(self):
        slow = [record("rounds", "haf-dist reward", 1.0), record("rounds", "peer reward-tuned", 2.0, memory=9)]
        self.assertIn("`reward-tuned` is faster than our reward: 2.00 against 1.00", page.text(Measurements([RUN, *slow]), None, "r"))
        fast = [record("rounds", "haf-dist reward", 3.0), record("rounds", "peer reward-tuned", 2.0, memory=9)]
        text = page.text(Measurements([RUN, *fast]), None, "r")
        self.assertIn("Nowhere in what was measured.", text)
        self.assertIn("Not measured in the rounds: `haf-dist hybrid`, `haf-dist policy`, `peer hybrid`,", text)
        self.assertNotIn("Not measured in the long run", text)

    def test_a_failure_is_shown_and_breaks_no_table(self):
        text = page.text(Measurements([RUN, record("full", "peer trl-dpo", None)]), None, "r")
        self.assertIn("- full, round 1, `peer trl-dpo`: exit code 1: out of / memory", text)
        self.assertIn("`peer trl-dpo` **failed: full**", text)

    def test_every_row_of_a_table_has_the_columns_of_its_head(self):
        rates = [record(kind, name, 1.0) for kind in ("rounds", "full", "f32") for name in page.NAMES]
        rows = [line.count("|") for line in page.text(Measurements([RUN, *rates]), "p.svg", "r").splitlines() + [""]]
        for before, now in zip(rows, rows[1:]):
            self.assertTrue(0 in (before, now) or before == now)


if __name__ == "__main__":
    unittest.main()
