"""`dledger dev` and its verbs as a user runs them: real processes, real kills, one folder."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dledger.cli.exit_codes import ExitCode
from dledger.dev.state import DevState, live_pid, pid_path, process_state
from tests.processes import runs

REPOSITORY = Path(__file__).resolve().parents[2]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
ENV = CLEAN | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
READY_S = 60.0


class Dev:
    """A running ``dledger dev``; ``folder`` is where its user is."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.data = folder / "dledger-dev"
        self._errors = folder / "stderr.txt"
        self._out = folder / "stdout.txt"
        with self._out.open("wb") as out, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dledger", "dev", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                cwd=folder,
                env=ENV,
            )

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        return self._errors.read_text(encoding="utf-8")

    def ready(self) -> Dev:
        """Wait until it has said everything; its end before that is a failure."""
        deadline = time.monotonic() + READY_S
        while "Ctrl-C" not in self.out:
            assert self.process.poll() is None, f"{self.out}\n{self.errors}"
            assert time.monotonic() < deadline, f"not ready\n{self.out}\n{self.errors}"
            time.sleep(0.02)
        return self

    def state(self) -> DevState:
        found = DevState.load(self.data)
        assert found is not None
        return found

    def pids(self) -> dict[str, int]:
        return {n: pid for n in self.state().node_ids if (pid := live_pid(pid_path(self.data, n))) is not None}

    def verb(self, *arguments: str, code: int = 0) -> str:
        """Run a command in the same folder; returns what it printed."""
        done = run(self.folder, *arguments)
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stderr

    def leader(self) -> str:
        return str(json.loads(self.verb("status", "--wait", "20s", "--up", "3", "-o", "json"))["leader"])

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dledger", *arguments],
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Dev]:
    folder.mkdir(exist_ok=True)
    dev = Dev(folder, "--port", "0", *arguments)
    try:
        yield dev.ready()
    finally:
        if dev.process.poll() is None:
            dev.end()
        for path in dev.data.glob("*.pid"):  # of a supervisor that was killed
            pid = live_pid(path)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with running(tmp_path_factory.mktemp("dev"), "--load", "50/s") as found:
        yield found


# ---------------------------------------------------------------- a life


def test_it_says_what_runs_and_the_commands_find_it(dev: Dev) -> None:
    assert len(re.findall(r"^  n\d +127\.0\.0\.1:\d+  pid \d+", dev.out, re.M)) == 3
    assert re.search(r"ready n\d leads and has committed after \d+\.\d s", dev.out)
    assert dev.verb("append", "hello", "-o", "json")
    entries = dev.verb("tail").splitlines()
    assert "hello" in " ".join(entries) and "load 00000" in " ".join(entries)


def test_the_page_is_served_with_its_token(dev: Dev) -> None:
    found = re.search(r"(http://127\.0\.0\.1:\d+/)#token=(\S+)", dev.out)
    if found is None:
        pytest.skip("skipped: no starlette or uvicorn; pip install 'dledger[ui]'")
    with urllib.request.urlopen(found[1], timeout=10) as answer:
        assert b"<title>dledger</title>" in answer.read()
    request = urllib.request.Request(
        f"{found[1]}act",
        data=json.dumps({"action": "append", "text": "from the page"}).encode(),
        headers={"Authorization": f"Bearer {found[2]}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert "appended at index" in json.load(answer)["done"]


def test_a_second_one_in_the_folder_is_refused(dev: Dev) -> None:
    second = run(dev.folder, "dev")
    assert second.returncode == ExitCode.FAILED
    assert f"runs in {dev.data} already (pid {dev.process.pid}, page http" in second.stderr
    assert "--data" in second.stderr
    assert len(dev.pids()) == 3, "and the first is left alone"


def test_kill_and_resume(dev: Dev) -> None:
    leader = dev.leader()
    before = dev.pids()
    words = dev.verb("kill", "leader")
    assert words.startswith(f"killed {leader}, the leader (pid {before[leader]}, SIGKILL)\n")
    assert re.search(r"n\d leads term \d+, seen \d+ ms after the kill", words)
    assert not runs(before[leader])
    assert dev.verb("kill", leader, code=ExitCode.UNREACHABLE).startswith(f"dledger: {leader} does not run")
    assert dev.verb("resume", leader) == f"started {leader} again\n"
    assert dev.leader() != leader
    assert dev.pids()[leader] != before[leader]


def test_pause_and_resume(dev: Dev) -> None:
    leader = dev.leader()
    assert f"paused {leader}, the leader" in dev.verb("pause", "leader")
    assert process_state(dev.pids()[leader]) == "T"
    assert json.loads(dev.verb("status", "--wait", "20s", "--not", leader, "-o", "json"))["leader"] != leader
    assert dev.verb("resume", leader) == f"{leader} goes on\n"
    assert dev.leader() != leader


def test_cut_and_heal(dev: Dev) -> None:
    leader = dev.leader()
    try:
        assert dev.verb("cut", "leader") == f"cut off {leader}, the leader\n"
        found = json.loads(dev.verb("status", "--wait", "20s", "--not", leader, "-o", "json"))
        assert found["leader"] not in {leader, None}
        dev.verb("kill", found["leader"])
    finally:
        healed = dev.verb("heal")
    assert f"{leader} is connected again" in healed and f"started {found['leader']} again" in healed
    assert dev.leader()
    assert dev.verb("heal") == "nothing was wrong\n"


def test_what_cannot_be_done_is_said(dev: Dev, tmp_path: Path) -> None:
    assert '"n9" is no node; there are n0, n1, n2, and leader' in dev.verb("kill", "n9", code=ExitCode.FAILED)
    assert '"n9" is no node' in dev.verb("cut", "n9", code=ExitCode.FAILED)
    nothing = run(tmp_path, "kill", "leader")
    assert nothing.returncode == ExitCode.UNREACHABLE
    assert "no dev group in" in nothing.stderr


def test_watching_in_the_terminal(dev: Dev) -> None:
    pictures = dev.verb("top", "--count", "4", "--every", "1.2s").split("GROUP dev")[1:]
    assert len(pictures) == 4
    assert "3 of 3 up, tolerates 1 failure" in pictures[0]
    rates = [float(rate) for picture in pictures[1:] for rate in re.findall(r"commits/s +([\d.]+)", picture)]
    assert any(10 < rate < 200 for rate in rates), f"the load of 50/s is not seen: {rates}"
    watch = subprocess.Popen(
        [sys.executable, "-m", "dledger", "status", "--watch", "--every", "0.1s"],
        cwd=dev.folder, env=ENV, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None
    seen = 0
    for line in watch.stdout:
        seen += line.startswith("GROUP dev")
        if seen == 3:
            break
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=20)
    assert watch.returncode == ExitCode.INTERRUPTED


def test_a_dashboard_of_its_own_watches_the_group(dev: Dev) -> None:
    pytest.importorskip("uvicorn", reason="skipped: no uvicorn; pip install 'dledger[ui]'")
    process = subprocess.Popen(
        [sys.executable, "-m", "dledger", "dashboard", "--peers", dev.state().peers, "--group", "dev", "--port", "0"],
        cwd=dev.folder, env=CLEAN | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        with urllib.request.urlopen(f"{url}events", timeout=10) as stream:
            for line in stream:
                if line.startswith(b"data: ") and b'"health":"ok"' in line:
                    break
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}act", data=b"{}", timeout=10)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
    refused = run(dev.folder, "dashboard", "--bind", "0.0.0.0")
    assert refused.returncode == ExitCode.USAGE and "--insecure" in refused.stderr


# ---------------------------------------------------------------- ends and beginnings


def test_ctrl_c_ends_all_and_the_next_start_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        first.verb("append", "kept")
        pids, ports = first.pids(), first.state().ports
        assert len(pids) == 3
        assert first.end() == 0
        assert not any(runs(pid) for pid in pids.values())
        assert list(first.data.glob("*.pid")) == []
        assert "data kept in ./dledger-dev" in first.errors
        assert "does not run any more" in first.verb("heal", code=ExitCode.UNREACHABLE)
    wrong = run(tmp_path, "dev", "--nodes", "5")
    assert wrong.returncode == ExitCode.FAILED
    assert "holds a group of 3" in wrong.stderr and "--fresh" in wrong.stderr
    with running(tmp_path) as second:
        assert second.state().ports == ports
        assert "kept" in second.verb("tail")
        assert second.end(signal.SIGTERM) == 0
    with running(tmp_path, "--fresh", "--nodes", "1") as third:
        assert "kept" not in third.verb("tail")
        assert third.state().node_ids == ("n0",)


def test_after_a_crash_of_its_own_what_is_left_is_ended(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        first.verb("append", "before the crash")
        left = first.pids()
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        assert all(runs(pid) for pid in left.values()), "they have a session of their own"
        with running(tmp_path) as second:
            assert "ended what a crashed run had left: n0, n1, n2" in second.errors
            assert not any(runs(pid) for pid in left.values())
            assert "before the crash" in second.verb("tail")


def test_a_taken_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        page = run(tmp_path, "dev", "--port", port)
        if "no page" not in page.stderr:
            assert page.returncode == ExitCode.FAILED
            assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in page.stderr
        nodes = run(tmp_path, "dev", "--port", "0", "--port-base", port)
        assert nodes.returncode == ExitCode.FAILED
        assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in nodes.stderr
    assert list((tmp_path / "dledger-dev").glob("*.pid")) == []
