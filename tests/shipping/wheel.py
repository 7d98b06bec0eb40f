"""Builds the wheel, and makes environments with nothing else in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def project() -> dict[str, Any]:
    """The ``[project]`` table of pyproject.toml."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def clean_environment() -> dict[str, str]:
    """The environment without what would let a test see this checkout, or a user's settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("DLEDGER_", "PYTHON", "VIRTUAL_ENV"))}


def build_wheel(directory: Path) -> Path:
    """Build the wheel of this tree with what is installed, no network needed."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


def lowest(requirements: list[str]) -> list[str]:
    """Turn ``name>=1.2,<3`` into ``name==1.2``: what the lower bounds promise to be enough."""
    pinned = []
    for requirement in requirements:
        found = re.fullmatch(r"([A-Za-z0-9-]+)>=([0-9.]+)(?:,<[0-9.]+)?", requirement)
        assert found, f"{requirement} has no plain lower bound"
        pinned.append(f"{found[1]}=={found[2]}")
    return pinned


class Environment:
    """A virtual environment with pip and nothing else. ``python`` and ``scripts`` are its own."""

    def __init__(self, directory: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, env=clean_environment())
        self.scripts = directory / "bin"
        self.python = self.scripts / "python"

    def install(self, *requirements: str) -> None:
        """Install by pip.

        Raises:
            AssertionError: pip failed; says what it said.
        """
        done = subprocess.run(
            [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
            env=clean_environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, cwd: Path, timeout: float = 60) -> str:
        """Run a program of this environment; returns what it prints.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [str(self.scripts / command[0]), *command[1:]],
            cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *command: str, cwd: Path) -> str:
        """Run a program that must fail, in its own way and not by a traceback; returns what it says."""
        done = subprocess.run(
            [str(self.scripts / command[0]), *command[1:]],
            cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def versions(self, cwd: Path) -> dict[str, str]:
        """Name → version of everything installed."""
        listing = self.run("python", "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check", cwd=cwd)
        return dict(line.split("==") for line in listing.splitlines() if "==" in line)
