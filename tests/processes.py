"""Looking at processes that a test started, or that what it started left behind."""

from __future__ import annotations

from dledger.dev.state import process_state


def runs(pid: int | None) -> bool:
    """Whether a process runs. One that has ended does not, though nobody has collected it: an orphan's init may be slow."""
    return pid is not None and process_state(pid) not in {"", "Z"}
