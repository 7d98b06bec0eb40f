#!/usr/bin/env bash
# Everything that is checked: ruff, mypy --strict, pytest.  scripts/test.sh [PYTEST ARGUMENTS]
#
# Makes .venv and installs what the tests need if need be. Stops at the first check that fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

step() { say; say "== $*"; "$@"; }

cd "$repository"
ensure_venv "test,ui,fast"
python="$venv/bin/python"
step "$python" -m ruff check .
step "$python" -m ruff format --check .
step "$python" -m mypy --strict -p dledger -p broker_adapter
# Without marks under the failing expression: making them parses, and the parser of Python 3.11 gives up where the garbage
# collector makes a traceback while pytest makes another (gh-106905).
pytest=("$python" -X no_debug_ranges -m pytest)

# Whether nothing was said of which tests are meant.
all=yes
for argument in "$@"; do
    [[ $argument =~ ^(--forgive(=.*)?|[0-9]+)$ ]] || all=
done

code=0
if [[ -z $all ]]; then
    step "${pytest[@]}" "$@"
else
    # Most tests wait for processes, and simulated time is nobody's: the simulator's tests run meanwhile, at low priority.
    beside=$(mktemp) simulation=
    trap '[[ -z $simulation ]] || kill "$simulation" 2>/dev/null || true; rm -f "$beside"' EXIT
    nice -n 10 "${pytest[@]}" -p no:cacheprovider tests/simulation "$@" >"$beside" 2>&1 &
    simulation=$!
    step "${pytest[@]}" --ignore=tests/simulation "$@" || code=$?
    say
    say "== pytest tests/simulation (meanwhile, at low priority)"
    wait "$simulation" || code=$?
    cat "$beside"
fi
[[ $code == 0 ]] || exit "$code"
say
say "all checks passed"
