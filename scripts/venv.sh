# Sourced by the other scripts: a virtual environment in .venv with this project in it.
#
#   ensure_venv EXTRAS    e.g. "ui,fast". Makes .venv if there is none, installs if this tree or the wish has changed.
#
# DLEDGER_PYTHON names the interpreter to use; otherwise the newest python3.x (3.11 or newer) on the PATH. DLEDGER_VENV
# names an environment that is to be used as it is: nothing is installed.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${DLEDGER_VENV:-$repository/.venv}
venv_is_given=${DLEDGER_VENV:+yes}

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

find_python() {
    local candidate
    for candidate in ${DLEDGER_PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    die "dledger needs Python 3.11 or newer and found none (DLEDGER_PYTHON=/path/to/python names one)."
}

make_venv() {
    local python
    python=$(find_python)
    say "making .venv with $("$python" --version 2>&1)"
    if ! "$python" -m venv "$venv" >"$repository/.venv.log" 2>&1; then
        rm -rf "$venv"
        say "$(tail -n 5 "$repository/.venv.log")"
        rm -f "$repository/.venv.log"
        die "could not make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    rm -f "$repository/.venv.log"
}

# What decides whether an installation is still good: the project file, the interpreter, and the extras wished for.
stamp_of() {
    { cat "$repository/pyproject.toml"; "$venv/bin/python" -c 'import sys; print(sys.version)'; echo "$1"; } | cksum
}

ensure_venv() {
    local extras=$1 stamp_file="$venv/.dledger-installed-${1//,/-}"
    if [[ -n $venv_is_given ]]; then
        export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
        return 0
    fi
    [[ -e $venv ]] || make_venv
    if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        die "$venv does not work (moved, or an old Python); remove it and try again"
    fi
    "$venv/bin/python" -c 'import pip' 2>/dev/null || "$venv/bin/python" -m ensurepip >&2 ||
        die "$venv has no pip; remove it and try again"
    if [[ -f $stamp_file && $(cat "$stamp_file") == "$(stamp_of "$extras")" ]]; then
        return 0
    fi
    say "installing dledger[$extras] into .venv (about a minute the first time)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$repository[$extras]" >&2 ||
        die "pip could not install the project; see above"
    stamp_of "$extras" >"$stamp_file"
}
