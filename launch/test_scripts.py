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
        kept = {name: value for name, value in os.environ.items() if name not in ("MPICC", "CUDA_VISIBLE_DEVICES")}
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

    def test_another_open_mpi_has_its_header_read_anew_by_the_next_build(self) -> None:
        known = self.root / "target/release/.fingerprint/mpi-sys-1/lib"
        script = "source launch/common.sh; source launch/machine.sh; WORK=$ROOT; MPI_FOUND=$1; write_env"
        known.parent.mkdir(parents=True)
        (self.root / ".deps").mkdir()
        for mpirun, forgotten in (("4.1.4", True), ("4.1.4", False), ("5.0.11", True)):
            known.parent.mkdir(exist_ok=True)
            known.touch()
            environment = {**os.environ, "STUB_MPIRUN": f"mpirun (Open MPI) {mpirun}"}
            environment.pop("CARGO_TARGET_DIR", None)
            subprocess.run(["bash", "-euc", script, "bash", self.bin], cwd=self.root, env=environment, check=True)
            self.assertEqual(known.exists(), not forgotten, mpirun)

    # What stands in for the programs that launch/gpu-check.sh calls on a machine with two GPUs. mpirun answers for the tests by
    # their names.
    STAND_INS = {
        "nvidia-smi": """#!/bin/sh
case "$*" in
*--query-gpu=name*) echo "NVIDIA H100 80GB HBM3, 580.65, 81559 MiB" ;;
--list-gpus) echo "GPU 0: NVIDIA H100"; echo "GPU 1: NVIDIA H100" ;;
"topo -m") printf '\\tGPU0\\tGPU1\\nGPU0\\t X \\tNV18\\nGPU1\\tNV18\\t X \\n' ;;
*) printf '\\tGPU0\\tGPU1\\n GPU0\\tX\\tOK\\n GPU1\\tOK\\tX\\n' ;;
esac
""",
        "cargo": """#!/bin/sh
case "$*" in
--version) echo "cargo 1.99.0" ;;
*--no-run) echo "  Executable tests/all/main.rs (target/release/deps/all-1)" ;;
*golden*) echo "largest relative difference 1e-6" ;;
esac
""",
        "mpirun": """#!/bin/sh
case "$*" in
*$STUB_FAILS*) echo "it is broken"; exit 1 ;;
*all_reduce*) echo "NCCL 2.27, 2 rank(s)"; echo "all-reduce   64 MiB:   200.00 GiB/s, bus   200.00 GiB/s" ;;
*its_rate*) echo "device copy: 2600 GB/s"; echo "operation rms_norm  10.0 us  1300 GB/s  50% of a copy, formula  90.0 us: agrees" ;;
*start_takes*) echo "start check: 0.40 s, 0 operations replaced" ;;
*an_8b*) echo "shape llama-3.1-8b with 4 of its blocks and random weights: 350.0 TFLOP/s, MFU 35.4%" ;;
*a_matrix*) echo "matrix product: 700.0 TFLOP/s" ;;
*alone_and*) echo "2 rank(s) over NCCL and one on its GPU differ by 1e-7" ;;
esac
""",
        "haf-dist": """#!/bin/sh
if [ "$1" = bench ]; then echo "{\\"device\\":\\"$STUB_DEVICE\\",\\"pairs_per_s\\":300.0}"; exit 0; fi
for argument; do case $argument in output.dir=*) run=${argument#output.dir=} ;; *trace.json) trace=$argument ;; esac; done
mkdir -p "$run"
for step in 1 2 3 4; do echo '{"step":1,"tokens_per_s":50000.0}'; done >"$run/metrics.jsonl"
printf '[\\n{"name":"wait for reductions","ph":"X","tid":1,"ts":1.0,"dur":500.000,"args":{}},\\n' >"$trace"
printf '{"name":"step","ph":"X","tid":1,"ts":1.0,"dur":2000.000,"args":{}}\\n]\\n' >>"$trace"
case $STUB_DEVICE in Cuda*) place="GPU 0" ;; *) place="the CPU" ;; esac
echo "model: 135.0 M parameters, bf16, 1 rank with 1 thread on $place"
""",
        "nsys": """#!/bin/sh
case "$1" in
profile) echo "a block is 118 kernels in the table" ;;
*)
    echo "Start (ns),Duration (ns),Name"
    for name in gemm triu_tril_kernel gemm triu_tril_kernel gemm "[CUDA memcpy HtoD]" flash add triu_tril_kernel; do
        echo "1000,200,$name"
    done
    ;;
esac
""",
        "python": """#!/bin/sh
case "$*" in
-c*) [ "$STUB_PEERS" = yes ] || { echo "ModuleNotFoundError: No module named trl"; exit 1; } ;;
*) echo '{"pairs_per_s": 100.0}' ;;
esac
""",
    }

    def gpu_check(self, without: str = "", **environment: str) -> subprocess.CompletedProcess:
        """launch/gpu-check.sh among its stand-ins, but for one."""
        (self.root / "Cargo.toml").write_text('rust-version = "1.96"\n', encoding="utf-8")
        (self.root / "configs").mkdir(exist_ok=True)
        release, library = self.root / "target/release", self.root / "libtorch/lib"
        for folder in (release, library):
            folder.mkdir(parents=True, exist_ok=True)
        for name in ("libtorch_cpu.so", "libtorch_cuda.so"):
            (library / name).touch()
        for name, text in self.STAND_INS.items():
            place = (release if name == "haf-dist" else self.bin) / name
            place.write_text(text, encoding="utf-8")
            place.chmod(0o755)
        if without:
            (self.bin / without).unlink()
        return self.run_script("gpu-check.sh", LIBTORCH=str(library.parent), CARGO_TARGET_DIR=str(release.parent),
                               PYTHON=str(self.bin / "python"), **{"STUB_FAILS": "nothing", "STUB_DEVICE": "Cuda(0)", **environment})

    def test_the_page_of_a_gpu_has_a_line_and_figures_for_each_check(self) -> None:
        run = self.gpu_check(STUB_PEERS="yes")
        self.assertEqual((run.returncode, run.stderr), (0, ""), run.stdout)
        page = run.stdout.split("--- to paste into an issue ---")[1]
        for says in ("PASS  the driver answers", "PASS  links between GPUs", "NV18", "bus   200.00 GiB/s",
                     "operations and attention equal automatic differentiation", "50% of a copy", "start check: 0.40 s",
                     "largest relative difference", "differ by 1e-7", "MFU 35.4%", "MFU 5.8% of that product",
                     "a block is 118 kernels in the table", "a block is 2 kernels in the trace",
                     "0.500 ms a step: wait for reductions", "300.0 pairs/s, trl-dpo 100.0: 3.00 times"):
            self.assertIn(says, page)
        self.assertNotIn("FAIL", page)

    def test_a_failed_check_of_a_gpu_is_shown_and_the_others_go_on(self) -> None:
        run = self.gpu_check(without="nsys", STUB_FAILS="an_8b")
        self.assertEqual(run.returncode, 1)
        self.assertIn("FAIL  steps at the shape of an 8b model", run.stdout)
        self.assertIn("it is broken", run.stdout)
        self.assertIn("PASS  30 steps of the quickstart's model", run.stdout)
        self.assertIn("SKIP  a trace of a block's kernels: nsys is not installed", run.stdout)
        self.assertIn("SKIP  peers of benches/peer.py on this GPU: ", run.stdout)
        self.assertIn("1 check(s) failed", run.stdout)

    def test_a_program_that_computes_on_the_processor_fails_its_checks(self) -> None:
        run = self.gpu_check(STUB_DEVICE="Cpu", STUB_PEERS="yes")
        self.assertEqual(run.returncode, 1)
        for says in ("FAIL  30 steps of the quickstart's model", "FAIL  haf-dist bench, objective reward",
                     "it did not compute on a GPU"):
            self.assertIn(says, run.stdout)

    def test_gpus_that_are_hidden_are_not_counted(self) -> None:
        run = self.gpu_check(CUDA_VISIBLE_DEVICES="1")
        self.assertEqual((run.returncode, run.stderr), (0, ""), run.stdout)
        self.assertIn("PASS  NCCL sums ones over 1 GPU(s)", run.stdout)
        self.assertIn("PASS  1 rank(s) over NCCL", run.stdout)
        self.assertNotIn("links between GPUs", run.stdout)
        for hidden in ("", "-1"):
            run = self.gpu_check(CUDA_VISIBLE_DEVICES=hidden)
            self.assertEqual(run.returncode, 1)
            self.assertIn("error: no GPU is visible", run.stderr)


if __name__ == "__main__":
    unittest.main()
