"""What holds for every test: no deadline for examples, and no verdict on timing from a machine that stood still.

Many tests are about real processes and real time: who is silent for an election timeout is deposed. Where a machine
shared with others stands still for longer than that, the group does what it should and the test fails. So the clock is
watched, and a test that failed while it stood still is run again once the machine has kept time for a moment, four
times at most; each such case is named at the end. A test that fails on a machine that keeps time fails for good, unless
the run forgives: `--forgive N`, which only continuous integration uses, runs up to N failures of the whole run again
and names them, too. Each is a fault to be looked at.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import warnings

import hypothesis
import pytest

STOOD_STILL_S = 0.3
"""Half of the default election timeout."""

_PERIOD_S = 0.05
_MOST_RERUNS = 4

_CALM_S = 1.0
_CALM_WITHIN_S = 15.0
"""A machine that does not keep time for a second within these is not waited for any longer."""

hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")


class Watch(threading.Thread):
    """Wakes up every 50 ms and notes by how much it was late at worst since the test began."""

    def __init__(self) -> None:
        super().__init__(name="watch-the-clock", daemon=True)
        self.worst_s = 0.0
        self.rerun: list[str] = []
        self.forgiveness = 0
        """How many failures on a machine that kept time may still be run again."""
        self.forgiven = False
        """Whether the attempt before this one failed and does not count."""
        self._woke_at = time.monotonic()

    def run(self) -> None:
        while True:
            self._look()
            self._woke_at = time.monotonic()
            time.sleep(_PERIOD_S)

    def _look(self) -> None:
        self.worst_s = max(self.worst_s, time.monotonic() - self._woke_at - _PERIOD_S)

    def stood_still(self) -> bool:
        self._look()  # a thread that stood still may not have woken yet
        return self.worst_s >= STOOD_STILL_S

    def wait_for_calm(self) -> None:
        """Wait until the machine has kept time for a second, but not for ever."""
        until = time.monotonic() + _CALM_WITHIN_S
        while time.monotonic() < until:
            self.worst_s = 0.0
            time.sleep(_CALM_S)
            if not self.stood_still():
                return

    def gives_another_attempt(self) -> bool:
        return self.stood_still() or self.forgiveness > 0


watch = Watch()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run this many failures again, of the whole run, though the machine kept time; they are named at the end"
    parser.addoption("--forgive", type=int, default=0, metavar="N", help=text)


def pytest_sessionstart(session: pytest.Session) -> None:
    watch.forgiveness = session.config.getoption("--forgive")
    watch.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.flaky(reruns=_MOST_RERUNS, condition=watch.gives_another_attempt))


def pytest_runtest_logstart() -> None:
    """Each attempt begins here."""
    if watch.forgiven:
        watch.forgiven = False
        _bury()
        if watch.stood_still():
            watch.wait_for_calm()
    watch.worst_s = 0.0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome == "rerun":
        watch.forgiven = True
        why = f"the machine stood still for {watch.worst_s:.2f} s"
        if not watch.stood_still():
            watch.forgiveness -= 1
            why = f"forgiven, {watch.forgiveness} more would be: look why\n{report.longreprtext}"
        watch.rerun.append(f"{report.nodeid} ({report.when}): {why}")


def _bury() -> None:
    """Collect what the failed attempt left open, now and in silence: else its warnings are another test's failure."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if watch.rerun:
        terminalreporter.section("failed and run again")
        for line in watch.rerun:
            terminalreporter.write_line(line)
