#!/usr/bin/env bash
# One node, one rank on each of its GPUs.
# Not here: the build (setup.sh --cuda), several nodes (several-nodes.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/one-node.sh ARGUMENTS OF HAF-DIST

Starts one rank on each GPU of this node, for instance: launch/one-node.sh --config configs/safety.toml
The program is that of launch/setup.sh --cuda. Ctrl-C, SIGTERM or SIGHUP: the ranks end the step under way and save it; the
second one ends them at once. haf-dist --help lists its arguments.

To change:
  fewer GPUs    CUDA_VISIBLE_DEVICES=0,1 launch/one-node.sh ...: there are as many ranks as visible GPUs
  sockets       On a node with two sockets, --map-by ppr:4:socket --bind-to socket (4: GPUs a socket) in place of
                --bind-to none in this script keeps each rank's memory near its GPU; `nvidia-smi topo -m` shows which is
                where. Never bind a rank to one core: its communication thread would share it with its computation.
  NCCL's words  NCCL_DEBUG=INFO launch/one-node.sh ... says which links it found, and what failed
END
}

help_or_arguments "$@"

have nvidia-smi || fail "nvidia-smi is not there: is NVIDIA's driver installed?" "in a container: start it with --gpus all"
visible_gpus
((${#VISIBLE[@]} > 0)) || fail "no GPU is visible" "nvidia-smi must list one; in a container: start it with --gpus all" \
    "CUDA_VISIBLE_DEVICES, where it is set, names those to use"
if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
command=(mpirun -n "${#VISIBLE[@]}" --oversubscribe --bind-to none
    "${CARGO_TARGET_DIR:-$ROOT/target}/release/haf-dist" "$@")
say "$(quoted "${command[@]}")"
run_job "${command[@]}"
