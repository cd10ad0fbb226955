"""Promises of compare.sh, with a stub in haf-dist's place: python3 -m unittest discover -s launch

Nothing is trained here, and nothing needs more than the standard library.
"""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "compare.sh"
CONFIG = '[data]\ntest = [{ path = "t.jsonl" }]\n'

# Writes what a run writes, or dies half way where the run's folder stands in the file named by STUB_DIES.
STUB = """#!/usr/bin/env bash
set -eu
echo "$*" >>"$STUB_LOG"
if [[ $1 == compare ]]; then
    echo "table of $*"
    exit
fi
for argument in "$@"; do
    case $argument in output.dir=*) run=${argument#output.dir=} ;; esac
done
mkdir -p "$run/step-3/trainer"
touch "$run/metrics.jsonl"
if grep -qsx "${run##*/}" "$STUB_DIES"; then
    exit 1
fi
touch "$run/test-pairs.jsonl"
"""


class Compare(unittest.TestCase):
    """What is run, and what is not run again."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        program = self.folder / "target/release/haf-dist"
        program.parent.mkdir(parents=True)
        program.write_text(STUB, encoding="utf-8")
        program.chmod(0o755)
        self.config = self.folder / "small.toml"
        self.config.write_text(CONFIG, encoding="utf-8")
        self.log = self.folder / "log"
        self.dies = self.folder / "dies"

    def compare(self, *options: str) -> subprocess.CompletedProcess:
        """The script on the config, its runs in the folder."""
        environment = {**os.environ, "CARGO_TARGET_DIR": str(self.folder / "target"), "STUB_LOG": str(self.log),
                       "STUB_DIES": str(self.dies)}
        command = [SCRIPT, self.config, "--out", self.folder / "out", *options]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def calls(self) -> list[str]:
        """What the stub was called with since the last question."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def test_every_objective_is_run_with_every_seed_and_then_compared(self) -> None:
        outcome = self.compare("--seeds", "2", "--set", "train.steps=3")
        self.assertEqual(outcome.returncode, 0, outcome.stderr)
        calls = self.calls()
        self.assertEqual(len(calls), 6 + 2)
        for call, (seed, objective) in zip(calls, [(s, o) for s in (1, 2) for o in ("hybrid", "reward", "policy")]):
            self.assertIn(f"--set train.steps=3 --set loss.objective={objective} --set data.seed={seed} ", call)
            self.assertTrue(call.endswith(f"out/{objective}-seed-{seed}"), call)
        self.assertIn("table of compare ", (self.folder / "out/comparison.md").read_text(encoding="utf-8"))
        self.assertIn("--json", (self.folder / "out/comparison.jsonl").read_text(encoding="utf-8"))
        self.assertIn("about 0:00:0", outcome.stdout)

    def test_a_run_that_died_is_resumed_and_finished_ones_are_left_alone(self) -> None:
        self.dies.write_text("policy-seed-1\n", encoding="utf-8")
        outcome = self.compare("--seeds", "1")
        self.assertEqual(outcome.returncode, 1)
        self.assertIn("policy-seed-1 failed", outcome.stderr)
        self.assertEqual(len(self.calls()), 3)
        self.dies.unlink()
        self.assertEqual(self.compare("--seeds", "1").returncode, 0)
        calls = self.calls()
        self.assertEqual([call.split()[0] for call in calls], ["--config", "compare", "compare"])
        self.assertIn("loss.objective=policy", calls[0])
        self.assertTrue(calls[0].endswith("--resume"), calls[0])

    def test_checkpoints_stay_unless_they_are_to_go(self) -> None:
        self.assertEqual(self.compare("--seeds", "1").returncode, 0)
        self.assertTrue((self.folder / "out/reward-seed-1/step-3").is_dir())
        self.assertEqual(self.compare("--seeds", "2", "--drop-checkpoints").returncode, 0)
        self.assertTrue((self.folder / "out/reward-seed-1/step-3").is_dir(), "only runs of this call lose theirs")
        self.assertEqual([path.name for path in (self.folder / "out/reward-seed-2").glob("step-*")], [])
        self.assertTrue((self.folder / "out/reward-seed-2/test-pairs.jsonl").exists())

    def test_tables_are_not_written_over_and_seeds_are_added(self) -> None:
        self.assertEqual(self.compare("--seeds", "1").returncode, 0)
        first = (self.folder / "out/comparison.md").read_text(encoding="utf-8")
        self.calls()
        self.assertEqual(self.compare("--seeds", "2").returncode, 0)
        self.assertEqual([call.split()[0] for call in self.calls()], ["--config"] * 3 + ["compare"] * 2)
        self.assertEqual((self.folder / "out/comparison.md").read_text(encoding="utf-8"), first)
        self.assertIn("hybrid-seed-2", (self.folder / "out/comparison-2.md").read_text(encoding="utf-8"))

    def test_runs_of_another_config_or_other_options_are_not_mixed_in(self) -> None:
        self.assertEqual(self.compare("--seeds", "1").returncode, 0)
        self.calls()
        outcome = self.compare("--seeds", "1", "--set", "train.steps=9")
        self.assertEqual((outcome.returncode, self.calls()), (1, []))
        self.assertIn("another config or other --set options", outcome.stderr)
        self.config.write_text(CONFIG + "# changed\n", encoding="utf-8")
        self.assertEqual((self.compare("--seeds", "1").returncode, self.calls()), (1, []))

    def test_what_cannot_work_is_refused_before_any_training(self) -> None:
        for options, expected in [
            (("--seeds", "0"), "expected a whole number"),
            (("--set", "data.seed=4"), "the comparison sets data.seed itself"),
            (("--out",), "--out needs a value"),
        ]:
            outcome = self.compare(*options)
            self.assertEqual((outcome.returncode, self.calls()), (1, []), outcome.stderr)
            self.assertIn(expected, outcome.stderr)
            self.assertIn("hint: ", outcome.stderr)
        outcome = self.compare("--sets", "a=b")
        self.assertEqual((outcome.returncode, self.calls()), (2, []), outcome.stderr)
        self.assertIn("unknown argument: --sets", outcome.stderr)
        self.config.write_text("[data]\ntrain = []\n", encoding="utf-8")
        outcome = self.compare()
        self.assertEqual((outcome.returncode, self.calls()), (1, []))
        self.assertIn("names no test pairs", outcome.stderr)

    def test_a_dry_run_prints_the_commands_and_does_nothing(self) -> None:
        outcome = self.compare("--dry-run", "--ranks", "2")
        self.assertEqual((outcome.returncode, self.calls()), (0, []))
        lines = outcome.stdout.splitlines()
        self.assertEqual(len(lines), 10)
        self.assertTrue(all(line.startswith("mpirun -n 2 ") for line in lines[:9]), lines)
        self.assertFalse((self.folder / "out").exists())


if __name__ == "__main__":
    unittest.main()
