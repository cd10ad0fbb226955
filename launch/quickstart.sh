#!/usr/bin/env bash
# From a fresh machine to a trained reward model: the set-up, then a run of configs/quickstart.toml on two MPI ranks.
# Arguments go to haf-dist, for instance: launch/quickstart.sh --set train.steps=20
# Not here: what is installed (setup.sh), what is trained (the config).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RANKS=2

"$ROOT/launch/setup.sh"
need_cargo
# The config's paths start at the repository's root.
cd "$ROOT"

# The first name that is free: a run is never written over. To --resume is to go on with the last one that is there.
run=runs/quickstart
last=$run
number=2
while [[ -e $run ]]; do
    last=$run
    run=runs/quickstart-$number
    number=$((number + 1))
done
for argument in "$@"; do
    [[ $argument != --resume ]] || run=$last
done

set_mpirun_flags "$RANKS"
command=(mpirun -n "$RANKS" "${MPIRUN_FLAGS[@]}" "${CARGO_TARGET_DIR:-target}/release/haf-dist"
    --config configs/quickstart.toml --set "output.dir=$run" "$@")
say "" "$(quoted "${command[@]}")"
run_job "${command[@]}"
