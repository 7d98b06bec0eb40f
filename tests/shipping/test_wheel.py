"""What is shipped: the wheel holds all that runs and nothing else, needs little, and works where nothing else is."""

from __future__ import annotations

import email.parser
import re
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from dledger.local_group import free_ports
from tests.shipping.wheel import REPOSITORY, Environment, clean_environment, lowest, project

BASE = {
    "click", "google-crc32c", "grpcio", "grpcio-health-checking", "grpcio-reflection", "prometheus-client", "protobuf",
    "structlog", "tenacity",
}  # fmt: skip
"""All that a plain installation may pull in, their own dependencies aside."""


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert [archive.read(name) for name in licence] == [(REPOSITORY / "LICENSE").read_bytes()]
    there = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("dledger", "broker_adapter")
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == there
    assert {"dledger/py.typed", "broker_adapter/py.typed"} <= shipped


def test_a_plain_installation_is_small(wheel: Path) -> None:
    found = metadata_of(wheel)
    lines = [line for line in found.get_all("Requires-Dist", []) if "extra ==" not in line]
    base = {re.match(r"[\w.-]+", line)[0] for line in lines}
    assert base <= BASE, "a new dependency of everybody: put it into an extra"
    assert {"ui", "fast", "tls"} <= set(found.get_all("Provides-Extra", []))
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.11"
    assert found["Name"] == "dledger"


def test_every_command_is_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """The unpacked wheel runs by itself: nothing is taken from the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    code = (
        "import importlib, os, sys, dledger\n"
        "assert os.path.dirname(dledger.__file__) == os.path.join(sys.argv[1], 'dledger'), dledger.__file__\n"
        "for target in sys.argv[2:]:\n"
        "    module, _, name = target.partition(':')\n"
        "    assert callable(getattr(importlib.import_module(module), name)), target\n"
        "from dledger.cli.main import COMMANDS\n"
        "for target, _ in COMMANDS.values():\n"
        "    module, _, name = target.partition(':')\n"
        "    getattr(importlib.import_module(module), name)\n"
    )
    scripts = project()["scripts"]
    assert set(scripts) == {"dledger", "mqadmin", "mqbroker", "mqnamesrv"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "unpacked"), *scripts.values()],
        cwd=tmp_path, env=clean_environment() | {"PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def try_out(environment: Environment, folder: Path) -> None:
    """A node of its own, one append, one read, a stop: as installed, from an empty folder."""
    folder.mkdir()
    node, data = f"n0-127.0.0.1:{free_ports(1)[0]}", folder / "data"
    environment.run("dledger", "config", "init", "n0.conf", "--peers", node, "--root", str(data), cwd=folder)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [str(environment.scripts / "dledger"), "start", "-c", "n0.conf"],
            cwd=folder, env=clean_environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        status = environment.run("dledger", "status", "-c", "n0.conf", "--wait", "30s", cwd=folder)
        assert "leader n0" in status, (folder / "log").read_text()
        environment.run("dledger", "append", "-c", "n0.conf", "hello", cwd=folder)
        assert environment.run("dledger", "tail", "-c", "n0.conf", "-o", "plain", cwd=folder) == "hello\n"
    finally:
        process.terminate()
        assert process.wait(30) == 0, (folder / "log").read_text()
    assert "PASS" in environment.run("dledger", "log", "verify", str(data), cwd=folder)
    environment.run("python", "-m", "pip", "check", "--disable-pip-version-check", cwd=folder)
    environment.run("mqadmin", "--help", cwd=folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(str(wheel))
    assert {"rich", "uvloop", "cryptography"}.isdisjoint(environment.versions(tmp_path)), "extras only"
    try_out(environment, tmp_path / "base")
    # What needs an extra says which one.
    assert "dledger[tls]" in environment.fails("dledger", "certs", "dev", "certs", cwd=tmp_path)
    assert "dledger[ui]" in environment.fails("dledger", "dashboard", "--peers", "n0-127.0.0.1:1", cwd=tmp_path)
    environment.install(f"{wheel}[ui,fast,tls]")
    assert {"cryptography", "rich", "uvloop"} <= set(environment.versions(tmp_path))
    try_out(environment, tmp_path / "extras")
    environment.run("dledger", "certs", "dev", "certs", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("edge", ["lowest", "protobuf-6", "latest"])
def test_the_wheel_on_the_edges_of_what_it_allows(wheel: Path, tmp_path: Path, edge: str) -> None:
    """Generated code and runtime must fit at both ends; a user pinned to ``protobuf<7`` is in between."""
    environment = Environment(tmp_path / "venv")
    wanted = {"lowest": lowest(project()["dependencies"]), "protobuf-6": ["protobuf<7"], "latest": []}[edge]
    environment.install(str(wheel), *wanted)
    versions = environment.versions(tmp_path)
    if edge == "lowest":
        assert (versions["grpcio"], versions["protobuf"]) == ("1.76.0", "6.31.1")
    else:
        assert versions["protobuf"].split(".")[0] == {"protobuf-6": "6", "latest": "7"}[edge]
    try_out(environment, tmp_path / "try")
