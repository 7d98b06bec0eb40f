"""RocketMQ's ``key=value`` files: Java properties as people really write them.

Accepted: ``#`` and ``!`` comments, spaces round ``=`` and at line ends, a byte order mark, CRLF, a line
continued with a backslash. Everything else that is not ``key=value`` is a problem with its place; all
problems come at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_FILE_BYTES", "Assignment", "parse_conf"]

MAX_FILE_BYTES: Final = 1 << 20
"""No configuration is longer; a longer file is the wrong file."""

_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ESCAPE: Final = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)")
_ESCAPED: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


@dataclass(frozen=True, slots=True)
class Assignment:
    """One ``key=value``. Places count from 1; ``column`` is the key's, ``value_column`` the value's."""

    key: str
    value: str
    line: int
    column: int
    value_column: int


def _unescape(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPED.get(code, code)

    return _ESCAPE.sub(replace, text) if "\\" in text else text


def _continues(line: str) -> bool:
    """Whether the line ends in an odd number of backslashes."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Join continued lines; (number of the first, text). A comment is never continued, as in Java."""
    out: list[tuple[int, str]] = []
    open_line: tuple[int, str] | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip("\r")
        is_comment = open_line is None and line.lstrip()[:1] in {"#", "!"}
        if open_line is not None:
            line = open_line[1] + line.lstrip()
        start = open_line[0] if open_line else number
        open_line = None
        if not is_comment and _continues(line):
            open_line = (start, line[:-1])
        elif not is_comment and line.strip():
            out.append((start, line))
    if open_line is not None and open_line[1].strip():
        out.append(open_line)
    return out


def _bad_line(line: str) -> str:
    if "＝" in line:
        return 'a full-width "＝"; write key=value with "="'
    return f'expected key=value, found "{line.strip()[:60]}"'


def parse_conf(content: bytes, name: str) -> tuple[list[Assignment], list[str]]:
    """Return the assignments in order, and every problem as ``name:line:column: what``. Never raises."""
    if len(content) > MAX_FILE_BYTES:
        return [], [f"{name}:1:1: {len(content)} bytes; a configuration has at most {MAX_FILE_BYTES}"]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        number = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        return [], [f"{name}:{number}:{column}: not UTF-8 text; save the file as UTF-8"]
    assignments: list[Assignment] = []
    problems: list[str] = []
    for number, line in _logical_lines(text):
        key_text, equals, value_text = line.partition("=")
        key = key_text.strip()
        column = len(key_text) - len(key_text.lstrip()) + 1
        if not equals:
            problems.append(f"{name}:{number}:{column}: {_bad_line(line)}")
            continue
        if not _KEY.fullmatch(key):
            problems.append(f'{name}:{number}:{column}: "{key}" is not a key')
            continue
        value_column = len(key_text) + 2 + len(value_text) - len(value_text.lstrip())
        assignments.append(Assignment(key, _unescape(value_text.strip()), number, column, value_column))
    return assignments, problems
