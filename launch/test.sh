#!/usr/bin/env bash
# The set-up, then every check there is: format, lints, tests (those under mpirun too), documentation, scripts.
# Stops at the first that fails.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Usage: launch/test.sh [--yes]

Runs launch/setup.sh without its build, then every check there is, and stops at the first that fails: format, clippy with
warnings denied, all tests (those under mpirun too), documentation, the commands of README and docs, and the scripts where
shellcheck is installed.

  --yes   let the set-up install missing Debian packages without asking
  --help  this text
END
}

SETUP=(--no-build)
if [[ ${1:-} == --yes ]]; then
    SETUP+=(--yes)
    shift
fi
only_help "$@"

# check COMMAND...: runs it in sight and says how it went.
check() {
    local start=$SECONDS
    say "" "== $*"
    if ! "$@"; then
        fail "failed after $((SECONDS - start)) s: $(quoted "$@")" "mend that, then run launch/test.sh again"
    fi
    say "-- passed in $((SECONDS - start)) s: $*"
}

cd "$ROOT"
need_cargo
cargo fmt --version >/dev/null 2>&1 || fail "rustfmt is not installed" "rustup component add rustfmt"
cargo clippy --version >/dev/null 2>&1 || fail "clippy is not installed" "rustup component add clippy"
# cargo test builds the binary itself, after the checks that take seconds.
launch/setup.sh "${SETUP[@]}"
load_env

# Ranks and test threads share the cores: more threads each would only wait for one another.
export OMP_NUM_THREADS=1
# The tests call mpirun themselves, with the environment they find here.
set_mpirun_flags 3

check cargo fmt --check
if have shellcheck; then
    check shellcheck launch/*.sh launch/slurm.sbatch .ci/run
else
    say "" "shellcheck is not installed: the scripts are not checked"
fi
# One profile for all: a second one would compile the C++ bindings of libtorch a second time.
check cargo clippy --release --all-targets -- -D warnings
check env RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --document-private-items
# Tests of signals start from their defaults, which a background job or nohup has not.
check env --default-signal=HUP --default-signal=INT cargo test --release
# The system's may be too old; the set-up has found one that is not.
python=$DEPS/python/bin/python
[[ -x $python ]] || python=python3
check "$python" -m unittest discover --start-directory benches
check "$python" -m unittest discover --start-directory launch
check "$python" launch/test_docs.py
say "" "all checks passed in $SECONDS s"
