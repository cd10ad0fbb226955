#!/usr/bin/env bash
# From a fresh machine to a trained reward model: the set-up, then a run of configs/quickstart.toml on two MPI ranks.
# Not here: what is installed (setup.sh), what is trained (the config).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/quickstart.sh [--set KEY=VALUE]... [--resume] [--yes] [-- ARGUMENTS]

Runs launch/setup.sh, whose --help says what is downloaded and how much, and builds haf-dist. Then trains a reward model
from SmolLM2-135M-Instruct on two MPI ranks: configs/quickstart.toml, 56 steps of 16 pairs. The result goes to
runs/quickstart, of a second run to runs/quickstart-2, and so on. The first run takes about ten minutes on two cores.

  --set KEY=VALUE  replace one key of the config, for instance --set train.steps=20; may be repeated
  --resume         go on with the last of these runs
  --yes            let the set-up install missing Debian packages without asking
  -- ARGUMENTS     whatever follows goes to haf-dist as it is
  --help           this text
END
}

RANKS=2
SETUP=()
ARGUMENTS=()
RESUME=no
while (($# > 0)); do
    case $1 in
    --set)
        value=$(take "$@")
        ARGUMENTS+=(--set "$value")
        shift
        ;;
    --set=*) ARGUMENTS+=("$1") ;;
    --resume) RESUME=yes ARGUMENTS+=("$1") ;;
    --yes) SETUP+=("$1") ;;
    --)
        shift
        ARGUMENTS+=("$@")
        break
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) unknown "$1" ;;
    esac
    shift
done

"$ROOT/launch/setup.sh" "${SETUP[@]}"
load_env
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
[[ $RESUME == no ]] || run=$last

set_mpirun_flags "$RANKS"
command=(mpirun -n "$RANKS" "${MPIRUN_FLAGS[@]}" "${CARGO_TARGET_DIR:-target}/release/haf-dist"
    --config configs/quickstart.toml --set "output.dir=$run" "${ARGUMENTS[@]}")
say "" "$(quoted "${command[@]}")"
run_job "${command[@]}"
