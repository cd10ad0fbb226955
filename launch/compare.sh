#!/usr/bin/env bash
# The paper's comparison for one config: trains the hybrid, the reward and the policy objective with the same seeds, then
# prints accuracies and paired significance on the test pairs.
# Not here: what is trained (the config), what the figures are (haf-dist compare).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END_OF_USAGE'
Usage: launch/compare.sh CONFIG [OPTIONS]

Trains each of loss.objective = "hybrid", "reward" and "policy" with data.seed = 1, 2, ...: for a seed all three see the
same pairs in the same order. The checkpoint of the last step ranks the test pairs (the best on dev plays no part). Then
haf-dist compare prints how often each is right, with 95% intervals, and which differences are significant.

Runs go to DIR/OBJECTIVE-seed-N, the tables to DIR/comparison.md, the same as JSON lines to DIR/comparison.jsonl. Nothing
is written over. Interrupted, the same command goes on where it stopped; with a larger --seeds it adds runs. Every run
keeps its checkpoint, with what --resume needs: 14 bytes a parameter in bf16.

CONFIG is a TOML file with test pairs; paths in it start at the repository's root.

  --seeds N          train with seeds 1 to N [default: 3]
  --ranks N          MPI ranks of a run [default: 1, without mpirun]
  --out DIR          where everything goes [default: runs/compare-NAME, NAME that of the config's file]
  --set KEY=VALUE    replace one key of the config, as in haf-dist; may be repeated
  --drop-checkpoints remove a run's checkpoint once its test pairs are ranked, to save disk [default: keep it]
  --dry-run          only prints the commands
  --help             this text
END_OF_USAGE
}

HINT="launch/compare.sh --help lists the options"
OBJECTIVES=(hybrid reward policy)
CONFIG=
SEEDS=3
RANKS=1
OUT=
SETS=()
DROP=no
DRY=no

# take_number OPTION VALUES...: the same for a whole number from 1 on.
take_number() {
    local value
    value=$(take "$@") || exit
    [[ $value =~ ^[1-9][0-9]{0,3}$ ]] || fail "$1 $value: expected a whole number, 1 or more" "$HINT"
    printf '%s\n' "$value"
}

while (($# > 0)); do
    case $1 in
    --seeds) SEEDS=$(take_number "$@") ;;
    --ranks) RANKS=$(take_number "$@") ;;
    --out) OUT=$(take "$@") ;;
    --set)
        value=$(take "$@")
        case ${value%%=*} in
        loss.objective | data.seed | output.dir)
            fail "--set $value: the comparison sets ${value%%=*} itself" "take it out; --seeds and --out are the options for that"
            ;;
        esac
        SETS+=(--set "$value")
        ;;
    --drop-checkpoints) DROP=yes ;;
    --dry-run) DRY=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    -*) unknown "$1" ;;
    *)
        [[ -z $CONFIG ]] || fail "two configs: $CONFIG and $1" "a comparison is of one"
        CONFIG=$1
        ;;
    esac
    case $1 in
    --seeds | --ranks | --out | --set) shift 2 ;;
    *) shift ;;
    esac
done

[[ -n $CONFIG ]] || fail "no CONFIG" "for example: launch/compare.sh configs/compare.toml" "$HINT"
[[ -f $CONFIG ]] || fail "$CONFIG: no such file" "expected a config, such as configs/compare.toml"
# Found before hours of training rather than after them.
if ! grep -Eq '^[[:space:]]*(test[[:space:]]*=|\[\[data\.test\]\])' "$CONFIG" && [[ ${SETS[*]} != *data.test* ]]; then
    fail "$CONFIG names no test pairs, and there is nothing to compare without" "add test = [{ path = \"...\" }] to its [data]"
fi

NAME=$(basename "$CONFIG" .toml)
CONFIG=$(realpath -s --relative-base="$ROOT" "$CONFIG")
OUT=$(realpath -ms --relative-base="$ROOT" "${OUT:-$ROOT/runs/compare-$NAME}")
# The config's paths start at the repository's root.
cd "$ROOT"
PROGRAM=${CARGO_TARGET_DIR:-target}/release/haf-dist
LAUNCHER=()
if ((RANKS > 1)); then
    set_mpirun_flags "$RANKS"
    LAUNCHER=(mpirun -n "$RANKS" "${MPIRUN_FLAGS[@]}")
fi

# The folders of all runs, whole seeds first: what an interrupted comparison has can be compared.
RUNS=()
for ((seed = 1; seed <= SEEDS; seed++)); do
    for objective in "${OBJECTIVES[@]}"; do
        RUNS+=("$OUT/$objective-seed-$seed")
    done
done

# finished RUN: a run writes this file last, and whole.
finished() {
    [[ -f $1/test-pairs.jsonl ]]
}

# begun RUN: does its folder hold the beginning of a run?
begun() {
    [[ -e $1/metrics.jsonl ]] || compgen -G "$1/step-*" >/dev/null
}

# run_command RUN: fills the array COMMAND.
run_command() {
    local name=${1##*/}
    COMMAND=("${LAUNCHER[@]}" "$PROGRAM" --config "$CONFIG" "${SETS[@]}" --set "loss.objective=${name%%-seed-*}"
        --set "data.seed=${name##*-seed-}" --set "output.dir=$1")
    if begun "$1"; then
        COMMAND+=(--resume)
    fi
}

if [[ $DRY == yes ]]; then
    for run in "${RUNS[@]}"; do
        if ! finished "$run"; then
            run_command "$run"
            quoted "${COMMAND[@]}"
        fi
    done
    quoted "$PROGRAM" compare "${RUNS[@]}"
    exit 0
fi
[[ -x $PROGRAM ]] || fail "$PROGRAM is not there" "./launch/setup.sh builds it; elsewhere: CARGO_TARGET_DIR=target/cuda launch/compare.sh ..."

# A folder belongs to one config with one set of --set: runs of two would be compared with each other.
mkdir -p "$OUT"
settings=$(printf '%s\n' "${SETS[@]}")
if [[ -e $OUT/config.toml || -e $OUT/settings.txt ]]; then
    if ! cmp -s "$CONFIG" "$OUT/config.toml" || [[ $(<"$OUT/settings.txt") != "$settings" ]]; then
        fail "$OUT holds a comparison of another config or other --set options" \
            "to go on with that one: its config is $OUT/config.toml, its options are in $OUT/settings.txt" \
            "for a new one: name another --out"
    fi
else
    printf '%s\n' "$settings" >"$OUT/settings.txt"
    cp "$CONFIG" "$OUT/config.toml"
fi

# clock SECONDS: as h:mm:ss.
clock() {
    printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 / 60 % 60)) $(($1 % 60))
}

left=0
for run in "${RUNS[@]}"; do
    finished "$run" || left=$((left + 1))
done
say "${#RUNS[@]} runs, $((${#RUNS[@]} - left)) of them finished; they are in $OUT"
# Ctrl-C ends the run that goes on, and this script with it.
trap 'say "" "interrupted; the same command goes on from here" >&2; exit 130' INT TERM
done_here=0
for run in "${RUNS[@]}"; do
    if finished "$run"; then
        continue
    fi
    time_left="time left is known after the first"
    if ((done_here > 0)); then
        time_left="about $(clock $((SECONDS * left / done_here))) left"
    fi
    run_command "$run"
    say "" "[run $((${#RUNS[@]} - left + 1)) of ${#RUNS[@]}, $(clock "$SECONDS") so far, $time_left]" "$(quoted "${COMMAND[@]}")"
    "${COMMAND[@]}" || fail "$run failed" "what went wrong stands above; once it is mended, the same command goes on from here"
    finished "$run" || fail "$run ended without test-pairs.jsonl" "does its config name test pairs?"
    if [[ $DROP == yes ]]; then
        rm -rf "$run"/step-[0-9]*
    fi
    left=$((left - 1))
    done_here=$((done_here + 1))
done

# The first name that is free: with more seeds the tables are others.
result=$OUT/comparison
number=2
while [[ -e $result.md || -e $result.jsonl ]]; do
    result=$OUT/comparison-$number
    number=$((number + 1))
done
"$PROGRAM" compare --json "${RUNS[@]}" >"$result.jsonl.partial"
"$PROGRAM" compare "${RUNS[@]}" >"$result.md.partial"
mv "$result.jsonl.partial" "$result.jsonl"
mv "$result.md.partial" "$result.md"
say ""
cat "$result.md"
say "" "tables      $result.md" "JSON lines  $result.jsonl"
