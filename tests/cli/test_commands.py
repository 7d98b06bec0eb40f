"""The command as users run it, without a group: help, configuration, usage, nobody there. Exit codes are the contract."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dledger.cli.exit_codes import ExitCode
from dledger.cli.main import COMMANDS, _run
from dledger.local_group import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf" / "dledger" / "broker-n0.conf"
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(os.environ):
        if key.startswith("DLEDGER_"):
            monkeypatch.delenv(key)


def dledger(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dledger", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=CLEAN | env,
        timeout=60,
        check=False,
    )


def dead_peers(count: int = 3) -> str:
    return ";".join(f"n{i}-127.0.0.1:{port}" for i, port in enumerate(free_ports(count)))


# ---------------------------------------------------------------- help and usage


def test_help_lists_every_command_and_exit_code_without_importing_grpc() -> None:
    code = (
        "import sys\nfrom dledger.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit as error:\n"
        "    assert error.code == 0\nheavy = {'grpc', 'structlog', 'rich', 'uvloop', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert found.returncode == 0, found.stderr
    for name in COMMANDS:
        assert f"  {name} " in found.stdout or name == "sim"
    for exit_code in ExitCode:
        assert f"  {int(exit_code):<5}{exit_code.meaning}" in found.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "sim"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run([name, "--help"]) == 0
    assert "Usage: dledger" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["status"],
        ["append", "x", "--timeout", "soon", "--peers", "n0-h:1"],
        ["get", "first", "--peers", "n0-h:1"],
        ["tail", "--from", "-1", "--peers", "n0-h:1"],
        ["bench", "--concurrency", "0"],
        ["bench", "--rate", "fast"],
        ["bench", "--rate", "0"],
        ["start", "-c", str(CONF), "-D", "nothing"],
        ["config", "explain", "noSuchKey"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_wrong_usage_is_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["version", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["python"] == sys.version.split()[0]


# ---------------------------------------------------------------- configuration


def test_config_check_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.conf"
    bad.write_text("dLegerGroup=g\ndLegerPeers=n0_h:1\ndLegerSelfId=n0\nflushDiskTyp=x\n")
    assert _run(["config", "check", str(CONF), str(bad)]) == ExitCode.CONFIGURATION
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{CONF}: ok (RaftNode00 n0 of 3, 127.0.0.1:40911)",
        f'{bad}:2:13: dLegerPeers: "n0_h:1" is not ID-HOST:PORT',
        f'{bad}:4:1: unknown key "flushDiskTyp"; did you mean "flushDiskType"?',
    ]
    assert captured.err == "2 errors\n"


def test_config_show_origin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLEDGER_DLEGER_SELF_ID", "n1")
    assert _run(["config", "show", "-c", str(CONF), "--origin", "-D", "electionTimeoutMs=1s"]) == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert lines["dLegerSelfId"].startswith("n1 env DLEDGER_DLEGER_SELF_ID (file said n0, ")
    assert lines["electionTimeoutMs"] == "1000 flag -D electionTimeoutMs"
    assert lines["maxInflightCount"] == "64 default (range 1–65536)"


def test_config_show_is_a_file_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["config", "show", "-c", str(CONF)]) == 0
    shown = capsys.readouterr().out
    again = tmp_path / "again.conf"
    again.write_text(shown)
    assert _run(["config", "show", "-c", str(again)]) == 0
    assert capsys.readouterr().out == shown


def test_config_init_makes_a_good_file_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.conf"
    assert _run(["config", "init", str(path), "--group", "g", "--self-id", "n0", "--peers", "n0-h:1"]) == 0
    assert _run(["config", "check", str(path)]) == 0
    before = path.read_bytes()
    assert _run(["config", "init", str(path)]) == ExitCode.FAILED
    assert "exists" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert _run(["config", "init", "--self-id", "n9"]) == ExitCode.CONFIGURATION


@pytest.mark.parametrize("arguments", [["start", "-c"], ["status", "-c"], ["config", "show", "-c"]])
def test_a_bad_file_is_four_and_says_everything(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.conf"
    bad.write_text("dLegerGroup=g\ndLegerPeers=n0_h:1\ndLegerSelfId=n0\nnonsenseKey=x\n")
    assert _run([*arguments, str(bad)]) == ExitCode.CONFIGURATION
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "2 errors"
    assert f"{bad}:2:13: " in captured.err
    assert f"{bad}:4:1: unknown key" in captured.err


def test_start_check_only_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["start", "-c", str(CONF), "--check", "-D", "storePathRootDir=/nonexistent"]) == 0
    assert capsys.readouterr().out == "ok (RaftNode00 n0 of 3, 127.0.0.1:40911)\n"


# ---------------------------------------------------------------- nobody there


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["status"], ""),
        (["append", "hello", "--timeout", "300ms"], ""),
        (["append", "-J", "--timeout", "300ms"], "a\nb\n"),
        (["get", "0", "--timeout", "300ms"], ""),
        (["tail", "--timeout", "300ms"], ""),
        (["transfer", "n1", "--timeout", "300ms"], ""),
        (["step-down", "--timeout", "300ms"], ""),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_nobody_reachable_is_five(arguments: list[str], stdin: str) -> None:
    found = dledger(*arguments, stdin=stdin, DLEDGER_PEERS=dead_peers())
    assert found.returncode == ExitCode.UNREACHABLE, found
    assert found.stderr.strip()
    assert "Traceback" not in found.stderr


def test_status_shows_dead_nodes_within_a_second(tmp_path: Path) -> None:
    peers = dead_peers()
    began = time.monotonic()
    found = dledger("status", "-o", "json", "--peers", peers, "--group", "g")
    # The second is the table's; starting Python and importing gRPC comes on top.
    assert time.monotonic() - began < 4
    out = json.loads(found.stdout)
    assert (out["group"], out["leader"], out["term"]) == ("g", None, -1)
    assert [node["role"] for node in out["nodes"]] == ["down"] * 3
    assert [node["address"] for node in out["nodes"]] == [peer.split("-")[1] for peer in peers.split(";")]
    assert all(node["note"] for node in out["nodes"])


def test_failed_lines_say_number_and_outcome() -> None:
    found = dledger("append", "-J", "--timeout", "300ms", "--peers", dead_peers(), stdin="a\nb\nlast without feed")
    assert found.stdout == ""
    lines = [line for line in found.stderr.splitlines() if line.startswith("line ")]
    assert [line.split(":")[0] for line in lines] == ["line 0", "line 1", "line 2"]
    assert all(": DEFINITE: " in line for line in lines)


def test_malformed_peers_are_four() -> None:
    found = dledger("status", "--peers", "n0_nowhere")
    assert found.returncode == ExitCode.CONFIGURATION
    assert found.stdout == ""


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dledger", "append", "-", "--peers", dead_peers()],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env=CLEAN | {"GRPC_VERBOSITY": "NONE"},
    )
    try:
        # The command reads standard input once its loop runs: an empty pipe buffer says so.
        _wait_until_read(process, b"line\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == ExitCode.INTERRUPTED, errors
    assert b"Traceback" not in errors


def _wait_until_read(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Write to the process's standard input and return when it has taken it."""
    import fcntl
    import struct
    import termios

    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (waiting,) = struct.unpack("i", fcntl.ioctl(process.stdin.fileno(), termios.FIONREAD, b"\0" * 4))
        if waiting == 0:
            return
        time.sleep(0.01)
    raise AssertionError("the command does not read")
