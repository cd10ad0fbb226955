"""Promises of the scripts' arguments and of what the set-up refuses: python3 -m unittest discover -s launch

Nothing is downloaded, built or trained here, and nothing needs more than the standard library.
"""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent
SOURCED = {"common.sh", "machine.sh"}
SCRIPTS = sorted(script.name for script in LAUNCH.glob("*.sh") if script.name not in SOURCED)
# They hand what they do not know to haf-dist.
HANDING_ON = {"one-node.sh", "several-nodes.sh"}

# An mpicc whose mpi.h defines what is named in STUB_DEFINES; it shows the macros, as asked with -E -dM.
MPICC = """#!/bin/sh
for name in $STUB_DEFINES; do echo "#define $name 1"; done
"""
MPIRUN = """#!/bin/sh
echo "$STUB_MPIRUN"
"""


class Scripts(unittest.TestCase):
    """A copy of the scripts, with stubs of MPI first on the PATH."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name) / "repository"
        shutil.copytree(LAUNCH, self.root / "launch")
        self.bin = Path(folder.name) / "bin"
        self.bin.mkdir()
        for name, text in (("mpicc", MPICC), ("mpirun", MPIRUN)):
            (self.bin / name).write_text(text, encoding="utf-8")
            (self.bin / name).chmod(0o755)

    def run_script(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """The script with these arguments; no terminal, so that nothing can be asked."""
        path = f"{self.bin}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if name != "MPICC"}
        return subprocess.run([self.root / "launch" / name, *arguments], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL, env={**kept, "PATH": path, **environment}, timeout=60)

    def test_help_is_the_scripts_own_and_nothing_else_happens(self) -> None:
        for script in SCRIPTS:
            before = sorted(self.root.rglob("*"))
            for argument in ("--help", "-h"):
                run = self.run_script(script, argument)
                self.assertEqual((run.returncode, run.stderr), (0, ""), script)
                self.assertRegex(run.stdout, rf"^Usage: .*launch/{script}", script)
            self.assertEqual(sorted(self.root.rglob("*")), before, script)

    def test_unknown_arguments_are_an_error_with_the_usage(self) -> None:
        for script in SCRIPTS:
            arguments = () if script in HANDING_ON else ("--nonsense",)
            before = sorted(self.root.rglob("*"))
            run = self.run_script(script, *arguments)
            self.assertEqual((run.returncode, run.stdout), (2, ""), script)
            self.assertRegex(run.stderr, r"^error: ", script)
            self.assertIn("Usage: ", run.stderr, script)
            self.assertEqual(sorted(self.root.rglob("*")), before, script)

    def test_another_mpi_is_told_from_open_mpi(self) -> None:
        # Intel's header has MPICH's macros too.
        for defines, mpirun, says in (
            ("MPI_VERSION MPICH_VERSION", "HYDRA", "compiler of MPICH"),
            ("MPI_VERSION MPICH_VERSION I_MPI_VERSION", "Intel(R) MPI Library", "compiler of Intel MPI"),
            ("MPI_VERSION MPICH_VERSION MVAPICH2_VERSION", "HYDRA", "compiler of MVAPICH"),
            ("", "mpirun (Open MPI) 4.1.4", "compiler of no MPI that compiles"),
            ("MPI_VERSION OPEN_MPI", "HYDRA build details:", f"{self.bin}/mpirun is not"),
        ):
            run = self.run_script("setup.sh", "--no-build", STUB_DEFINES=defines, STUB_MPIRUN=mpirun)
            self.assertEqual(run.returncode, 1, run.stdout)
            self.assertIn(says, run.stderr)
            self.assertIn("--own-mpi", run.stderr)


if __name__ == "__main__":
    unittest.main()
