#!/usr/bin/env bash
# The page and the reports in a real Chromium, driven by playwright.  scripts/browser.sh [PYTEST ARGUMENTS]
#
# Installs the extra `browser` into .venv. Where no Chromium is installed it installs the distribution's, as root and if
# apt-get answers; otherwise the tests are skipped by name. Under a minute on a machine of its own; given up after
# DLEDGER_BROWSER_TIMEOUT_S (300).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

has_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

install_chromium() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null 2>&1; then
        say "no Chromium, and only root can install it, with apt-get; the tests that need it are skipped"
        return 0
    fi
    say "installing chromium with apt-get"
    if ! { timeout 60 apt-get -qq update && DEBIAN_FRONTEND=noninteractive timeout 240 apt-get -qq install \
        --no-install-recommends --yes chromium; } >/dev/null 2>&1; then
        say "apt-get could not install chromium; the tests that need it are skipped"
    fi
}

cd "$repository"
ensure_venv "test,ui,fast,browser"
has_chromium >/dev/null 2>&1 || install_chromium
limit_s=${DLEDGER_BROWSER_TIMEOUT_S:-300}
code=0
timeout --signal=INT --kill-after=20 "$limit_s" "$venv/bin/python" -m pytest -rs \
    tests/dashboard/test_page.py tests/chaos/test_report.py \
    tests/dev/test_session.py::test_a_new_user_kills_the_leader_and_sees_the_election "$@" || code=$?
[[ $code != 124 ]] || say "given up after $limit_s s; DLEDGER_BROWSER_TIMEOUT_S gives it longer"
exit "$code"
