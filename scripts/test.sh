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
step "$python" -m pytest "$@"
say
say "all checks passed"
