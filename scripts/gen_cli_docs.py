"""Makes docs/cli.md, the reference of the `dledger` command, from the commands themselves.

python scripts/gen_cli_docs.py            # write docs/cli.md
python scripts/gen_cli_docs.py --check    # exit code 1 if it would change; tests/shipping/test_cli_docs.py does so
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "cli.md"

if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from dledger.cli.exit_codes import ExitCode  # noqa: E402 - found in this checkout, installed or not
from dledger.cli.options import per_second, seconds, target_options  # noqa: E402
from dledger.cli.root import cli  # noqa: E402
from dledger.cli.verbs import COMMANDS  # noqa: E402


@click.command()
@target_options
def _target(**_: object) -> None:
    """Has the options that name a group, and no others."""


SHARED = {tuple(parameter.opts) for parameter in _target.params}
TYPES = {seconds: "TIME", per_second: "N/s"}

INTRODUCTION = """\
# The `dledger` command

<!-- Made from the commands by `python scripts/gen_cli_docs.py`; a test keeps it current. -->

Results go to standard output, everything else to standard error. A TIME takes `ms`, `s`, `min` or `h`; a plain number
is seconds. `dledger completion` teaches bash, zsh and fish to complete all of this.
"""

GROUP_OPTIONS = """\
## The group's options

Commands that talk to a group all take these. A flag beats the environment, which beats the file.
"""


def _paragraphs(help_text: str) -> str:
    """Turn a command's help into Markdown: paragraphs on one line each, what follows ``\\b`` as it stands."""
    parts = []
    for paragraph in inspect.cleandoc(help_text).split("\f")[0].split("\n\n"):
        if paragraph.startswith("\b\n"):
            parts.append("```\n" + paragraph[2:] + "\n```")
        else:
            parts.append(re.sub(r"\s+", " ", paragraph).strip())
    return "\n\n".join(parts)


def _value(parameter: click.Parameter) -> str:
    """Return what stands for a parameter's value; empty for a flag."""
    if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
        return ""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(str(choice) for choice in parameter.type.choices)
    if isinstance(parameter, click.Argument):
        return (parameter.name or "").upper()
    if isinstance(parameter.type, click.types.FuncParamType) and parameter.type.func in TYPES:
        return TYPES[parameter.type.func]
    kinds: list[tuple[type, str]] = [
        (click.types.IntParamType, "N"),
        (click.types.FloatParamType, "X"),
        (click.Path, "PATH"),
    ]
    own = parameter.type.name if not type(parameter.type).__module__.startswith("click.") else "TEXT"
    return next((text for kind, text in kinds if isinstance(parameter.type, kind)), own)


def _usage(path: str, command: click.Command) -> str:
    words = [path]
    if any(isinstance(parameter, click.Option) and not parameter.hidden for parameter in command.params):
        words.append("[OPTIONS]")
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            text = _value(parameter) + ("…" if parameter.nargs == -1 else "")
            words.append(text if parameter.required else f"[{text}]")
    return " ".join([*words, "COMMAND"] if isinstance(command, click.Group) else words)


def _default(option: click.Option) -> str:
    if isinstance(option.show_default, str):
        return f" Default: {option.show_default}."
    if not option.show_default or option.is_flag or option.default is None or callable(option.default):
        return ""
    return f" Default: `{option.default}`."


def _option_row(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    value = _value(option).replace("|", "\\|")
    text = re.sub(r"\s+", " ", option.help or "").strip().replace("|", "\\|")
    text += "" if not text or text.endswith((".", "]", "!")) else "."
    notes = (
        _default(option) + (" Required." if option.required else "") + (" May be repeated." if option.multiple else "")
    )
    return f"| `{names}{' ' + value if value else ''}` | {(text + notes).strip()} |"


def _table(options: Sequence[click.Option]) -> str:
    return "| option | |\n|---|---|\n" + "\n".join(_option_row(option) for option in options)


def _section(path: str, command: click.Command, level: int) -> Iterator[str]:
    """Yield the Markdown of one command and of those below it."""
    yield f"{'#' * level} `{path}`\n"
    yield f"```\n{_usage(path, command)}\n```\n"
    yield _paragraphs(command.help or "") + "\n"
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if {tuple(option.opts) for option in options} >= SHARED:
        options = [option for option in options if tuple(option.opts) not in SHARED]
        yield f"Takes [the group's options](#the-groups-options){', and:' if options else '.'}\n"
    if options:
        yield _table(options) + "\n"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _section(f"{path} {name}", inner, level + 1)


def sections() -> dict[str, str]:
    """Return verb → its part of the page, in the order of ``dledger --help``."""
    context = click.Context(cli)
    found = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None:
            found[name] = "\n".join(_section(f"dledger {name}", command, 2))
    return found


def markdown_page() -> str:
    """Return ``docs/cli.md``."""
    parts = sections()
    contents = ["| verb | |", "|---|---|"]
    contents += [f"| [`{name}`](#dledger-{name}) | {COMMANDS[name][1]} |" for name in parts]
    codes = ["## Exit codes\n", "| code | |", "|---|---|", *(f"| {int(code)} | {code.meaning} |" for code in ExitCode)]
    shared = _table([parameter for parameter in _target.params if isinstance(parameter, click.Option)])
    return "\n".join([INTRODUCTION, *contents, "", GROUP_OPTIONS, shared, "", *parts.values(), *codes]) + "\n"


def main() -> int:
    page = markdown_page()
    if sys.argv[1:] == ["--check"]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        if not current:
            print("docs/cli.md is not current: run python scripts/gen_cli_docs.py", file=sys.stderr)
        return 0 if current else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
