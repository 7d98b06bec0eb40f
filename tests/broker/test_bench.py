"""scripts/broker_bench.py measures what it says, with this project's own client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["dledger", "sync"])
def test_every_load_gets_through(mode: str, tmp_path: Path) -> None:
    script = str(REPOSITORY / "scripts" / "broker_bench.py")
    options = ["--mode", mode, "--client", "own", "--seconds", "0.5", "--threads", "8", "--batch", "1,16"]
    done = subprocess.run(
        [sys.executable, script, *options, "--pull-size", "512", "--data-dir", str(tmp_path), "-o", "json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["mode"], row["load"], row["batch"]) for row in rows] == [
        (mode, "send", 1),
        (mode, "send", 16),
        (mode, "pull", 1),
    ]
    for row in rows:
        assert row["failed"] == 0
        assert row["per_s"] > 0
        assert row["mb_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["master_us"] > 0
    assert not list(tmp_path.iterdir()), "the run's folder is gone"
