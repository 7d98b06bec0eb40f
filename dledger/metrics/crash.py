"""The crash file: what a node knew when it stopped by itself.

Written once, beside the node's data (or to the temporary folder, where that cannot be written). It holds no entry, no
token, no key: states, counters, events, and the settings that are no secrets. Secrets stand in files of their own
(``tokensFile``, ``tlsKeyFile``), of which only the paths are settings.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from dledger.version import VERSION

if TYPE_CHECKING:
    from dledger.driver.driver import Driver

__all__ = ["write_crash_file"]

_KEPT: Final = 8
"""Crash files in one folder; the oldest go. A node that is restarted over and over must not fill the disk."""


def _report(driver: Driver, error: BaseException) -> dict[str, object]:
    config = driver.config
    status = driver.status()
    names = [name for name in status.__slots__ if name not in {"peers", "events", "tail"}]
    return {
        "schema": "dledger.crash/v1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "group": config.group,
        "node": config.self_id,
        "pid": os.getpid(),
        "version": VERSION,
        "python": platform.python_version(),
        "error": {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exception(error)},
        "status": {name: getattr(status, name) for name in names},
        "peers": [{name: getattr(peer, name) for name in peer.__slots__} for peer in status.peers],
        "events": [
            {"number": event.number, "age_ms": event.age_ms, "name": event.name, "facts": dict(event.facts)}
            for event in status.events
        ],
        "event_counts": dict(driver.recent.counts),
        "settings": {setting.key: text for setting, text, _ in config.lines()},
    }


def _write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    for old in sorted(directory.glob("crash-*.json"))[:-_KEPT]:
        old.unlink(missing_ok=True)
    return path


def write_crash_file(driver: Driver, error: BaseException) -> Path | None:
    """Write what ``driver`` knows and return the file; None if it cannot be written anywhere (the log says why).

    Never raises: the process is about to end for a better reason.
    """
    log = structlog.get_logger().bind(group_id=driver.group, node_id=driver.node_id)
    name = f"crash-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.json"
    try:
        text = json.dumps(_report(driver, error), ensure_ascii=False, indent=1, default=str) + "\n"
    except Exception as problem:
        log.error("crash_file_failed", error=repr(problem))
        return None
    places = [driver.config.node_dir] if driver.config.store_type == "FILE" else []
    for directory in [*places, Path(tempfile.gettempdir())]:
        try:
            path = _write(directory, name, text)
        except OSError as problem:
            log.error("crash_file_failed", directory=os.fspath(directory), error=str(problem))
            continue
        log.critical("crash_file_written", path=os.fspath(path))
        return path
    return None
