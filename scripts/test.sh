#!/usr/bin/env bash
# Everything that is checked: ruff, mypy --strict, pytest.  scripts/test.sh [PYTEST ARGUMENTS]
#
# Makes .venv and installs what the tests need if need be. Stops at the first failure.
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
step "$python" -X no_debug_ranges -m pytest "$@"
say
say "all checks passed"
