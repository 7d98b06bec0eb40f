"""The rules of the house that a machine can see: who imports whom, what the pure core may import, what files may say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "dledger"
GENERATED = PACKAGE / "v1"

LAYERS = {
    "dledger.types": 0,
    "dledger.errors": 0,
    "dledger.grpc_engine": 0,
    "dledger.lazy_names": 0,
    "dledger.keep_awake": 0,
    "dledger.process_memory": 0,
    "dledger.protobuf_wire": 0,
    "dledger.version": 0,
    "dledger.raft": 0,
    "dledger.verdict": 0,
    "dledger.checker": 1,
    "dledger.config": 1,
    "dledger.log": 1,
    "dledger.metrics": 2,
    "dledger.security": 2,
    "dledger.storage": 2,
    "dledger.v1": 2,
    "dledger.rpc": 3,
    "dledger.driver": 4,
    "dledger.client": 4,
    "dledger.observer": 5,
    "dledger.server": 5,
    "dledger.local_group": 6,
    "dledger.sim": 6,
    "dledger.chaos": 7,
    "dledger.bench": 8,
    "dledger.cli": 8,
    "dledger.dashboard": 8,
    "dledger.dev": 8,
    "dledger.quickstart": 9,
    "dledger.__main__": 9,
}
"""Imports point down or stay level. A level may hold several packages; those of level 0 know each other."""

CORE_MAY_IMPORT = frozenset(
    [
        "__future__",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "heapq",
        "itertools",
        "math",
        "operator",
        "struct",
        "typing",
    ]
)
"""What ``dledger/raft`` may import: the pure parts of the standard library. No clock, socket, file, thread, chance."""

FORBIDDEN_TEXT = {
    "a registry host": re.compile(r"\b(pypi\.org|pythonhosted|registry\.npmjs|proxy\.golang|crates\.io/api)", re.I),
    "a path of somebody's machine": re.compile(r"(?<![\w./])/(?:work|root|home/\w+|Users/\w+)(?=/|\b)(?!\w)"),
    "a conflict marker": re.compile(r"^(?:<{7}|>{7}) ", re.M),
}
TEXT_SUFFIXES = frozenset(
    [
        ".py",
        ".pyi",
        ".proto",
        ".sh",
        ".md",
        ".toml",
        ".conf",
        ".yml",
        ".yaml",
        ".json",
        ".txt",
        ".cfg",
        ".html",
        ".css",
        ".js",
    ]
)


def modules(root: Path = PACKAGE) -> list[Path]:
    return sorted(path for path in root.rglob("*.py") if GENERATED not in path.parents)


def name_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports at run time, wherever the import stands; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.get(".".join(parts[:2])) if len(parts) > 1 else None


def tracked_files() -> list[Path]:
    """Files of the project: those git knows, and new ones that it does not ignore. Without git, nothing is hidden."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        hidden = {".git", ".venv", "__pycache__"}
        return [p for p in REPOSITORY.rglob("*") if p.is_file() and not hidden & set(p.relative_to(REPOSITORY).parts)]
    return [path for name in listing.decode().split("\0") if name and (path := REPOSITORY / name).is_file()]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = name_of(path)
    if own == "dledger":
        return
    level = layer_of(own)
    assert level is not None, f"{own} has no layer; give it one in LAYERS"
    for module in imports_of(path):
        other = layer_of(module)
        if other is not None:
            assert other <= level, f"{own} (layer {level}) imports {module} (layer {other})"


@pytest.mark.parametrize("path", modules(PACKAGE / "raft"), ids=name_of)
def test_the_core_is_pure(path: Path) -> None:
    for module in imports_of(path):
        root = module.split(".", maxsplit=1)[0]
        assert root in CORE_MAY_IMPORT or module.startswith("dledger.raft"), f"{name_of(path)} imports {module}"


def test_the_package_does_not_import_grpc_by_itself() -> None:
    code = "import sys, dledger, dledger.config, dledger.cli.main; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_all_is_sorted_and_true(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined: set[str] = set()
    exported: list[str] | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    for node in tree.body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == "__all__":
            exported = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    has_code = any(not isinstance(node, ast.Expr) for node in tree.body)
    if exported is None:
        assert not has_code or path.name in {"__init__.py", "__main__.py", "version.py"}, (
            f"{name_of(path)} has no __all__"
        )
        return
    assert sorted(exported) == sorted(set(exported)), "a name twice"
    # isort's order, which ruff enforces (RUF022): CONSTANTS, Classes, functions.
    assert set(exported) <= defined, f"__all__ names what is not there: {set(exported) - defined}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_shipped_code_has_no_bare_assert_and_no_bare_except(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: use invariant(); python -O drops asserts"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(not isinstance(node, ast.Expr) for node in tree.body):
        assert ast.get_docstring(tree), f"{path}: no module docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and path != PACKAGE / "errors.py":
            assert ast.get_docstring(node), f"{path}:{node.lineno}: {node.name} has no docstring"


def test_files_say_nothing_that_belongs_to_one_machine() -> None:
    found = []
    for path in tracked_files():
        if path.suffix not in TEXT_SUFFIXES and path.suffix:
            continue
        if path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in FORBIDDEN_TEXT.items():
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(REPOSITORY)}:{line}: {what}: {match[0]!r}")
    assert not found, "\n".join(found)


def test_the_rule_about_machines_can_fail() -> None:
    paths = FORBIDDEN_TEXT["a path of somebody's machine"]
    assert paths.search("open('/" + "work/main/x')")
    assert paths.search("/" + "root/.venv")
    assert paths.search("see /home/ann/notes")
    assert not paths.search("/tmp/rmqstore/node00")
    assert not paths.search("a/work/b and https://x/work/y and /workspace")
    assert FORBIDDEN_TEXT["a registry host"].search("https://PyPI.org/simple")


def test_links_in_the_documentation_lead_somewhere() -> None:
    broken = []
    for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "#")):
                file = page.parent / target.split("#")[0]
                if not file.exists():
                    broken.append(f"{page.name}: {target}")
    assert not broken, "\n".join(broken)
