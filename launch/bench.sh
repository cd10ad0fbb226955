#!/usr/bin/env bash
# Measures haf-dist against what a user would run instead, in turn on one pinned core, and writes page and plot.
# Not here: what a measurement is (benches/peer.py, haf-dist bench), what the figures come to (benches/summarize.py).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/bench.sh [OPTIONS]

Runs launch/setup.sh, lays out the peers (PyTorch, Transformers, TRL) in .deps/peers with the versions of
benches/peers.txt (5 GB of disk), then measures: rounds of every peer and of haf-dist in turn, one long run, one in
f32, prefix sharing on and off, two ranks against one, the reduction. Peers take up to 13 GB of memory; all of it takes
about two hours on a machine that should do nothing else. A measurement that fails is reported; the others go on.

Raw lines go to benches/results/DATE.jsonl, tables to DATE.md, the plot to DATE.svg. Nothing is written over.

  --pairs FILE      {"prompt", "chosen", "rejected"} rows or hh-rlhf transcripts, .jsonl or .jsonl.gz
                    [default: the SocialIQA pairs of the set-up]
  --model DIR       a Hugging Face folder [default: the SmolLM2-135M-Instruct of the set-up]
  --rounds N        rounds of everything in turn [default: 3]
  --count N         timed pairs of a round, a multiple of 16 [default: 32]
  --full-count N    timed pairs of the long run; 0 leaves it out [default: 96]
  --f32-count N     timed pairs of the f32 run; 0 leaves it out [default: 16]
  --core N          the core to measure on [default: the last one allowed]
  --quick           one round of 16 pairs, no long run, no f32
  --dry-run         only prints the commands
  --help            this text
END
}

PAIRS=$DEPS/socialiqa/train.jsonl
MODEL=$DEPS/SmolLM2-135M-Instruct
ROUNDS=3
COUNT=32
FULL_COUNT=96
F32_COUNT=16
CORE=
QUICK=no
DRY=no
LINE=$(quoted launch/bench.sh "$@")

# take_number OPTION VALUES...: the same for a whole number.
take_number() {
    local value
    value=$(take "$@") || exit
    [[ $value =~ ^(0|[1-9][0-9]{0,5})$ ]] || fail "$1 $value: expected a whole number" "launch/bench.sh --help lists the options"
    printf '%s\n' "$value"
}

while (($# > 0)); do
    case $1 in
    --pairs) PAIRS=$(take "$@") ;;
    --model) MODEL=$(take "$@") ;;
    --rounds) ROUNDS=$(take_number "$@") ;;
    --count) COUNT=$(take_number "$@") ;;
    --full-count) FULL_COUNT=$(take_number "$@") ;;
    --f32-count) F32_COUNT=$(take_number "$@") ;;
    --core) CORE=$(take_number "$@") ;;
    --quick) QUICK=yes ROUNDS=1 COUNT=16 FULL_COUNT=0 F32_COUNT=0 ;;
    --dry-run) DRY=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) unknown "$1" ;;
    esac
    case $1 in
    --quick | --dry-run) shift ;;
    *) shift 2 ;;
    esac
done

for count in "$COUNT" "$FULL_COUNT" "$F32_COUNT"; do
    ((count % 16 == 0)) || fail "$count pairs are no whole number of steps" "a step takes 16 pairs: give a multiple of 16"
done
((ROUNDS > 0 && COUNT > 0)) || fail "--rounds and --count must be at least 1 and 16" "to leave something out: --full-count 0, --f32-count 0"
if [[ $DRY == no ]]; then
    # The set-up makes the defaults; what the user names must be there before it starts.
    [[ $PAIRS == "$DEPS"/* || -f $PAIRS ]] || fail "--pairs $PAIRS: no such file" "expected a .jsonl or .jsonl.gz of pairs"
    [[ $MODEL == "$DEPS"/* || -f $MODEL/config.json ]] || fail "--model $MODEL: no config.json in it" "expected a Hugging Face folder"
fi
PAIRS=$(realpath -ms --relative-base="$ROOT" "$PAIRS")
MODEL=$(realpath -ms --relative-base="$ROOT" "$MODEL")

# -------------------------------------------------------------------------------------------------------------- processor

# allowed_cores: the numbers of the processors that this script may use, one a line.
allowed_cores() {
    local part
    for part in $(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status | tr ',' ' '); do
        seq "${part%-*}" "${part#*-}"
    done
}

# place_of CORE: core and socket of a processor; two hardware threads of a core are in one place.
place_of() {
    lscpu --parse=CPU,CORE,SOCKET | sed -n "s/^$1,//p"
}

mapfile -t CORES < <(allowed_cores)
CORE=${CORE:-${CORES[-1]}}
[[ " ${CORES[*]} " == *" $CORE "* ]] || fail "--core $CORE may not be used here" "these may: ${CORES[*]}"
# The second rank's: the last one that is no hardware thread of the first.
OTHER=
for core in "${CORES[@]}"; do
    if [[ $(place_of "$core") != "$(place_of "$CORE")" ]]; then
        OTHER=$core
    fi
done

# ------------------------------------------------------------------------------------------------------------------ peers

PEERS=$DEPS/peers
PEERS_DISK_GB=12

peers_recipe() {
    cat "$ROOT/benches/peers.txt"
    /usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# set_up_peers: their environment, whole or not at all. Nothing where it is ready.
set_up_peers() {
    local log=$DEPS/logs/peers.log start=$SECONDS free
    if [[ -f $PEERS/.complete && $(<"$PEERS/.complete") == "$(peers_recipe)" ]]; then
        printf '%-48s ready\n' "Peers"
        return
    fi
    free=$(df --output=avail --block-size=1G "$ROOT" | tail -n 1)
    ((free >= PEERS_DISK_GB)) || fail "$ROOT is on a disk with ${free// /} GB free; $PEERS_DISK_GB GB are needed" "free some space"
    printf '%-48s ' "Peers"
    rm -rf "$PEERS"
    # Wheels are unpacked on this disk: /tmp may be small.
    if ! { /usr/bin/python3 -m venv "$PEERS" && TMPDIR=$WORK "$PEERS/bin/python" -m pip install --no-cache-dir --progress-bar off \
        --only-binary=:all: --requirement "$ROOT/benches/peers.txt"; } >"$log" 2>&1 </dev/null; then
        printf 'failed after %d s\n\n' "$((SECONDS - start))"
        tail -n 12 "$log" | sed 's/^/  | /' >&2
        fail "the peers could not be installed; the log is $log" "if a download failed: check the network and pip's own settings"
    fi
    peers_recipe >"$PEERS/.complete"
    printf 'done in %d s\n' "$((SECONDS - start))"
}

# ------------------------------------------------------------------------------------------------------------ measurements

PYTHON=.deps/peers/bin/python
PROGRAM=${CARGO_TARGET_DIR:-target}/release/haf-dist
MODE=count
TOTAL=0
DONE=0

# measure SET ROUND NAME COMMAND...: counts it, prints it, or runs and records it.
measure() {
    local set=$1 round=$2 name=$3 progress
    shift 3
    case $MODE in
    count) TOTAL=$((TOTAL + 1)) ;;
    print) quoted "$@" ;;
    run)
        DONE=$((DONE + 1))
        printf -v progress '[%d of %d, %d:%02d:%02d] ' "$DONE" "$TOTAL" $((SECONDS / 3600)) $((SECONDS / 60 % 60)) $((SECONDS % 60))
        "$PYTHON" benches/record.py "$RESULTS.jsonl" measure --set "$set" --round "$round" --name "$name" \
            --progress "$progress" -- "$@"
        ;;
    esac
}

# peer SET ROUND MODE COUNT DTYPE
peer() {
    measure "$1" "$2" "peer $3" taskset -c "$CORE" "$PYTHON" benches/peer.py --mode "$3" --model "$MODEL" --pairs "$PAIRS" \
        --count "$4" --threads 1 --dtype "$5"
}

# ours_command OBJECTIVE COUNT DTYPE: fills the array OURS.
ours_command() {
    OURS=("$PROGRAM" bench --model "$MODEL" --pairs "$PAIRS" --objective "$1" --count "$2" --threads 1 --dtype "$3" --json)
}

# ours SET ROUND OBJECTIVE COUNT DTYPE [FLAG...]
ours() {
    local set=$1 round=$2 objective=$3 name
    ours_command "$3" "$4" "$5"
    shift 5
    name="haf-dist $objective${*:+ ${*#--}}"
    measure "$set" "$round" "$name" taskset -c "$CORE" "${OURS[@]}" "$@"
}

# in_turn SET ROUND COUNT DTYPE: peers and haf-dist, one after the other.
in_turn() {
    peer "$1" "$2" hybrid "$3" "$4"
    ours "$1" "$2" hybrid "$3" "$4"
    peer "$1" "$2" hybrid-tuned "$3" "$4"
    ours "$1" "$2" reward "$3" "$4"
    peer "$1" "$2" trl-reward "$3" "$4"
    ours "$1" "$2" policy "$3" "$4"
    peer "$1" "$2" trl-dpo "$3" "$4"
    peer "$1" "$2" reward-tuned "$3" "$4"
}

# ranks ROUND: one rank, then two with the pairs doubled, each rank on a core of its own.
ranks() {
    # shellcheck disable=SC2016 # the ranks' shells expand these
    local pinned='core=$1; [ "$OMPI_COMM_WORLD_RANK" = 0 ] || core=$2; shift 2; exec taskset -c "$core" "$@"'
    ours_command hybrid "$COUNT" bf16
    measure ranks "$1" "haf-dist hybrid, one rank" taskset -c "$CORE" "${OURS[@]}"
    ours_command hybrid $((2 * COUNT)) bf16
    measure ranks "$1" "haf-dist hybrid, two ranks" mpirun -n 2 "${MPIRUN_FLAGS[@]}" \
        sh -c "$pinned" sh "$CORE" "$OTHER" "${OURS[@]}"
}

# The short ones first: an interrupted run keeps what it has.
measurements() {
    local round
    if [[ -n $OTHER ]]; then
        measure reduction 1 "two ranks" taskset -c "$CORE,$OTHER" cargo bench --quiet --bench reduction
        for ((round = 1; round <= ROUNDS; round++)); do
            ranks "$round"
        done
    fi
    for ((round = 1; round <= ROUNDS; round++)); do
        ours sharing "$round" hybrid "$COUNT" bf16
        ours sharing "$round" hybrid "$COUNT" bf16 --unshared
    done
    for ((round = 1; round <= ROUNDS; round++)); do
        in_turn rounds "$round" "$COUNT" bf16
    done
    if ((F32_COUNT > 0)); then
        in_turn f32 1 "$F32_COUNT" f32
    fi
    if ((FULL_COUNT > 0)); then
        in_turn full 1 "$FULL_COUNT" bf16
    fi
}

# -------------------------------------------------------------------------------------------------------------------- run

cd "$ROOT"
set_mpirun_flags 2
measurements
if [[ $DRY == yes ]]; then
    MODE=print
    measurements
    exit 0
fi

"$ROOT/launch/setup.sh"
need_cargo
WORK=$(mktemp -d "$DEPS/bench.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
set_up_peers

# The first name that is free: results are never written over.
mkdir -p benches/results
date=$(date -u +%Y-%m-%d)
RESULTS=benches/results/$date
number=2
while compgen -G "$RESULTS.*" >/dev/null; do
    RESULTS=benches/results/$date-$number
    number=$((number + 1))
done
# Ctrl-C ends the measurement that runs, and this script with it.
trap 'say "" "interrupted; for the tables of what is there: $PYTHON benches/summarize.py $RESULTS.jsonl" >&2; exit 130' INT TERM

available=$(awk '/^MemAvailable:/ { print int($2 / 1e6) }' /proc/meminfo)
((available >= 14)) || say "warning: only $available GB of memory are free; the peers take up to 13 GB and may be killed"
load=$(cut -d' ' -f1 /proc/loadavg)
[[ $load == 0.* ]] || say "warning: the machine is busy (load $load): figures will be too low, and ratios unfair"
[[ -n $OTHER ]] || say "warning: only one core may be used here: two ranks and the reduction are left out"

# One thread everywhere, no GPU, no network, nothing written outside this folder.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export PYTHONDONTWRITEBYTECODE=1
export CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1
export TMPDIR=$WORK HF_HOME=$WORK/huggingface

quick=()
if [[ $QUICK == yes ]]; then
    quick=(--quick)
fi
"$PYTHON" benches/record.py "$RESULTS.jsonl" run --command "$LINE" --pairs "$PAIRS" --model "$MODEL" --core "$CORE" "${quick[@]}"
say "" "$TOTAL measurements on core $CORE; raw lines go to $RESULTS.jsonl"
MODE=run
measurements
"$PYTHON" benches/summarize.py "$RESULTS.jsonl"
