"""The shell scripts parse and say how they are used. What fast-try does: tests/broker/test_fast_try.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((REPOSITORY / "scripts").glob("*.sh")), REPOSITORY / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) or script.name == "venv.sh"


def test_fast_try_says_how_it_is_used() -> None:
    found = subprocess.run([str(REPOSITORY / "scripts" / "fast-try.sh")], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "usage: " in found.stderr
