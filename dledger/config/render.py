"""The table of settings as a documentation page and as a sample file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby

from dledger.config.accepted import BROKER_KEYS, DLEDGER_KEYS
from dledger.config.model import SETTINGS
from dledger.config.setting import Kind, Setting, environment_name

__all__ = ["explain", "markdown_page", "sample_file"]

_INTRODUCTION = """\
# Configuration

<!-- Made from the table in dledger/config/model.py by `dledger config docs`; a test keeps it current. -->

A node reads one `key=value` file: `dledger start -c FILE`. RocketMQ's keys keep RocketMQ's spelling, odd as it is,
and a broker's file loads unchanged: the keys that only a broker needs are accepted. A key nobody knows is an error.

A value comes from the first of: a flag (`-D key=value`), the environment, the file, the default. `dledger config show
--origin -c FILE` says where each came from, `dledger config check FILE` finds every mistake at once.

Sizes take `KiB`, `MiB`, `GiB`; times take `ms`, `s`, `min`, `h`; plain numbers are bytes and milliseconds.
"""


def _default_text(setting: Setting) -> str:
    if setting.required:
        return "required"
    text = setting.format(setting.default)
    if not text:
        return "none"
    return f"{text} ms" if setting.kind is Kind.MILLISECONDS else text


def explain(setting: Setting) -> str:
    """Return all there is to say of a setting, as text of up to 100 columns."""
    lines = [
        setting.key,
        f"  default      {_default_text(setting)}",
        f"  kind         {setting.kind.value}" + (f"  ({setting.range_text()})" if setting.range_text() else ""),
        f"  also spelt   {', '.join(setting.aliases) or '-'}",
        f"  environment  {', '.join(environment_name(name) for name in setting.names)}",
        *textwrap.wrap(setting.doc, 98, initial_indent="  ", subsequent_indent="  "),
    ]
    return "\n".join(lines)


def _table(settings: Iterator[Setting]) -> Iterator[str]:
    yield "| key | default | range | environment | meaning |"
    yield "|---|---|---|---|---|"
    for setting in settings:
        aliases = "".join(f", `{name}`" for name in setting.aliases)
        allowed = setting.range_text().replace("|", "\\|") or setting.kind.value
        yield (
            f"| `{setting.key}`{aliases} | {_default_text(setting)} | {allowed} "
            f"| `{environment_name(setting.names[-1])}` | {setting.doc} |"
        )


def markdown_page() -> str:
    """Return ``docs/configuration.md``."""
    parts = [_INTRODUCTION]
    for section, settings in groupby(SETTINGS, key=lambda setting: setting.section):
        parts += [f"\n## {section}\n", *_table(settings)]
    parts += ["\n## Accepted without effect\n", "DLedger's settings that have no counterpart here:\n"]
    parts += ["| key | because |", "|---|---|"]
    parts += [f"| `{key}` | {why} |" for key, why in DLEDGER_KEYS.items()]
    parts.append(f"\nA RocketMQ broker's {len(BROKER_KEYS)} keys are accepted too, for the broker adapter:\n")
    parts.append(textwrap.fill(", ".join(f"`{key}`" for key in sorted(BROKER_KEYS)), 118))
    return "\n".join(parts) + "\n"


def sample_file(group: str, self_id: str, peers: str, root: str | None = None) -> str:
    """Return a file with every setting: the given ones set, the others as comments with their defaults."""
    given = {"dLegerGroup": group, "dLegerSelfId": self_id, "dLegerPeers": peers}
    if root is not None:
        given["storePathRootDir"] = root
    lines: list[str] = []
    for section, settings in groupby(SETTINGS, key=lambda setting: setting.section):
        lines.append(f"# ---- {section} ----\n")
        for setting in settings:
            lines += textwrap.wrap(setting.doc, 100, initial_indent="# ", subsequent_indent="# ")
            if setting.range_text():
                lines.append(f"# Range: {setting.range_text()}")
            value = given.get(setting.key)
            text = f"{setting.key}={setting.format(setting.default)}" if value is None else f"{setting.key}={value}"
            lines.append(f"#{text}\n" if value is None else f"{text}\n")
    return "\n".join(lines)
