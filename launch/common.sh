# Shared by the scripts in launch/: where things are, how they speak, and how mpirun is called. Sourced, not run.
# Not here: any step of the set-up (setup.sh).
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEPS=$ROOT/.deps

# load_env: where setup.sh has laid out MPI or libclang itself, tells cargo and mpirun.
load_env() {
    # shellcheck disable=SC1091 # made by setup.sh
    [[ ! -f $DEPS/env.sh ]] || source "$DEPS/env.sh"
}

# say LINE...: lines of progress.
say() {
    printf '%s\n' "$@"
}

# fail TEXT HINT...: one error, what to do about it, and the end.
fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    local hint
    for hint in "$@"; do
        printf '  hint: %s\n' "$hint" >&2
    done
    exit 1
}

# unknown ARGUMENT: an argument that the script has no use for: says so, with the script's usage, and ends.
unknown() {
    printf 'error: unknown argument: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

# take OPTION VALUES...: the value of an option, checked to be there.
take() {
    (($# >= 2)) || fail "$1 needs a value" "launch/${0##*/} --help lists the options"
    printf '%s\n' "$2"
}

# one_option VARIABLE OPTION ARGUMENTS...: for a script that takes one option: sets the variable to its value; --help prints
# the script's usage, anything else is an error.
one_option() {
    local -n variable=$1
    local option=$2
    shift 2
    while (($# > 0)); do
        case $1 in
        "$option")
            # shellcheck disable=SC2034  # a name of the caller's variable
            variable=$(take "$@")
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) unknown "$1" ;;
        esac
        shift
    done
}

# have COMMAND: is it on the PATH?
have() {
    command -v "$1" >/dev/null 2>&1
}

# only_help ARGUMENTS...: for a script that takes none: --help prints its usage, anything else is an error.
only_help() {
    case ${1:-} in
    '') ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) unknown "$1" ;;
    esac
}

# help_or_arguments ARGUMENTS...: for a script that hands its arguments to haf-dist: --help prints its own usage, and no
# arguments at all are an error.
help_or_arguments() {
    case ${1:-} in
    '')
        printf 'error: haf-dist has nothing to do without arguments\n\n' >&2
        usage >&2
        exit 2
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    esac
}

# quoted WORDS...: the words as one line that can be pasted into a shell.
quoted() {
    local line
    printf -v line '%q ' "$@"
    printf '%s\n' "${line% }"
}

# visible_gpus: fills the array VISIBLE with an entry for each GPU that programs started from here see.
# shellcheck disable=SC2034 # the scripts read it
visible_gpus() {
    VISIBLE=()
    if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
        mapfile -t VISIBLE < <({ nvidia-smi --list-gpus 2>/dev/null || true; } | grep '^GPU' || true)
    elif [[ ! $CUDA_VISIBLE_DEVICES =~ ^[[:space:]]*(-1|NoDevFiles)?[[:space:]]*$ ]]; then
        IFS=, read -ra VISIBLE <<<"$CUDA_VISIBLE_DEVICES"
    fi
}

# need_cargo: puts cargo on the PATH and checks that it is new enough for Cargo.toml.
need_cargo() {
    local wanted found get
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"$/\1/p' "$ROOT/Cargo.toml")
    get="to get Rust: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\""
    # rustup's folder is on the PATH of login shells only.
    have cargo || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    have cargo || fail "cargo is not installed; Rust $wanted or newer is needed" "$get"
    found=$(cargo --version 2>/dev/null | cut -d' ' -f2) || fail "cargo does not start: $(cargo --version 2>&1 | head -n 1)" \
        "to choose a toolchain: rustup default stable"
    if [[ $(printf '%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1) != "$wanted" ]]; then
        fail "cargo is version $found; Rust $wanted or newer is needed" "to update: rustup update stable" "$get"
    fi
}

# set_mpirun_flags RANKS: fills the array MPIRUN_FLAGS with what Open MPI needs for so many ranks on this machine.
set_mpirun_flags() {
    # Bound to a core each, the ranks' communication threads would have to share it with the computation.
    MPIRUN_FLAGS=(--bind-to none)
    # Open MPI refuses to start more ranks than there are cores: hardware threads do not count, nor do cores that
    # this process may not use.
    local cores allowed
    cores=$(lscpu --parse=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l || true)
    allowed=$(nproc)
    if ((cores < $1 || allowed < $1)); then
        MPIRUN_FLAGS+=(--oversubscribe)
    fi
    # Open MPI refuses to run as root, the usual user of a container, unless told twice.
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}

# run_job COMMAND...: runs an mpirun so that Ctrl-C, SIGTERM and SIGHUP lose nothing. Of them mpirun ends its ranks within a
# second, before a checkpoint is whole; SIGUSR1 it hands on, and the ranks end the step under way, save it and exit with 143.
# The second one ends the job at once. What was ignored at the start, as under nohup, stays ignored.
run_job() {
    local job status seen=0
    asked=0
    # In a session of its own: the terminal's Ctrl-C is for this script alone.
    setsid "$@" &
    job=$!
    # shellcheck disable=SC2064 # the job's number is known now
    trap "stop_job $job" INT TERM HUP
    while :; do
        status=0
        wait "$job" || status=$?
        # A signal ends the wait, not the job.
        ((asked != seen)) || break
        seen=$asked
    done
    trap - INT TERM HUP
    return "$status"
}

stop_job() {
    asked=$((asked + 1))
    if ((asked == 1)); then
        kill -USR1 "$1" || true
    else
        kill -TERM "$1" || true
    fi
}

load_env
