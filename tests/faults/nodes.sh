#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces with a cable between them, and an MPI job with a rank on each.
#
#   unshare --user --map-root-user --net --uts --mount --pid --fork --kill-child \
#       bash nodes.sh FAULT KBIT COMMAND...
#
# FAULT: none; cut (the cable is pulled when run/metrics.jsonl has two lines); lost (then all of the second node's processes are
# killed at once). KBIT: what the cable carries a second; 0: as much as it can. All of it within namespaces of its own, so that
# nothing is left when it ends, and no packet leaves it. Exits with the job's code; 99: the nodes could not be set up.
set -euo pipefail

# As an agent of mpirun, in place of ssh: agent HOST COMMAND...
if [ "$1" = agent ]; then
    shift 2
    exec nsenter --net=/run/netns/node-b unshare --uts bash -c "hostname node-b && $*"
fi

fault=$1 kbit=$2
shift 2

set_up() {
    mount --make-rprivate / && mount -t tmpfs none /run && mount -t proc proc /proc || return
    hostname node-a && ip link set lo up && ip netns add node-b && ip -n node-b link set lo up || return
    ip link add cable type veth peer name cable netns node-b || return
    # Addresses for documentation: they are nobody's.
    ip address add 192.0.2.1/24 dev cable && ip link set cable up || return
    ip -n node-b address add 192.0.2.2/24 dev cable && ip -n node-b link set cable up || return
    if [ "$kbit" != 0 ]; then
        slow=(tc qdisc add dev cable root tbf rate "${kbit}kbit" burst 16kb latency 1s)
        "${slow[@]}" && ip netns exec node-b "${slow[@]}"
    fi
}
set_up || exit 99

mpirun -n 2 --host 192.0.2.1:1,192.0.2.2:1 --bind-to none --mca plm_rsh_agent "bash $0 agent" "$@" &
job=$!

lines() { if [ -e run/metrics.jsonl ]; then wc -l <run/metrics.jsonl; else echo 0; fi; }
# Of both nodes: this namespace has no other processes.
ranks() { pgrep --exact --count "$(basename "$1" | cut -c1-15)" || true; }

if [ "$fault" = cut ] || [ "$fault" = lost ]; then
    while [ "$(lines)" -lt 2 ] && kill -0 "$job" 2>/dev/null; do sleep 0.02; done
    echo "nodes: $fault after $(lines) lines of metrics, $(ranks "$1") ranks" >&2
    case $fault in
        cut) ip link set cable down ;;
        lost) ip netns pids node-b | xargs kill -KILL ;;
    esac
    started=$SECONDS
    while [ "$(ranks "$1")" != 0 ] && [ $((SECONDS - started)) -lt 60 ]; do sleep 0.1; done
    echo "nodes: $(ranks "$1") ranks are left after $((SECONDS - started)) s" >&2
    # Over a cable that is cut, mpirun waits for its daemon on the other node, for minutes.
    for _ in $(seq 50); do kill -0 "$job" 2>/dev/null || break; sleep 0.1; done
    if kill -KILL "$job" 2>/dev/null; then echo "nodes: mpirun has not ended, and is killed" >&2; fi
fi
code=0
wait "$job" || code=$?
exit "$code"
