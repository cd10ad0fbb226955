#!/usr/bin/env bash
# Several nodes, one rank a GPU, with mpirun over ssh.
# Not here: the build (setup.sh --cuda, on every node or on a shared disk), Slurm (slurm.sbatch), Kubernetes (mpijob.yaml).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: HOSTFILE=FILE GPUS=N [INTERFACE=NAME] launch/several-nodes.sh ARGUMENTS OF HAF-DIST

Starts one rank a GPU on several nodes, for instance:
  HOSTFILE=hosts GPUS=8 launch/several-nodes.sh --config configs/safety.toml
Ctrl-C, SIGTERM or SIGHUP: the ranks end the step under way and save it; the second one ends them at once. haf-dist --help
lists its arguments.

  HOSTFILE           One line a node, its name and its GPUs:
                       node1 slots=8
                       node2 slots=8
                     Rank 0 is on the first; ssh must get to each without a password. This repository, the model and the
                     data must be at the same path everywhere; the run's folder and data.cache_dir on a shared disk.
  GPUS               GPUs a node; all nodes have as many.
  INTERFACE          The network that the nodes share (`ip -brief address`), for instance eth0. MPI and NCCL would try
                     every interface, and a container's bridge that all nodes have at one address makes them hang.
  NCCL_SOCKET_IFNAME NCCL finds its peers over it, and without InfiniBand moves its data over it. Set from INTERFACE.
  NCCL_IB_HCA        The InfiniBand or RoCE adapters for data (`ibstat -l`), for instance mlx5_0,mlx5_1; NCCL takes all
                     that work if it is not set. NCCL_IB_DISABLE=1 does without them: to find out whether they are the
                     fault. RoCE may want NCCL_IB_GID_INDEX=3.
  NCCL_DEBUG         INFO: which of all that NCCL has chosen. If it says NET/Socket where there is InfiniBand, the data
                     goes over the slow network.

For nodes with two sockets see launch/one-node.sh --help.
END
}

help_or_arguments "$@"

HOSTFILE=${HOSTFILE:-hosts}
GPUS=${GPUS:-8}
INTERFACE=${INTERFACE:-}

[[ -f $HOSTFILE ]] || fail "there is no host file $HOSTFILE" "write one line a node: node1 slots=$GPUS" "name it with HOSTFILE=..."
flags=(--hostfile "$HOSTFILE" --map-by "ppr:$GPUS:node" --bind-to none)
if [[ -n $INTERFACE ]]; then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$INTERFACE}
    flags+=(--mca btl_tcp_if_include "$INTERFACE" --mca oob_tcp_if_include "$INTERFACE")
fi
# mpirun hands on to other nodes what it is told to, and nothing else.
for name in LD_LIBRARY_PATH ${!NCCL_@}; do
    [[ -n ${!name:-} ]] && flags+=(-x "$name")
done
if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Called by its whole path, Open MPI takes itself to be at the same one on every node.
command=("$(command -v mpirun)" "${flags[@]}" "${CARGO_TARGET_DIR:-$ROOT/target}/release/haf-dist" "$@")
say "$(quoted "${command[@]}")"
run_job "${command[@]}"
