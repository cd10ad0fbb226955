#!/usr/bin/env bash
# What a person with GPUs runs first, after launch/setup.sh --cuda: checks one node and gives a first figure of speed.
# Not here: several nodes; measurements to compare versions with (benches/).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/gpu-check.sh

After launch/setup.sh --cuda, on one node: the driver, the links between its GPUs, NCCL and the rate of an all-reduce; every
operation against automatic differentiation and its plain formula, and its rate against a device copy; golden numbers; one
GPU against two and against the CPU; steps at the shapes of a 1 B and an 8 B model (a few blocks, random weights) with their
MFU and their memory beside what `haf-dist plan` says; where the time of a step goes; and what TRL does on the same GPU.

One PASS, FAIL or SKIP line a check, figures below it, and all of it again at the end to paste into an issue. Needs a GPU of
48 GB for the larger shape, 3 GB of disk and about twenty minutes, half of them for building the tests. Changes nothing but
target/ and a temporary folder. CUDA_VISIBLE_DEVICES chooses among the GPUs.

Environment: PYTHON: a Python with torch for CUDA, transformers, trl and datasets (benches/peers.txt) for the last checks
[default: python3]; without one they are skipped.
END
}

only_help "$@"

cd "$ROOT"
need_cargo
# CUDA numbers GPUs as nvidia-smi does.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target} OMP_NUM_THREADS=1 CUDA_DEVICE_ORDER=PCI_BUS_ID
# The tests are started without haf-dist, which sets this.
[[ -n ${PYTORCH_ALLOC_CONF:-}${PYTORCH_CUDA_ALLOC_CONF:-} ]] || export PYTORCH_ALLOC_CONF=expandable_segments:True
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

# skip NAME WHY: a check that cannot be made here.
skip() {
    say "SKIP  $1: $2"
    summary+=("SKIP  $1: $2")
}

# gpu_test RANKS NAME: one ignored test of tests/all, on so many ranks.
gpu_test() {
    mpirun -n "$1" --oversubscribe --bind-to none "$PROGRAM" "$2" --exact --ignored --nocapture
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

# What connects GPUs, as nvidia-smi's matrix has it: NV and a number of links, or the way over the host.
links() {
    nvidia-smi topo -m
}

# on_gpu PATTERN: whether the check so far has printed that it computes on a GPU.
on_gpu() {
    grep -qE "$1" "$WORK/log" || {
        echo "it did not compute on a GPU: nothing above says $1"
        return 1
    }
}

# Kernels of a block: two passes, the second with a block more, stand between kernels that no pass starts (triu).
block_kernels() {
    nsys profile --trace=cuda --force-overwrite=true --output="$WORK/block" \
        "$PROGRAM" gpu_figures::the_kernels_of_a_block --exact --ignored --nocapture &&
        nsys stats --quiet --report=cuda_gpu_trace --format=csv "$WORK/block.nsys-rep" >"$WORK/block.csv" &&
        awk '
            /triu_tril/ { marks++; next }
            /\[CUDA mem/ { next }
            /^[0-9]/ { kernels[marks]++ }
            END {
                if (marks != 3) {
                    printf "the trace has %d of 3 marks\n", marks
                    exit 1
                }
                printf "a block is %d kernels in the trace\n", kernels[2] - kernels[1]
            }' "$WORK/block.csv"
}

# A few steps of the quickstart's model on one GPU, traced.
throughput() {
    "$HAF_DIST" --config configs/quickstart.toml --trace "$WORK/trace.json" --set output.dir="$WORK/run" \
        --set data.cache_dir="$WORK/cache" --set train.steps=30 --set train.pairs_per_step=128 \
        --set train.tokens_per_micro_batch=16384 --set 'data.dev=[]' --set 'data.test=[]' &&
        on_gpu 'on GPU [0-9]'
}

# breakdown TRACE: milliseconds a step of each span of the thread that steps, the longest first: what the host computed or
# queued, and what it waited for.
breakdown() {
    awk -F'"' '
        /"ph":"X"/ {
            duration = thread = $0
            sub(/.*"dur":/, "", duration)
            sub(/.*"tid":/, "", thread)
            times[thread + 0, $4] += duration
            if ($4 == "step") {
                steps++
                stepping = thread + 0
            }
        }
        END {
            for (key in times) {
                split(key, part, SUBSEP)
                if (steps > 0 && part[1] == stepping) printf "%.3f ms a step: %s\n", times[key] / 1000 / steps, part[2]
            }
        }' "$1" | sort -rn | head -n 14
}

# A peer on the same GPU, and this program on the same pairs; each prints one line of JSON.
SOCIALIQA=$DEPS/socialiqa/train.jsonl
SMALL=$DEPS/SmolLM2-135M-Instruct
peer() {
    "$PYTHON" benches/peer.py --device cuda --mode "$1" --model "$SMALL" --pairs "$SOCIALIQA" --count 256 \
        --micro-batch 16 --accumulate 1 --dtype bf16
}
ours() {
    "$HAF_DIST" bench --model "$SMALL" --pairs "$SOCIALIQA" --objective "$1" --count 256 --dtype bf16 \
        --tokens-per-micro-batch 16384 --json && on_gpu '"device":"Cuda\('
}
peers_are_there() {
    "$PYTHON" -c 'import datasets, torch, transformers, trl; assert torch.cuda.is_available(), "torch sees no GPU"'
}
# pairs_per_second: of the line of JSON that the last check has printed.
pairs_per_second() {
    sed -n 's/.*"pairs_per_s": *\([0-9.]*\).*/\1/p' "$WORK/log" | tail -n 1
}

PYTHON=${PYTHON:-python3}
HAF_DIST=$CARGO_TARGET_DIR/release/haf-dist
if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
summary+=("haf-dist $(git describe --always --dirty 2>/dev/null || echo unknown), $(date -u +%F)")
check "the driver answers" nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
note "$(found ,)"
visible_gpus
gpus=${#VISIBLE[@]}
((gpus > 0)) || fail "no GPU is visible" "nvidia-smi must list one; in a container: start it with --gpus all" \
    "CUDA_VISIBLE_DEVICES, where it is set, names those to check"

build() {
    cargo build --release && cargo test --release --test all --no-run
}
check "the program and its tests compile" build
PROGRAM=$(sed -n 's/.*Executable tests\/all\/main.rs (\(.*\))/\1/p' "$WORK/log")
[[ -n $PROGRAM ]] || fail "the tests were not built" "the lines above say why"

if ((gpus > 1)); then
    check "links between GPUs" links
    note "$(found '^(GPU|[[:space:]]+GPU)')"
    check "GPUs reach each other's memory (without it NCCL goes through the host)" peers
fi
check "NCCL sums ones over $gpus GPU(s)" gpu_test "$gpus" gpu::all_reduce_of_ones
note "$(found '(NCCL [0-9]|all-reduce +[0-9])')"
check "operations and attention equal automatic differentiation" gpu_test 1 ops::the_operations_of_a_gpu_conform
check "each operation agrees with its plain formula at the widths of an 8 B model" \
    gpu_test 1 gpu_figures::each_operation_agrees_and_its_rate
note "$(found '(device copy:|^operation )')"
check "what a run checks at its start takes under two seconds" \
    gpu_test 1 gpu_figures::the_check_at_the_start_takes_under_two_seconds
note "$(found 'start check:')"
check "golden numbers on CUDA in f32, to 1e-4" golden "cuda f32"
note "$(found 'largest relative')"
check "golden numbers on CUDA in bf16, losses to 5e-2, gradients to 3e-1" golden "cuda bf16"
note "$(found 'largest relative')"
ranks=$((gpus > 1 ? 2 : 1))
check "$ranks rank(s) over NCCL, one GPU and the CPU train the same, to 1e-4" \
    gpu_test "$ranks" gpu::the_trajectory_is_the_same_over_nccl_alone_and_on_the_cpu
note "$(found 'differ by')"
check "a large bf16 matrix product" gpu_test 1 gpu::the_rate_of_a_matrix_product
note "$(found 'matrix product:')"
rate=$(sed -n 's/.*matrix product: \([0-9.]*\).*/\1/p' "$WORK/log")
if have nsys; then
    check "a trace of a block's kernels" block_kernels
    note "$(found 'a block is')"
else
    skip "a trace of a block's kernels" "nsys is not installed"
fi
for shape in a_1b an_8b; do
    check "steps at the shape of ${shape/_/ } model, memory within 110% of the plan" \
        gpu_test 1 "gpu_figures::steps_at_the_shape_of_${shape}_model"
    note "$(found '^shape ')"
done
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

if [[ -s $WORK/trace.json ]]; then
    note "$(breakdown "$WORK/trace.json")"
fi

# Compared where this Python has what the peers need.
if ! peers_are_there >"$WORK/log" 2>&1; then
    skip "peers of benches/peer.py on this GPU" "$PYTHON: $(tail -n 1 "$WORK/log")"
else
    for pair in trl-reward:reward trl-dpo:policy hybrid-tuned:hybrid; do
        check "peer ${pair%:*}" peer "${pair%:*}"
        theirs=$(pairs_per_second)
        check "haf-dist bench, objective ${pair#*:}" ours "${pair#*:}"
        note "$(awk -v ours="$(pairs_per_second)" -v theirs="${theirs:-0}" -v name="${pair%:*}" 'BEGIN {
            if (ours > 0 && theirs > 0) printf "%.1f pairs/s, %s %.1f: %.2f times", ours, name, theirs, ours / theirs }')"
    done
fi

say "" "--- to paste into an issue ---" "${summary[@]}"
if ((failed > 0)); then
    say "$failed check(s) failed"
    exit 1
fi
say "all checks passed; it was one node with $gpus GPU(s)"
