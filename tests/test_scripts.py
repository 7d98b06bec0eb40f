"""The shell scripts: they parse, and fast-try starts, survives its leader's death, and ends only its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dledger.local_group import free_ports

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((REPOSITORY / "scripts").glob("*.sh")), REPOSITORY / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) or script.name == "venv.sh"


@pytest.fixture
def fast_try(tmp_path: Path):
    ports = free_ports(3)
    peers = ";".join(f"n{i}-127.0.0.1:{port}" for i, port in enumerate(ports))
    confs = []
    for number in range(3):
        conf = tmp_path / f"n{number}.conf"
        conf.write_text(f"dLegerGroup=try\ndLegerSelfId=n{number}\ndLegerPeers={peers}\nstorePathRootDir={tmp_path}\n")
        confs.append(str(conf))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
    # What a user has exported for clients must not reach the nodes.
    clean |= {"DLEDGER_SELF_ID": "n7", "DLEDGER_PEERS": "n0-nowhere:1"}
    clean |= {"DLEDGER_VENV": str(Path(sys.executable).parents[1]), "DLEDGER_RUN_DIR": str(tmp_path / "run")}

    def run(action: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(REPOSITORY / "scripts" / "fast-try.sh"), action, *confs],
            capture_output=True,
            text=True,
            env=clean,
            timeout=110,
            check=False,
        )

    try:
        yield run
    finally:
        run("stop")


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for somebody to ask how does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_fast_try(fast_try, tmp_path: Path) -> None:
    started = fast_try("start")
    assert started.returncode == 0, started
    assert "3 of 3 up" in started.stdout
    pids = {path.stem: int(path.read_text().split()[0]) for path in (tmp_path / "run").glob("*.pid")}
    assert sorted(pids) == ["try-n0", "try-n1", "try-n2"]
    again = fast_try("start")
    assert again.returncode == 0
    assert again.stderr.count("runs already") == 3
    # A pid file that names somebody else's process: not ours to end.
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        killed = fast_try("kill-leader")
        assert killed.returncode == 0, killed
        assert "2 of 3 up" in killed.stdout
        victim = next(name for name in pids if f"({name.removeprefix('try-')}, the leader)" in killed.stderr)
        (tmp_path / "run" / f"{victim}.pid").write_text(f"{stranger.pid} 1\n")
        stopped = fast_try("stop")
        assert stopped.returncode == 0, stopped
        assert f"{victim} does not run" in stopped.stderr
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")
    assert not any(runs(pid) for pid in pids.values())
    assert not list((tmp_path / "run").glob("*.pid"))
    assert fast_try("status").returncode == 5


def test_fast_try_says_how_it_is_used() -> None:
    found = subprocess.run([str(REPOSITORY / "scripts" / "fast-try.sh")], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "usage: " in found.stderr
