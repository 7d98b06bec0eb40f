"""Start-up is a feature: what a command does not need, it does not import. Speed itself depends on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        (["--help"], {}),
        (["completion", "zsh"], {}),
        ([], {"_DLEDGER_COMPLETE": "bash_complete", "COMP_WORDS": "dledger st", "COMP_CWORD": "1"}),
        ([], {"_DLEDGER_COMPLETE": "bash_complete", "COMP_WORDS": "dledger status --p", "COMP_CWORD": "2"}),
        ([], {"_DLEDGER_COMPLETE": "bash_complete", "COMP_WORDS": "dledger config explain s", "COMP_CWORD": "3"}),
    ],
    ids=["help", "completion", "tab-verb", "tab-option", "tab-key"],
)
def test_help_and_tab_import_nothing_heavy(arguments: list[str], environment: dict[str, str]) -> None:
    found = imported(*arguments, **environment)
    allowed = {"asyncio"} if "--p" in environment.get("COMP_WORDS", "") else set()
    assert not HEAVY & found - allowed
    assert len(found) < 200, "every module costs a fraction of a millisecond"


def test_help_imports_no_command() -> None:
    found = imported("--help")
    commands = {name for name in found if name.startswith("dledger.cli.")} - {
        "dledger.cli.exit_codes",
        "dledger.cli.main",
    }
    assert not commands
    # Whether a verb's module is there is asked of its package, which is imported for that.
    assert not {"dledger.config", "dledger.client", "dledger.server", "dledger.storage", "dledger.raft"} & found


def test_status_imports_the_client_and_no_server() -> None:
    """It needs gRPC, which is most of its time; of ours it may import what talks, not what stores and serves.

    structlog would bring rich with it, where that is installed: a tenth of a second between them.
    """
    found = imported("status", "--peers", "n0-127.0.0.1:1")
    assert "grpc" in found, "this test looks at the wrong thing"
    unwanted = {"cryptography", "hypothesis", "prometheus_client", "rich", "starlette", "structlog", "uvicorn"}
    assert not unwanted & found
    for package in ("dledger.server", "dledger.driver", "dledger.sim", "dledger.chaos", "dledger.dashboard"):
        assert package not in found
