"""Start-up is a feature: what a command does not need, it does not import. Speed itself depends on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dledger
from dledger.cli.main import _run
from dledger.cli.root import cli, run_command
from dledger.cli.verbs import MAX_WIDTH, help_text

REPOSITORY = Path(__file__).resolve().parents[2]

HEAVY = frozenset(
    [
        "asyncio",
        "cryptography",
        "google",
        "grpc",
        "hypothesis",
        "prometheus_client",
        "rich",
        "starlette",
        "structlog",
        "tenacity",
        "uvicorn",
        "uvloop",
    ]
)
"""Each costs a noticeable part of a second. ``google``: protobuf."""

SLOW_PARTS = ("dledger.config", "dledger.raft", "dledger.rpc", "dledger.storage", "dledger.v1", "dledger.client.client")
"""Of ours; together as long as Python's own start."""


def imported(*arguments: str, **environment: str) -> set[str]:
    """Run a command line in a fresh process; returns the top-level modules and our own modules that it imported."""
    code = (
        "import atexit, os, sys\n"
        "report = lambda: os.write(3, ' '.join(sys.modules).encode())\n"
        "atexit.register(report)\n"
        "sys.argv = ['dledger', *sys.argv[1:]]\n"
        "from dledger.cli.main import main\n"
        "main()\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
    reader, writer = os.pipe()
    try:
        # Descriptor 3 in the child, whatever the command prints to the others.
        shell = ["bash", "-c", f'exec "$@" 3>&{writer}', "bash", sys.executable, "-c", code, *arguments]
        done = subprocess.run(
            shell, cwd=REPOSITORY, env=clean | environment, capture_output=True, text=True, pass_fds=(writer,), timeout=60,
            check=False,
        )  # fmt: skip
        os.close(writer)
        writer = -1
        with os.fdopen(reader, "r") as pipe:
            reader = -1
            names = pipe.read().split()
    finally:
        for descriptor in (reader, writer):
            if descriptor >= 0:
                os.close(descriptor)
    assert names, done.stderr
    return {name.split(".")[0] for name in names} | {name for name in names if name.startswith("dledger.")}


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--version"], {}),
        (["completion", "zsh"], {}),
        ([], {"_DLEDGER_COMPLETE": "bash_complete", "COMP_WORDS": "dledger st", "COMP_CWORD": "1"}),
        ([], {"_DLEDGER_COMPLETE": "bash_complete", "COMP_WORDS": "dledger status --p", "COMP_CWORD": "2"}),
        ([], {"_DLEDGER_COMPLETE": "bash_complete", "COMP_WORDS": "dledger config explain s", "COMP_CWORD": "3"}),
    ],
    ids=["version", "completion", "tab-verb", "tab-option", "tab-key"],
)
def test_help_and_tab_import_nothing_heavy(arguments: list[str], environment: dict[str, str]) -> None:
    found = imported(*arguments, **environment)
    allowed = {"asyncio"} if "--p" in environment.get("COMP_WORDS", "") else set()
    assert not HEAVY & found - allowed
    assert len(found) < 200, "every module costs a fraction of a millisecond"


def test_help_imports_no_command() -> None:
    """Nor click, which takes three times as long to load as Python takes to start."""
    found = imported("--help")
    commands = {name for name in found if name.startswith("dledger.cli.")}
    assert commands == {"dledger.cli.exit_codes", "dledger.cli.main", "dledger.cli.verbs"}
    # Whether a verb's module is there is asked of its package, which is imported for that.
    assert not {"dledger.config", "dledger.client", "dledger.server", "dledger.storage", "dledger.raft"} & found
    assert not (HEAVY | {"click", "dataclasses", "inspect", "json", "pathlib", "socket"}) & found
    assert len(found) < 100


@pytest.mark.parametrize("columns", [20, 52, 79, 80, 100, 101, 240])
def test_quick_help_is_what_click_would_print(columns: int) -> None:
    context = cli.make_context("dledger", [], max_content_width=MAX_WIDTH, terminal_width=None, resilient_parsing=True)
    context.terminal_width = max(min(columns, MAX_WIDTH) - 2, 50)
    assert help_text(columns) == cli.get_help(context)


def test_quick_version_is_what_click_would_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["--version"]) == 0
    quick = capsys.readouterr().out
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == quick == f"dledger {dledger.__version__}\n"


def test_status_imports_neither_grpc_nor_asyncio() -> None:
    """The two are more than half of the time that it may take; tests/cli/test_group.py sees the same of a live group."""
    found = imported("status", "--peers", "n0-127.0.0.1:1;n1-127.0.0.1:2")
    assert "dledger.client.bare_call" in found, "this test looks at the wrong thing"
    assert not (HEAVY | {"json", "pathlib", "ssl", "encodings.idna"}) & found
    assert not {name for name in found if name.startswith(SLOW_PARTS)}
    assert len(found) < 200


def test_the_times_can_be_measured_again() -> None:
    """scripts/startup.py starts a group and prints every command's share; what the shares are is not judged here."""
    script = REPOSITORY / "scripts" / "startup.py"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "1", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    rows = {row["command"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["pass", "--version", "--help", "status"]
    assert rows["status"]["cpu_min_ms"] > rows["pass"]["cpu_min_ms"] > 0
    assert {name: row["target"] for name, row in rows.items()} == {
        "pass": None,
        "--version": 4.0,
        "--help": 4.0,
        "status": 9.0,
    }


def test_the_verbs_of_a_dev_group_import_neither_grpc_nor_asyncio(tmp_path: Path) -> None:
    """They ask the nodes as `status` does. The group here has ended: only the way to its nodes is looked at."""
    state = {"pid": 1, "group": "dev", "peers": "n0-127.0.0.1:1", "node_ids": ["n0"], "ports": [1], "control_port": 1}
    (tmp_path / "dev.json").write_text(json.dumps(state | {"token": "t"}), encoding="utf-8")
    found = imported("kill", "leader", "--data", str(tmp_path))
    assert "dledger.client.bare_call" in found, "this test looks at the wrong thing"
    assert not HEAVY & found


def test_status_through_grpc_imports_the_client_and_no_server() -> None:
    """With TLS it needs gRPC, which is most of its time; of ours it may import what talks, not what stores and serves.

    structlog would bring rich with it, where that is installed: a tenth of a second between them.
    """
    found = imported("status", "--peers", "n0-127.0.0.1:1", "--wait", "1ms")
    assert "grpc" in found, "this test looks at the wrong thing"
    unwanted = {"cryptography", "hypothesis", "prometheus_client", "rich", "starlette", "structlog", "uvicorn"}
    assert not unwanted & found
    for package in ("dledger.server", "dledger.driver", "dledger.sim", "dledger.chaos", "dledger.dashboard"):
        assert package not in found
