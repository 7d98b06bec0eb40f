"""What a dev group leaves in its folder so that other commands find it: who runs, where, and how to ask.

``dev.json`` (readable by its owner alone, for it holds the token) describes the group; ``n0.pid`` … name the processes
as *pid and start time*, so that a pid which the kernel has given to somebody else is never signalled. No heavy imports.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Final

from dledger.errors import DLedgerError, UnavailableError

__all__ = [
    "DATA_VARIABLE",
    "DEFAULT_DIRECTORY",
    "DevState",
    "FolderLock",
    "data_directory",
    "live_pid",
    "pid_path",
    "process_state",
    "signal_process",
    "write_pid",
]

DEFAULT_DIRECTORY: Final = "dledger-dev"
DATA_VARIABLE: Final = "DLEDGER_DEV_DATA"
_STATE_FILE: Final = "dev.json"
_LOCK_FILE: Final = "dev.lock"
_SCHEMA: Final = "dledger.dev/v1"


def data_directory(given: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the dev group: as given, else ``DLEDGER_DEV_DATA``, else ``./dledger-dev``."""
    return Path(given or os.environ.get(DATA_VARIABLE) or DEFAULT_DIRECTORY).absolute()


def _stat_fields(pid: int) -> list[str]:
    """Return ``/proc/PID/stat`` from the state on; empty if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def process_state(pid: int) -> str:
    """Return the kernel's letter for a process (R, S, T: stopped by a signal, Z: ended); empty if there is none."""
    fields = _stat_fields(pid)
    return fields[0] if fields else ""


def _start_time(pid: int) -> str:
    fields = _stat_fields(pid)
    return fields[19] if len(fields) > 19 else ""


def pid_path(directory: Path, name: str) -> Path:
    """Where the process of ``name`` (a node id, ``namesrv``) is named."""
    return directory / f"{name}.pid"


def write_pid(path: Path, pid: int) -> None:
    """Name a running process in ``path``, at once or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(f"{pid} {_start_time(pid)}\n", encoding="ascii")
    temporary.replace(path)


def live_pid(path: Path) -> int | None:
    """Return the pid of a pid file if that very process still runs."""
    try:
        pid_text, start = path.read_text(encoding="ascii").split()
        pid = int(pid_text)
    except (OSError, ValueError):
        return None
    return pid if _start_time(pid) == start and process_state(pid) != "Z" else None


def signal_process(path: Path, number: signal.Signals) -> int:
    """Send a signal to the process of a pid file; returns its pid.

    Raises:
        UnavailableError: it does not run.
    """
    pid = live_pid(path)
    if pid is None:
        raise UnavailableError(f"{path.stem} does not run ({path})")
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise UnavailableError(f"{path.stem} does not run (pid {pid} has just ended)") from None
    return pid


@dataclass(frozen=True, slots=True)
class DevState:
    """One dev group. ``started``: the supervisor's start time as the kernel counts it; ``page``: URL without token."""

    pid: int
    group: str
    peers: str
    node_ids: tuple[str, ...]
    ports: tuple[int, ...]
    control_port: int
    token: str
    page: str = ""
    namesrv: str = ""
    started: str = ""
    schema: str = field(default=_SCHEMA)

    @property
    def page_url(self) -> str:
        """The page with the token that allows its buttons, behind ``#``: browsers send that to nobody."""
        return f"{self.page}#token={self.token}" if self.page else ""

    @property
    def running(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return bool(self.started) and _start_time(self.pid) == self.started and process_state(self.pid) != "Z"

    def save(self, directory: Path) -> None:
        """Write ``dev.json`` in ``directory`` as this process's, readable by its owner alone."""
        row = asdict(self) | {"started": _start_time(self.pid)}
        temporary = directory / f"{_STATE_FILE}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(row, file, indent=1)
        temporary.replace(directory / _STATE_FILE)

    @classmethod
    def load(cls, directory: Path) -> DevState | None:
        """Read ``dev.json``; None where there is none.

        Raises:
            DLedgerError: it is there and cannot be read.
        """
        path = directory / _STATE_FILE
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            row["node_ids"], row["ports"] = tuple(row["node_ids"]), tuple(row["ports"])
            return cls(**row)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DLedgerError(f"{path} cannot be read ({error}); remove it, or start with --fresh") from None


class FolderLock:
    """Only one supervisor in a folder. The kernel lets go of it whenever and however the process ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _LOCK_FILE
        self._file: IO[str] | None = None

    def take(self) -> bool:
        """Take it; False if another process has it.

        Raises:
            DLedgerError: the folder cannot be written.
        """
        try:
            file = open(self._path, "w", encoding="ascii")  # noqa: SIM115 - held until `release`
        except OSError as error:
            raise DLedgerError(f"{self._path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
