"""The preloaded disk: slow, full in the middle of a write, failing; and only where it is meant to be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dledger.chaos.disks import Disk, build_shim, why_no_shim

pytestmark = pytest.mark.skipif(why_no_shim() is not None, reason=f"skipped: {why_no_shim()}")

PROGRAM = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
def attempt(name, call):
    try:
        print(name, call())
    except OSError as error:
        print(name, 'errno', error.errno)
attempt('pwritev', lambda: os.pwritev(fd, [b'a' * 60, b'b' * 60], 0))
attempt('pwrite', lambda: os.pwrite(fd, b'c' * 60, 120))
attempt('fdatasync', lambda: os.fdatasync(fd))
attempt('fsync', lambda: os.fsync(fd))
attempt('fallocate', lambda: os.posix_fallocate(fd, 0, 4096))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def disk(library: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    made = Disk(library, tmp_path / "control", (tmp_path / "data").resolve())
    yield made
    made.close()


def write(disk: Disk, path: Path) -> dict[str, str]:
    """Write and sync in a process of its own, and return what each call said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        env={**os.environ, **disk.environment()},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


SOUND = {"pwritev": "120", "pwrite": "60", "fdatasync": "None", "fsync": "None", "fallocate": "None"}


def test_a_sound_disk_is_left_alone(disk: Disk, tmp_path: Path) -> None:
    assert write(disk, tmp_path / "data" / "file") == SOUND


def test_a_failing_sync(disk: Disk, tmp_path: Path) -> None:
    disk.fail_syncs()
    said = write(disk, tmp_path / "data" / "file")
    assert said == {**SOUND, "fdatasync": f"errno {errno.EIO}", "fsync": f"errno {errno.EIO}"}
    assert disk.failed_syncs == 2
    disk.heal()
    assert write(disk, tmp_path / "data" / "file") == SOUND


def test_a_full_disk_cuts_a_write_short_and_takes_no_other(disk: Disk, tmp_path: Path) -> None:
    disk.fill(100)
    said = write(disk, tmp_path / "data" / "file")
    assert said["pwritev"] == "100"
    assert said["pwrite"] == said["fallocate"] == f"errno {errno.ENOSPC}"
    assert said["fdatasync"] == "None"
    assert (tmp_path / "data" / "file").read_bytes() == b"a" * 60 + b"b" * 40
    assert disk.refused_writes == 1
    disk.heal()
    assert write(disk, tmp_path / "data" / "file") == SOUND


def test_a_slow_disk(disk: Disk, tmp_path: Path) -> None:
    disk.slow(0.2)
    began = time.monotonic()
    assert write(disk, tmp_path / "data" / "file") == SOUND
    assert time.monotonic() - began >= 0.4


def test_files_elsewhere_are_not_concerned(disk: Disk, tmp_path: Path) -> None:
    disk.fill(0)
    disk.fail_syncs()
    (tmp_path / "data-of-another").mkdir()
    assert write(disk, tmp_path / "file") == SOUND
    assert write(disk, tmp_path / "data-of-another" / "file") == SOUND
