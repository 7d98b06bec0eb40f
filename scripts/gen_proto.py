#!/usr/bin/env python3
"""Generate the Python code of ``proto/`` with one pinned toolchain, or check that the committed code is exactly that.

    scripts/gen_proto.py            write <package>/v1/*_pb2.py, *_pb2_grpc.py and their .pyi
    scripts/gen_proto.py --check    compare byte for byte; 1 and a summary of the differences if they are not the same

The toolchain is the oldest that the project supports: code made by it runs on every later grpcio and on protobuf 6
and 7, while newer code refuses older runtimes. It lives in a virtual environment of its own (``.venv-proto``,
made on demand), because its protobuf and the project's are not the same.

Exit codes: 0 done or equal, 1 different, 2 no toolchain.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_DIR = ROOT / "proto"
VENV_DIR = ROOT / ".venv-proto"
REQUIREMENTS = ("grpcio-tools==1.76.0", "mypy-protobuf==5.1.0")
MAX_DIFF_LINES = 40

PACKAGE_INIT = '"""Generated from ``proto/`` by ``scripts/gen_proto.py``; do not edit."""\n'


class ToolchainError(Exception):
    """The pinned toolchain could not be installed or does not run."""


def proto_files() -> list[str]:
    """Return every proto file as its path below ``proto/``, sorted."""
    return sorted(str(path.relative_to(PROTO_DIR)) for path in PROTO_DIR.rglob("*.proto"))


def toolchain() -> Path:
    """Return the interpreter of the toolchain's environment, making the environment if it is not complete.

    Raises:
        ToolchainError: the environment could not be made (no network, say).
    """
    python = VENV_DIR / "bin" / "python"
    stamp = VENV_DIR / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS) + "\n"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    try:
        venv.create(VENV_DIR, clear=True, symlinks=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"cannot make {VENV_DIR.name}: {error}") from error
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--retries", "1", "--timeout", "10", *REQUIREMENTS]
    result = subprocess.run(install, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ToolchainError(f"cannot install {', '.join(REQUIREMENTS)}:\n{result.stderr.strip()}")
    stamp.write_text(wanted)
    return python


def generate(output: Path) -> list[str]:
    """Generate the code of all proto files below ``output``; return the files written, relative and sorted.

    Raises:
        ToolchainError: protoc failed; its message says where in which proto file.
    """
    python = toolchain()
    files = proto_files()
    output.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "grpc_tools.protoc", f"-I{PROTO_DIR}"]
    command += [f"--{kind}_out={output}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # protoc finds its plugins by PATH.
    path = f"{VENV_DIR / 'bin'}:/usr/bin:/bin"
    result = subprocess.run(
        [*command, *files], capture_output=True, text=True, check=False, env={"PATH": path}, cwd=ROOT
    )
    if result.returncode != 0:
        raise ToolchainError(f"protoc failed:\n{result.stderr.strip()}")
    for folder in {Path(name).parent for name in files}:
        (output / folder / "__init__.py").write_text(PACKAGE_INIT)
    return sorted(str(path.relative_to(output)) for path in output.rglob("*.py*") if path.is_file())


def committed() -> list[str]:
    """Return the generated files that are in the tree, relative and sorted."""
    folders = {Path(name).parent for name in proto_files()}
    return sorted(
        str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).glob("*.py*") if path.is_file()
    )


def differences(fresh: Path, names: list[str]) -> list[str]:
    """Return one or more lines for each file that is missing, left over or not the same in the tree."""
    lines = [f"left over: {name}" for name in committed() if name not in names]
    for name in names:
        target = ROOT / name
        if not target.exists():
            lines.append(f"missing: {name}")
        elif target.read_bytes() != (fresh / name).read_bytes():
            lines.append(f"differs: {name}")
            diff = difflib.unified_diff(
                target.read_text().splitlines(),
                (fresh / name).read_text().splitlines(),
                "tree",
                "generated",
                "",
                "",
                0,
            )
            lines += [f"    {line[:160]}" for line in list(diff)[:MAX_DIFF_LINES]]
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description="generate the Python code of proto/")
    parser.add_argument("--check", action="store_true", help="compare with the tree instead of writing")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.check:
            written = generate_into_tree()
            print(f"wrote {len(written)} files")
            return 0
        with tempfile.TemporaryDirectory() as folder:
            found = differences(Path(folder), generate(Path(folder)))
    except ToolchainError as error:
        print(f"gen_proto: {error}", file=sys.stderr)
        return 2
    if found:
        print(
            "generated code is not what proto/ says; run scripts/gen_proto.py\n" + "\n".join(found),
            file=sys.stderr,
        )
        return 1
    return 0


def generate_into_tree() -> list[str]:
    """Generate beside the tree first, so that a failing protoc leaves the tree as it was; return the files written."""
    with tempfile.TemporaryDirectory() as folder:
        names = generate(Path(folder))
        for name in names:
            target = ROOT / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((Path(folder) / name).read_bytes())
    for name in committed():
        if name not in names:
            (ROOT / name).unlink()
    return names


if __name__ == "__main__":
    sys.exit(main())
