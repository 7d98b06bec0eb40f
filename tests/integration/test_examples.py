"""The examples run as they stand and print what they promise."""

from __future__ import annotations

import asyncio
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dledger.local_group import free_ports
from tests.broker.harness import eventually, local_config, name_server, running
from tests.integration.conftest import REPOSITORY


def run(name: str, *arguments: str, environment: dict[str, str]) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-W", "error", str(REPOSITORY / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    return [line for line in found.stdout.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]


def test_embed_log_twice_on_one_folder(clean_environment: dict[str, str], tmp_path: Path) -> None:
    for life in range(2):
        address = f"127.0.0.1:{free_ports(1)[0]}"
        lines = run("embed_log.py", str(tmp_path), address, environment=clean_environment)
        assert lines[-1] == "stopped"
        assert f"LEADER in term {life + 1}" in lines
        assert sum(line.endswith(": hello") for line in lines) == life + 1, (
            "what the first life appended is still there"
        )
        assert "n0 is leader" in lines[-2]


def test_replicated_kv(clean_environment: dict[str, str], tmp_path: Path) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    lines = run("replicated_kv.py", str(tmp_path), *addresses, environment=clean_environment)
    assert lines == ["n1 reads: blue", "n2 reads: green", "n0 reads: None"]


@pytest.mark.asyncio
async def test_work_queue_blocking(processes, clean_environment: dict[str, str]) -> None:
    group = await processes(nodes=1)
    lines = run("work_queue_blocking.py", group.peers, group.group, environment=clean_environment)
    assert lines[-1] == "20 jobs"
    jobs = [line.split(";")[0] for line in lines[:-1]]
    for producer in range(4):
        own = [job for job in jobs if job.endswith(f"producer {producer}")]
        assert own == [f"done: job {number} of producer {producer}" for number in range(5)]


@pytest.mark.asyncio
async def test_produce_and_consume(clean_environment: dict[str, str], tmp_path: Path) -> None:
    async with name_server() as namesrv, running(local_config(tmp_path, namesrv)):
        await eventually(lambda: namesrv.routes.route("TBW102"))
        arguments = ("produce_and_consume.py", f"127.0.0.1:{namesrv.port}", "letters")
        for life in range(2):
            lines = await asyncio.to_thread(run, *arguments, environment=clean_environment)
            assert (lines[0], lines[-1]) == ("8 messages sent", "8 messages consumed")
            expected = [
                f"queue {queue} offset {2 * life + n}: message {4 * n + queue}" for queue in range(4) for n in (0, 1)
            ]
            assert lines[1:-1] == expected, "in order within a queue, and nothing twice"


def old_log(folder: Path, segment_bytes: int, entries: list[tuple[int, int, bytes]]) -> None:
    """Write (magic, term, body) as the Java DLedger does: no checksums, a blank record where an entry does not fit."""
    segments, pos = [bytearray()], 0
    for index, (magic, term, body) in enumerate(entries):
        size = 48 + len(body)
        room = segment_bytes - len(segments[-1])
        if size + 8 > room:
            segments[-1] += struct.pack(">ii", -1, room) + bytes(room - 8)
            segments.append(bytearray())
            pos += room
        segments[-1] += struct.pack(">iiqqqiiii", magic, size, index, term, pos, 0, 0, 0, len(body)) + body
        pos += size
    (folder / "data").mkdir(parents=True)
    for number, data in enumerate(segments):
        (folder / "data" / f"{number * segment_bytes:020d}").write_bytes(data.ljust(segment_bytes, b"\0"))


@pytest.mark.asyncio
async def test_import_dledger(processes, clean_environment: dict[str, str], tmp_path: Path) -> None:
    bodies = [b"old body %d" % number for number in range(600)]
    entries = [(1, 3 + number // 400, body) for number, body in enumerate(bodies)]
    entries.insert(400, (2, 4, b""))  # the no-op with which term 4 begins
    old_log(tmp_path / "dledger-n0", 4096, entries)
    group = await processes(nodes=1)
    arguments = (str(tmp_path / "dledger-n0"), group.peers, group.group)
    lines = await asyncio.to_thread(run, "import_dledger.py", *arguments, environment=clean_environment)
    assert lines[-1] == "600 entries copied"
    assert lines[0].startswith("0-255 → ")
    assert lines[2].startswith("513-600 → ")
    async with group.connect() as client:
        assert [entry.body async for entry in client.read()] == bodies
        rest = await asyncio.to_thread(run, "import_dledger.py", *arguments, "599", environment=clean_environment)
        assert rest[-1] == "2 entries copied"
        assert [entry.body async for entry in client.read()] == bodies + bodies[-2:]


def test_import_dledger_refuses_a_gap(clean_environment: dict[str, str], tmp_path: Path) -> None:
    old_log(tmp_path, 4096, [(1, 0, b"x" * 100)] * 100)
    (tmp_path / "data" / f"{4096:020d}").unlink()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "import_dledger.py"), str(tmp_path), "n0-127.0.0.1:1", "g"],
        capture_output=True, text=True, env=clean_environment | {"PYTHONPATH": str(REPOSITORY)}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "BadLogError" in done.stderr, "a segment is missing"


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "examples").glob("*.py")):
        assert f'"{path.name}"' in source, f"{path.name} is not tested"
