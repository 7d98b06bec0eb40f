"""The examples run as they stand and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dledger.local_group import free_ports
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


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "examples").glob("*.py")):
        assert f'"{path.name}"' in source, f"{path.name} is not tested"
