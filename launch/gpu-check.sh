#!/usr/bin/env bash
# What a person with GPUs runs first, after launch/setup.sh --cuda: checks one node and gives a first figure of speed.
# Not here: several nodes; measurements to compare versions with (benches/).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/gpu-check.sh

After launch/setup.sh --cuda: checks one node's driver, NCCL, the links between its GPUs, the numbers, and gives a first
figure of speed. One PASS or FAIL line a check, a summary to paste into an issue. Needs 3 GB of disk and about ten minutes,
most of them for building the tests. Changes nothing but target/ and a temporary folder.
END
}

only_help "$@"

cd "$ROOT"
need_cargo
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target} OMP_NUM_THREADS=1
LIBRARY=$(readlink -f "${LIBTORCH:-$DEPS/libtorch}/lib/libtorch_cpu.so") || true
[[ -e ${LIBRARY%/*}/libtorch_cuda.so ]] || fail "there is no libtorch_cuda.so beside ${LIBRARY:-libtorch}" "launch/setup.sh --cuda"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
summary=()
failed=0

# check NAME COMMAND...: runs the command, and says whether it ended well; its last lines follow where it did not.
check() {
    local name=$1 mark=PASS
    shift
    if ! "$@" >"$WORK/log" 2>&1; then
        mark=FAIL
        failed=$((failed + 1))
    fi
    say "$mark  $name"
    summary+=("$mark  $name")
    if [[ $mark == FAIL ]]; then
        tail -n 30 "$WORK/log"
    fi
    return 0
}

# note LINES: figures that belong to the check before.
note() {
    local line
    while IFS= read -r line; do
        [[ -n $line ]] || continue
        say "      $line"
        summary+=("      $line")
    done <<<"$1"
}

# found PATTERN: the lines of the last check's output that match.
found() {
    grep -E "$1" "$WORK/log" || true
}

# gpu_test RANKS NAME: one test of tests/all/gpu.rs, on so many ranks.
gpu_test() {
    mpirun -n "$1" --oversubscribe --bind-to none "$PROGRAM" "gpu::$2" --exact --ignored --nocapture
}

golden() {
    HAF_DIST_TEST_GOLDEN=$1 cargo test --release --test all -- --nocapture --exact \
        golden::losses_and_every_gradient_equal_pytorchs_in_every_packing
}

# Every pair of GPUs can read each other's memory: the matrix of nvidia-smi has nothing but X and OK.
peers() {
    nvidia-smi topo -p2p r | tee "$WORK/peers"
    ! grep -E '^ *GPU[0-9]+[[:space:]]' "$WORK/peers" | grep -E '[[:space:]](CNS|GNS|TNS|NS|U)([[:space:]]|$)'
}

# A few steps of the quickstart's model on one GPU.
throughput() {
    "$CARGO_TARGET_DIR/release/haf-dist" --config configs/quickstart.toml --set output.dir="$WORK/run" \
        --set data.cache_dir="$WORK/cache" --set train.steps=30 --set train.pairs_per_step=128 \
        --set train.tokens_per_micro_batch=16384 --set 'data.dev=[]' --set 'data.test=[]'
}

if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
summary+=("haf-dist $(git describe --always --dirty 2>/dev/null || echo unknown), $(date -u +%F)")
check "the driver answers" nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
note "$(found ,)"
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU' || true)
((gpus > 0)) || fail "no GPU is visible" "nvidia-smi must list one; in a container: start it with --gpus all"

build() {
    cargo build --release && cargo test --release --test all --no-run
}
check "the program and its tests compile" build
PROGRAM=$(sed -n 's/.*Executable tests\/all\/main.rs (\(.*\))/\1/p' "$WORK/log")
[[ -n $PROGRAM ]] || fail "the tests were not built" "the lines above say why"

if ((gpus > 1)); then
    check "GPUs reach each other's memory (without it NCCL goes through the host)" peers
fi
check "NCCL sums ones over $gpus GPU(s)" gpu_test "$gpus" all_reduce_of_ones
note "$(found '(NCCL [0-9]|all-reduce +[0-9])')"
check "golden numbers on CUDA in f32, to 1e-4" golden "cuda f32"
note "$(found 'largest relative')"
check "golden numbers on CUDA in bf16, losses to 5e-2, gradients to 3e-1" golden "cuda bf16"
note "$(found 'largest relative')"
ranks=$((gpus > 1 ? 2 : 1))
check "$ranks rank(s) over NCCL, one GPU and the CPU train the same, to 1e-4" \
    gpu_test "$ranks" the_trajectory_is_the_same_over_nccl_alone_and_on_the_cpu
note "$(found 'differ by')"
check "a large bf16 matrix product" gpu_test 1 the_rate_of_a_matrix_product
note "$(found 'matrix product:')"
rate=$(sed -n 's/.*matrix product: \([0-9.]*\).*/\1/p' "$WORK/log")
check "30 steps of the quickstart's model on one GPU, bf16" throughput
if [[ -s $WORK/run/metrics.jsonl ]]; then
    # Steps of the second half, when everything is warm; the model has 134.5 M parameters, and a step costs 6 operations
    # a parameter and a token. Tokens that pairs share are computed, and counted, once.
    note "$(sed -n 's/.*"tokens_per_s":\([0-9.]*\).*/\1/p' "$WORK/run/metrics.jsonl" | tail -n 15 | sort -n | awk -v peak="${rate:-0}" '
        { tokens[NR] = $1 }
        END {
            median = tokens[int((NR + 1) / 2)]
            printf "%.0f tokens/s", median
            if (peak > 0) printf ", MFU %.1f%% of that product", 100 * 6 * 134.5e6 * median / (peak * 1e12)
            print ""
        }')"
fi

say "" "--- to paste into an issue ---" "${summary[@]}"
if ((failed > 0)); then
    say "$failed check(s) failed"
    exit 1
fi
say "all checks passed; it was one node with $gpus GPU(s)"
