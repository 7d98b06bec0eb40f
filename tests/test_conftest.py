"""Tests that failed are run again where the machine stood still, and as often as the run forgives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

ATTEMPTS = """
from pathlib import Path
import conftest

def attempt(stalled):
    seen = Path(__file__).with_name("attempts")
    count = len(seen.read_text()) if seen.exists() else 0
    seen.write_text("x" * (count + 1))
    conftest.watch.worst_s = 1.0 if stalled else 0.0
    return count
"""


def run(folder, body, *arguments):
    """Run a test file in a pytest of its own; return (exit code, output, attempts)."""
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_one.py").write_text(ATTEMPTS + body)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(folder)],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, len((folder / "attempts").read_text())


@pytest.mark.parametrize(
    ("body", "code", "attempts"),
    [
        ("def test_it(): assert attempt(stalled=True) == 1", 0, 2),
        ("def test_it(): assert attempt(stalled=False) == 1", 1, 1),
        ("def test_it(): assert attempt(stalled=True) == 9", 1, 5),
        ("def test_it(): attempt(stalled=True)", 0, 1),
    ],
    ids=["failed in a stall", "failed without", "fails always", "passed in a stall"],
)
def test_who_gets_another_attempt(tmp_path, body, code, attempts):
    found = run(tmp_path, body)
    assert (found[0], found[2]) == (code, attempts), found[1]
    assert ("test_it (call): the machine stood still for 1.00 s" in found[1]) == (attempts > 1)


@pytest.mark.parametrize(
    ("forgive", "passes_at", "code", "attempts"),
    [(1, 1, 0, 2), (1, 2, 1, 2), (3, 2, 0, 3), (3, 9, 1, 4)],
    ids=["once", "too seldom", "twice", "fails always"],
)
def test_as_many_failures_as_a_run_forgives_are_run_again_and_named(tmp_path, forgive, passes_at, code, attempts):
    found = run(tmp_path, f"def test_it(): assert attempt(stalled=False) == {passes_at}", f"--forgive={forgive}")
    assert (found[0], found[2]) == (code, attempts), found[1]
    assert f"test_it (call): forgiven, {forgive - 1} more would be: look why" in found[1]
    assert f"assert 0 == {passes_at}" in found[1]


def test_what_is_forgiven_is_counted_over_the_whole_run(tmp_path):
    body = "def test_it(): assert attempt(stalled=False) == 1\ndef test_other(): assert attempt(stalled=False) == 3\n"
    assert run(tmp_path, body, "--forgive=1")[::2] == (1, 3)


def test_the_clock_is_watched(tmp_path):
    """A thread that may not run for half a second is seen to stand still."""
    body = "import sys\ndef test_it():\n    was = sys.getswitchinterval()\n    sys.setswitchinterval(5)\n"
    body += "    try: sum(range(30_000_000))\n    finally: sys.setswitchinterval(was)\n"
    body += "    assert conftest.watch.is_alive()\n    assert attempt(stalled=conftest.watch.stood_still()) == 1\n"
    code, output, attempts = run(tmp_path, body)
    assert (code, attempts) == (0, 2), output


def test_the_next_attempt_waits_until_the_machine_keeps_time(tmp_path):
    body = "def test_it():\n    assert conftest.watch.worst_s < 0.3\n    assert attempt(stalled=True) == 1\n"
    body += "    assert conftest.waited == [True]\n"
    body += "conftest.waited = []\nreal = conftest.watch.wait_for_calm\n"
    body += (
        "conftest.watch.wait_for_calm = lambda: (real(), conftest.waited.append(not conftest.watch.stood_still()))\n"
    )
    code, output, attempts = run(tmp_path, body)
    assert (code, attempts) == (0, 2), output


def test_what_a_forgiven_attempt_leaves_open_is_no_other_tests_fault(tmp_path):
    body = "import gc, pytest\npytestmark = pytest.mark.filterwarnings('error')\n"
    body += "def test_it():\n    left = open(__file__)\n    assert attempt(stalled=True) == 1\n    left.close()\n"
    body += "def test_other():\n    gc.collect()\n"
    code, output, attempts = run(tmp_path, body)
    assert (code, attempts) == (0, 2), output
