"""Runs the ``console`` blocks of a documentation page as a reader would, in one shell, and compares what they print.

A block's lines that begin with ``$ `` are commands, which go on in the lines below that begin with ``> ``; the other lines below a command are what it prints. Every command must end with exit code 0 (``; echo $?`` shows
another). Printed lines are compared with figures and node numbers levelled out, ``…`` stands for anything, and lines
that the page leaves out do not matter; their order does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dledger.local_group import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
_START, _END = "\x1e", "\x1f"
_UNITS = re.compile(r"# ?(?:ms|min|s|m|h|d|[BKMGT])\b")


@dataclass
class Step:
    """One command of a page, with the line it stands at and the lines that it is said to print."""

    line: int
    command: str
    expected: list[str] = field(default_factory=list)


def console_steps(page: str) -> list[Step]:
    """Return the commands of a page's console blocks, in order."""
    steps: list[Step] = []
    inside = False
    for number, text in enumerate(page.splitlines(), 1):
        if text.startswith("```"):
            inside = text == "```console"
        elif inside and text.startswith("$ "):
            steps.append(Step(number, text[2:]))
        elif inside and text.startswith("> ") and steps and not steps[-1].expected:
            steps[-1].command += "\n" + text[2:]
        elif inside:
            assert steps, f"line {number}: output before any command"
            steps[-1].expected.append(text)
    return steps


def level(text: str) -> str:
    """Return a line without what differs from run to run: figures, hashes, node numbers, the width of columns."""
    text = re.sub(r"\b[0-9a-f]{8,}\b", "#", text)
    text = re.sub(r"\d+(?:[ .]\d+)*", "#", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"(?:# )+#", "#", _UNITS.sub("#", text))


def missing_line(expected: list[str], printed: str) -> str | None:
    """Return the first expected line that is not printed after those before it, None if all are."""
    lines = iter([level(line) for line in printed.splitlines()])
    for wanted in expected:
        if not wanted.strip() or wanted.strip() == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in level(wanted).split("…")))
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None


def _environment(home: Path) -> dict[str, str]:
    """The environment of a user who has installed the project, with nothing of his own exported."""
    tools = home / ".tools"
    tools.mkdir()
    for name, module in (
        ("dledger", "dledger"),
        ("mqadmin", "broker_adapter.admin"),
        ("mqbroker", "broker_adapter.broker.main"),
        ("mqnamesrv", "broker_adapter.namesrv.main"),
        ("python", ""),
    ):
        tool = tools / name
        run = f"-m {module} " if module else ""
        tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {run}"$@"\n')
        tool.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DLEDGER_", "NAMESRV_"))}
    return clean | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "HOME": str(home)}


def _script(steps: list[Step]) -> str:
    parts = []
    for number, step in enumerate(steps):
        parts.append(
            f"printf '{_START}{number}\\n'\n{{ {step.command}\n}} 2>&1\nstep_code=$?\n"
            f"printf '{_END}%d\\n' $step_code\n[ $step_code = 0 ] || exit 1\n"
        )
    return "".join(parts)


def _end_nodes(home: Path) -> None:
    """End what the page started: the processes whose ids it wrote down itself."""
    for path in home.rglob("*.pid"):
        pid = int(path.read_text().split()[0])
        try:
            arguments = Path(f"/proc/{pid}/environ").read_bytes()
            if f"HOME={home}".encode() in arguments:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


def run_page(
    page: Path,
    home: Path,
    ports: tuple[int, ...],
    *,
    before: Sequence[Step] = (),
    until: str | None = None,
    timeout: float = 110.0,
) -> None:
    """Run every command of ``page`` (those above the heading ``until``) in the folder ``home``, ``before`` first.

    ``ports`` that the page names become free ones. Raises AssertionError with the first command that fails or does not
    print what the page says.
    """
    text = page.read_text(encoding="utf-8")
    own = console_steps(text if until is None else text[: text.index(f"\n{until}\n")])
    assert own, f"{page.name} has no console block"
    steps = [*before, *own]
    script = _script(steps)
    for fixed, free in zip(ports, free_ports(len(ports)), strict=True):
        assert str(fixed) in script, f"{page.name} does not name port {fixed}"
        script = script.replace(str(fixed), str(free))
    output = home / ".output"
    try:
        # What took too long is the first command below that has no end.
        with open(output, "wb") as out, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["bash", "-c", script], cwd=home, env=_environment(home), stdout=out, stderr=out,
                stdin=subprocess.DEVNULL, timeout=timeout, check=False,
            )  # fmt: skip
    finally:
        _end_nodes(home)
    printed = output.read_text(encoding="utf-8", errors="replace")
    for number, step in enumerate(steps):
        found = re.search(rf"{_START}{number}\n(.*?){_END}(\d+)\n", printed, re.S)
        where = f"{page.name}:{step.line}: $ {step.command}"
        assert found, f"{where}\ndid not end. All that was printed:\n{printed}"
        assert found[2] == "0", f"{where}\nended with exit code {found[2]}:\n{found[1]}"
        missing = missing_line(step.expected, found[1])
        assert missing is None, f"{where}\ndoes not print\n{missing}\nbut\n{found[1]}"
