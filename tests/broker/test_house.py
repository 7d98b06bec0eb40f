"""The house rules for the broker adapter: which of dledger's names it uses, layers, exports, no bare assert."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "broker_adapter"
MODULES = sorted(PACKAGE.rglob("*.py"))

ALLOWED_OF_DLEDGER = (
    "dledger",
    "dledger.errors",
    "dledger.log",
    "dledger.config",
    "dledger.grpc_engine",
    "dledger.metrics.http",
    "dledger.metrics.registry",
    "dledger.process_memory",
    "dledger.security.files",
)
"""The package itself, its errors, its logging set-up and its configuration: public names, nothing of its inside. Of
metrics, security and the process's set-up the parts that know nothing of the log: text format, small HTTP server, files
that change, the choice of an engine, what becomes of freed memory."""

LAYERS = {
    "message": 0,
    "remoting": 1,
    "store": 1,
    "ha": 1,
    "config": 2,
    "process": 2,
    "namesrv": 3,
    "broker": 4,
    "metrics": 4,
    "admin": 5,
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_public_names_of_the_log(path: Path) -> None:
    for module in imports_of(path):
        if module.split(".")[0] == "dledger":
            assert module in ALLOWED_OF_DLEDGER, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    parts = name_of(path).split(".")
    if len(parts) == 1:
        return
    level = LAYERS[parts[1]]
    for module in imports_of(path):
        other = module.split(".")
        if other[0] == "broker_adapter" and len(other) > 1:
            assert LAYERS[other[1]] <= level, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_exports_and_asserts(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    if path.name not in {"__init__.py", "__main__.py"}:
        assert "__all__" in names, f"{name_of(path)} has no __all__"
    assert ast.get_docstring(tree) or path.stat().st_size == 0, f"{name_of(path)} does not say what it is"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: python -O drops asserts"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
