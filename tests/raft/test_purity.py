"""The core imports nothing that could make two runs differ, and nothing from the layers above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dledger.raft

ROOT = Path(dledger.raft.__file__).parent

ALLOWED = {"__future__", "bisect", "collections", "collections.abc", "dataclasses", "enum", "typing"}
"""Pure parts of the standard library. No time, random, asyncio, os, io, logging, threading, socket."""

FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "id", "hash"}
"""Built-ins that touch the world or differ from run to run."""

FILES = sorted(ROOT.rglob("*.py"))


def imports_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_the_core_has_files() -> None:
    """Else the tests below prove nothing."""
    assert {"core.py", "log_view.py", "messages.py", "progress.py", "quorum.py", "ready.py"} <= {
        path.name for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports(path: Path) -> None:
    """`dledger/raft` imports pure parts of the standard library and itself."""
    for name in imports_of(ast.parse(path.read_text())):
        assert name in ALLOWED or name.startswith("dledger.raft"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_calls_and_asserts(path: Path) -> None:
    """No built-in that touches the world, and no ``assert``: ``python -O`` drops it where `invariant` stays."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno} a bare assert"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{path.name}:{node.lineno} calls {node.func.id}"


def test_the_search_finds_what_it_looks_for() -> None:
    """The test of the test: each forbidden form is seen."""
    tree = ast.parse("import time, os.path\nfrom random import randint\nfrom . import x\ndef f():\n    import socket\n")
    assert imports_of(tree) == {"time", "os.path", "random", ".", "socket"}


def test_nothing_else_is_loaded_with_it() -> None:
    """Importing the core in a fresh interpreter loads no module that does IO for it."""
    program = (
        "import sys, dataclasses, enum, typing, collections.abc, bisect\n"
        "before = set(sys.modules)\n"
        "import dledger.raft.core\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('dledger')))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent.parent, timeout=60
    )
    loaded = set(run.stdout.split())
    assert not loaded & {"asyncio", "socket", "random", "threading", "logging", "grpc", "structlog"}


def test_invariants_survive_optimisation() -> None:
    """``python -O`` drops asserts; an invariant still stops the node."""
    program = (
        "from dledger.raft.messages import InvariantError, invariant\n"
        "try:\n    invariant(False, 'kept')\nexcept InvariantError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-O", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent.parent,
        timeout=60,
    )
    assert run.stdout == "kept\n"
