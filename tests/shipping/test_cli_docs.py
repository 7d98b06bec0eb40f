"""docs/cli.md is what the commands say of themselves, and every verb and option says something."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import click
import pytest

from dledger.cli.root import cli
from tests.shipping.console import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "gen_cli_docs.py"
HOW = "run: python scripts/gen_cli_docs.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_cli_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(generator: ModuleType) -> None:
    page = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    for verb, section in generator.sections().items():
        assert section in page, f"docs/cli.md is behind at dledger {verb}; {HOW}"
    assert page == generator.markdown_page(), f"docs/cli.md is not current; {HOW}"


def test_check_says_so(generator: ModuleType, monkeypatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generator, "PAGE", tmp_path / "cli.md")
    monkeypatch.setattr(sys, "argv", ["gen_cli_docs.py", "--check"])
    assert generator.main() == 1
    assert "gen_cli_docs.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gen_cli_docs.py"])
    assert generator.main() == 0
    monkeypatch.setattr(sys, "argv", ["gen_cli_docs.py", "--check"])
    assert generator.main() == 0
    (tmp_path / "cli.md").write_text((tmp_path / "cli.md").read_text().replace("--wait", "--weight"))
    assert generator.main() == 1


def all_commands(command: click.Command = cli, path: str = "dledger") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from all_commands(inner, f"{path} {name}")


def test_every_verb_is_explained() -> None:
    silent = [path for path, command in all_commands() if not command.help]
    assert not silent


def test_no_two_options_of_a_verb_share_a_name() -> None:
    for path, command in all_commands():
        names = [name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]]
        assert len(names) == len(set(names)), path
