#!/usr/bin/env bash
# Unmodified RocketMQ clients against real brokers: Apache's Java and Go clients, PyPI's rocketmq (C++), npm's ali-ons.
#   scripts/interop.sh [PYTEST ARGUMENTS]
#
# The clients install themselves into .venv-interop-* the first time. Where java, javac, mvn, go, node or a registry is not
# there, the tests that need it are skipped by name. About ten minutes; given up after DLEDGER_INTEROP_TIMEOUT_S (1800).
#
#   scripts/interop.sh -m "interop and slow"             every scenario again while masters are killed (half an hour)
#   DLEDGER_INTEROP_KILLS=20 scripts/interop.sh -k masters_are_killed
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

cd "$repository"
ensure_venv "test,ui,fast"
timeout "${DLEDGER_INTEROP_TIMEOUT_S:-1800}" \
    "$venv/bin/python" -m pytest -rs -m "interop and not slow" tests/interop "$@"
