"""Shell completion: the scripts are the shells' own, and Tab offers verbs, options, files, node ids and keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dledger.cli.completion import SHELLS
from dledger.cli.main import COMMANDS, _run
from tests.shipping.console import REPOSITORY

CONF = REPOSITORY / "conf" / "dledger" / "broker-n0.conf"


def offered(*words: str, **environment: str) -> list[str]:
    """What Tab offers for the last of ``words``, as ``type,value`` lines."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DLEDGER_", "_DLEDGER"))}
    line = {"COMP_WORDS": " ".join(["dledger", *words]), "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-m", "dledger"],
        env=clean | line | {"_DLEDGER_COMPLETE": "bash_complete"} | environment,
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_tab_offers_verbs_and_options() -> None:
    assert offered("st") == ["plain,start", "plain,status", "plain,step-down"]
    assert {line.removeprefix("plain,") for line in offered("")} == set(COMMANDS)
    assert "plain,--wait" in offered("status", "--w")
    assert offered("log", "v") == ["plain,verify"]
    assert offered("status", "-o", "j") == ["plain,json"]


def test_tab_offers_files_and_folders() -> None:
    assert offered("status", "-c", "x") == ["file,x"]
    assert offered("start", "-c", "x") == ["file,x"]
    assert offered("log", "verify", "x") == ["dir,x"]


def test_tab_offers_node_ids_and_keys() -> None:
    assert offered("transfer", "-c", str(CONF), "n") == ["plain,n0", "plain,n1", "plain,n2"]
    assert offered("transfer", "-c", str(CONF), "--from", "n1") == ["plain,n1"]
    assert offered("transfer", "a", DLEDGER_PEERS="a0-h:1;a1-h:2;b-h:3") == ["plain,a0", "plain,a1"]
    assert offered("config", "explain", "storetype") == ["plain,storeType"]


@pytest.mark.parametrize("words", [("transfer", "n"), ("transfer", "-c", "/nowhere", "n")], ids=["nobody", "no-file"])
def test_tab_is_quiet_where_nothing_is_known(words: tuple[str, ...], tmp_path: Path) -> None:
    assert offered(*words, DLEDGER_DEV_DATA=str(tmp_path)) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_of_its_shell(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert _run(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    assert f"_DLEDGER_COMPLETE={shell}_complete" in script.read_text()
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"skipped: {shell} is not installed, so nobody here can parse its script")
    subprocess.run([program, "-n", str(script)], check=True, timeout=60)


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    """A real bash, the real script, one Tab."""
    tool = tmp_path / "dledger"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m dledger "$@"\n')
    tool.chmod(0o755)
    lines = [
        'eval "$(dledger completion bash)"',
        "COMP_WORDS=(dledger unsafe) COMP_CWORD=1",
        "_dledger_completion dledger",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["unsafe-new-group"]


def test_an_unknown_shell_is_wrong_usage() -> None:
    assert _run(["completion", "tcsh"]) == 2
