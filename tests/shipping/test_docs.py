"""What the documentation says is what happens: its commands run, its verbs and options exist."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from broker_adapter.admin.commands import cli as mqadmin
from dledger.cli.root import cli
from tests.shipping.console import REPOSITORY, Step, console_steps, level, missing_line, run_page

DOCS = REPOSITORY / "docs"
PORTS = (40911, 40912, 40913)
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS.glob("*.md")])


def three_nodes() -> list[Step]:
    """The quick start up to where three nodes run."""
    steps = console_steps((DOCS / "quickstart.md").read_text(encoding="utf-8"))
    running = next(number for number, step in enumerate(steps) if " --wait " in step.command)
    return steps[: running + 1]


def test_the_quick_start_runs(tmp_path: Path) -> None:
    run_page(DOCS / "quickstart.md", tmp_path, PORTS)


def test_a_rolling_restart_runs_as_it_is_described(tmp_path: Path) -> None:
    run_page(DOCS / "operations.md", tmp_path, PORTS, before=three_nodes(), until="## Taking a copy")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_all_operations_run_as_they_are_described(tmp_path: Path) -> None:
    """Copies, replaced nodes, and a quorum restored by hand, word for word: half a minute."""
    run_page(DOCS / "operations.md", tmp_path, (*PORTS, 40922), before=three_nodes(), timeout=380)


def test_the_sample_configuration_is_read_as_described(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    run_page(DOCS / "migrating.md", tmp_path, ())


# ---------------------------------------------------------------- verbs and options


def shell_lines(page: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of everything on a page that is for a shell: code blocks of any kind, and inline code."""
    inside = False
    for number, text in enumerate(page.splitlines(), 1):
        if text.startswith("```"):
            inside = not inside
        elif inside or text.startswith("    "):
            yield number, text
        else:
            for code in re.findall(r"`([^`]+)`", text):
                yield number, code


def commands(page: str, program: str = "dledger") -> Iterator[tuple[int, list[str]]]:
    """Yield (line, words after the program) of each command of ``program`` on a page.

    A line names the program where a command may begin: at its start, after ``$ ``, ``|``, ``;``, ``&&``, ``$(``, a path.
    """
    begin = re.compile(rf"(?:^|[|;&(]\s*|\bdo\s+|\bexec\s+|[\w.]/bin/)\s*(?:\$ )?{program}(?= [a-z-])")
    for number, text in shell_lines(page):
        for found in begin.finditer(text):
            rest = re.split(r"[|;&>#()`…]| \\$| \d>", text[found.end() :])[0]
            words = shlex.split(rest.replace("'", " ").replace('"', " "), posix=False)
            yield number, [word.rstrip(",.:") for word in words]


def unknown_parts(words: list[str], program: click.Command = cli) -> list[str]:
    """Return the verb and the options of a command line that the real command does not know.

    Alternatives as in ``kill|pause`` and ``check | show`` are each looked at; what stands in for a value is not.
    """
    command = program
    context = click.Context(program)
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        names = rest.pop(0).split("|")
        if names == ["COMMAND"]:
            return []
        found = [command.get_command(context, name) for name in names]
        missing = [name for name, one in zip(names, found, strict=True) if one is None]
        if missing:
            return missing
        assert found[0] is not None
        command = found[0]
    known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    known |= {"-h", "--help"}
    options = [word.strip("[]").split("=")[0] for word in rest if re.match(r"\[?--?[A-Za-z]", word)]
    return [option for option in options if option not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_that_is_written_down_exists(page: Path) -> None:
    wrong = [
        f"{page.name}:{number}: {name} {' '.join(words)}: there is no {', '.join(unknown)}"
        for name, program in (("dledger", cli), ("mqadmin", mqadmin))
        for number, words in commands(page.read_text(encoding="utf-8"), name)
        if words and (unknown := unknown_parts(words, program))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_look_at_commands_can_fail() -> None:
    page = (
        "`dledger nonsense` and\n```\n$ x | dledger append --nonsense 1\n$ dledger log verfy D\n```\n`dledger status`\n"
    )
    found = list(commands(page))
    assert [number for number, _ in found] == [1, 3, 4, 6]
    assert [unknown_parts(words) for _, words in found] == [["nonsense"], ["--nonsense"], ["verfy"], []]


def test_the_comparison_of_output_can_fail() -> None:
    assert level("n1    127.0.0.1:18185  LEADER  14.0 ms    48 B") == level("n2 127.0.0.1:9 LEADER 2 s 1.5 K")
    assert missing_line(["PASS  …, 3 B"], "x\nPASS 4 entries, 12 K\n") is None
    assert missing_line(["PASS  …"], "FAIL 4 entries\n") == "PASS  …"
    assert missing_line(["two", "one"], "one\ntwo\n") == "one"
    assert [
        (step.line, step.command, step.expected) for step in console_steps("```console\n$ a \\\n> b\nout\n```\n$ c\n")
    ] == [(2, "a \\\nb", ["out"])]
