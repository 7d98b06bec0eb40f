"""Text to values: numbers with units, lists. Every failure says what would be right, and where."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "BadValueError",
    "format_bytes",
    "parse_boolean",
    "parse_bytes",
    "parse_integer",
    "parse_milliseconds",
    "split_list",
]

_NUMBER: Final = re.compile(r"([+-]?\d+)\s*([A-Za-z]*)", re.ASCII)
_BYTE_UNITS: Final = {
    "": 1, "b": 1,
    "k": 1024, "kb": 1024, "kib": 1024,
    "m": 1024**2, "mb": 1024**2, "mib": 1024**2,
    "g": 1024**3, "gb": 1024**3, "gib": 1024**3,
}  # fmt: skip
_TIME_UNITS: Final = {"": 1, "ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000}


class BadValueError(ValueError):
    """A value that cannot be taken. ``problems``: (offset in the value's text, what is wrong)."""

    def __init__(self, problems: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


def _bad(message: str, text: str) -> BadValueError:
    hint = " (a comment needs a line of its own)" if "#" in text else ""
    return BadValueError([(0, f'"{text}" {message}{hint}')])


def _scaled(text: str, units: dict[str, int], message: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None or match[2].lower() not in units or len(match[1]) > 19:
        raise _bad(message, text)
    return int(match[1]) * units[match[2].lower()]


def parse_integer(text: str) -> int:
    """Parse a plain decimal integer."""
    return _scaled(text, {"": 1}, "is not a whole number")


def parse_bytes(text: str) -> int:
    """Parse bytes: a plain number, or one with KiB, MiB or GiB (k, m, g and KB, MB, GB mean the same)."""
    return _scaled(text, _BYTE_UNITS, "is not a size; write bytes, or a number with KiB, MiB or GiB")


def parse_milliseconds(text: str) -> int:
    """Parse milliseconds: a plain number, or one with ms, s, min or h."""
    return _scaled(text, _TIME_UNITS, "is not a time; write milliseconds, or a number with ms, s, min or h")


def parse_boolean(text: str) -> bool:
    """Parse ``true`` or ``false`` in any case, as Java does for files that other tools read too."""
    lowered = text.lower()
    if lowered not in {"true", "false"}:
        raise _bad("is neither true nor false", text)
    return lowered == "true"


def split_list(text: str) -> list[tuple[int, str]]:
    """Split at ``;`` (also full-width) into (offset, stripped item); empty items are left out."""
    items: list[tuple[int, str]] = []
    offset = 0
    for part in text.replace("；", ";").split(";"):
        item = part.strip()
        if item:
            items.append((offset + len(part) - len(part.lstrip()), item))
        offset += len(part) + 1
    return items


def format_bytes(count: int) -> str:
    """Write a size the way `parse_bytes` reads it, in the largest unit that divides it."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)
