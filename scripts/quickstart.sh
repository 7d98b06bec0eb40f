#!/usr/bin/env bash
# Three real nodes, a real file, kill -9 of the leader half-way, and a verdict:  scripts/quickstart.sh [FILE] [--keep]
#
# Makes .venv and installs the project into it if need be. Exit code 0: PASS, 6: FAIL.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

ensure_venv "ui,fast"
exec "$venv/bin/python" -m dledger.quickstart --data-dir "$repository/dledger-quickstart-data" "$@"
