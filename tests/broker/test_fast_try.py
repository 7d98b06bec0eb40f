"""scripts/fast-try-broker.sh: start, kill-leader, status, stop; it ends only its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.harness import HOST, free_ports

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(240)
def test_from_start_to_stop(tmp_path: Path) -> None:
    ports = free_ports(7)
    peers = ";".join(f"n{number}-{HOST}:{ports[number]}" for number in range(3))
    confs = []
    for number in range(3):
        file = tmp_path / f"broker-n{number}.conf"
        file.write_text(
            f"brokerClusterName=RaftCluster\nbrokerName=RaftNode00\nbrokerIP1={HOST}\nlistenPort={ports[3 + number]}\n"
            f"namesrvAddr={HOST}:{ports[6]}\nstorePathRootDir={tmp_path / f'node{number}'}\n"
            f"enableDLegerCommitLog=true\ndLegerGroup=RaftNode00\ndLegerPeers={peers}\ndLegerSelfId=n{number}\n"
            "mappedFileSizeCommitLog=16MiB\n",
            encoding="utf-8",
        )
        confs.append(str(file))
    env = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
    env |= {"DLEDGER_VENV": str(Path(sys.executable).parents[1]), "DLEDGER_RUN_DIR": str(tmp_path / "run")}

    def run(action: str) -> subprocess.CompletedProcess[str]:
        script = REPOSITORY / "scripts" / "fast-try-broker.sh"
        return subprocess.run(
            [str(script), action, *confs], env=env, capture_output=True, text=True, timeout=120, check=False
        )

    try:
        started = run("start")
        assert started.returncode == 0, started.stderr
        rows = [line.split() for line in started.stdout.splitlines() if line.startswith("RaftCluster")]
        assert sum(row[2] == "0" for row in rows) == 1
        killed = run("kill-leader")
        assert killed.returncode == 0, killed.stderr
        assert "kill -9" in killed.stderr
        assert "LEADER" in killed.stdout
        assert run("status").returncode == 0
        again = run("start")
        assert again.returncode == 0, again.stderr
        assert "runs already" in again.stderr
    finally:
        stopped = run("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not list((tmp_path / "run").glob("*.pid"))
    assert run("status").returncode != 0
    assert run("nonsense").returncode == 2
