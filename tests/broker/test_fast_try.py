"""scripts/fast-try.sh: start, kill-leader, status, stop; a group survives its master's death; it ends only its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dledger.local_group import free_ports
from tests.broker.harness import HOST
from tests.processes import runs

REPOSITORY = Path(__file__).resolve().parents[2]
FastTry = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def confs(tmp_path: Path) -> list[str]:
    """Three brokers of a group on free ports."""
    ports = free_ports(7)
    peers = ";".join(f"n{number}-{HOST}:{ports[number]}" for number in range(3))
    made = []
    for number in range(3):
        file = tmp_path / f"broker-n{number}.conf"
        file.write_text(
            f"brokerClusterName=RaftCluster\nbrokerName=RaftNode00\nbrokerIP1={HOST}\nlistenPort={ports[3 + number]}\n"
            f"namesrvAddr={HOST}:{ports[6]}\nstorePathRootDir={tmp_path / f'node{number}'}\n"
            f"enableDLegerCommitLog=true\ndLegerGroup=RaftNode00\ndLegerPeers={peers}\ndLegerSelfId=n{number}\n"
            "mappedFileSizeCommitLog=16MiB\n",
            encoding="utf-8",
        )
        made.append(str(file))
    return made


@pytest.fixture
def fast_try(confs: list[str], tmp_path: Path) -> Iterator[FastTry]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
    clean |= {"DLEDGER_VENV": str(Path(sys.executable).parents[1]), "DLEDGER_RUN_DIR": str(tmp_path / "run")}
    # What a user has exported for clients must not reach the brokers.
    clean |= {"DLEDGER_SELF_ID": "n7", "DLEDGER_PEERS": "n0-nowhere:1", "NAMESRV_ADDR": "nowhere:1"}

    def run(action: str, files: list[str] = confs) -> subprocess.CompletedProcess[str]:
        script = REPOSITORY / "scripts" / "fast-try.sh"
        return subprocess.run(
            [str(script), action, *files], env=clean, capture_output=True, text=True, timeout=120, check=False
        )

    try:
        yield run
    finally:
        run("stop")


def dledger(*arguments: str) -> str:
    command = [sys.executable, "-m", "dledger", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY).stdout


@pytest.mark.timeout(300)
def test_from_start_to_stop(fast_try: FastTry, confs: list[str], tmp_path: Path) -> None:
    started = fast_try("start")
    assert started.returncode == 0, started.stderr
    rows = [line.split() for line in started.stdout.splitlines() if line.startswith("RaftCluster")]
    assert sorted(row[2] for row in rows)[0] == "0"
    assert len(rows) == 3
    pids = {path.stem: int(path.read_text().split()[0]) for path in (tmp_path / "run").glob("*.pid")}
    assert sorted(pids) == ["RaftNode00-n0", "RaftNode00-n1", "RaftNode00-n2", "namesrv"]
    # The log's own commands work on a broker's file.
    assert "3 of 3 up" in dledger("status", "-c", confs[0])
    assert "index" in dledger("append", "by hand", "-c", confs[0])
    again = fast_try("start")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("runs already") == 4
    # A pid file that names somebody else's process: not ours to end.
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        killed = fast_try("kill-leader")
        assert killed.returncode == 0, killed
        victim = next(name for name in pids if f"({name}, the master" in killed.stderr)
        assert not runs(pids[victim])
        assert killed.stdout.count("LEADER") == 1
        assert fast_try("status").returncode == 0
        (tmp_path / "run" / f"{victim}.pid").write_text(f"{stranger.pid} 1\n")
        stopped = fast_try("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert f"{victim} does not run" in stopped.stderr
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")
    assert not any(runs(pid) for pid in pids.values())
    assert not list((tmp_path / "run").glob("*.pid"))
    assert fast_try("status").returncode == 5


def test_wrong_files_are_exit_code_4(fast_try: FastTry, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.conf"
    wrong.write_text("listenPrt=1\n", encoding="utf-8")
    found = fast_try("start", [str(wrong)])
    assert found.returncode == 4
    assert "wrong.conf:1:1" in found.stderr
    classic = tmp_path / "classic.conf"
    classic.write_text(f"storePathRootDir={tmp_path}\n", encoding="utf-8")
    found = fast_try("start", [str(classic)])
    assert found.returncode == 4
    assert "enableDLegerCommitLog" in found.stderr
