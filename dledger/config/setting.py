"""One row of the table of settings: how it is spelt, parsed, checked, shown and explained."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dledger.config.peers import NODE_ID, Peer, format_peers, parse_peers
from dledger.config.values import (
    BadValueError,
    format_bytes,
    parse_bytes,
    parse_integer,
    parse_milliseconds,
    split_list,
)

__all__ = ["REQUIRED", "Kind", "Setting", "environment_name"]

REQUIRED: Final = object()
"""The default of a setting that has none."""

_GROUP: Final = re.compile(r"[%|A-Za-z0-9_.-]{1,128}")
_HOST: Final = re.compile(r"[A-Za-z0-9_.:%*-]{1,253}")


class Kind(enum.Enum):
    """What a value is; decides how its text is read and written."""

    GROUP = "group name"
    NODE_ID = "node id"
    NODE_IDS = "node ids, ;-separated"
    PEERS = "peers, ID-HOST:PORT;…"
    HOST = "host or address"
    PATH = "path"
    CHOICE = "choice"
    INTEGER = "number"
    BYTES = "bytes"
    MILLISECONDS = "milliseconds"


def environment_name(key: str) -> str:
    """Return a key's variable: ``dLegerSelfId`` has ``DLEDGER_DLEGER_SELF_ID``, ``peers`` ``DLEDGER_PEERS``."""
    words = re.sub(r"(?<=[a-z0-9])(?<!^[a-z])([A-Z])", r"_\1", key)
    return f"DLEDGER_{words.upper()}"


def _parse_group(text: str) -> str:
    if not _GROUP.fullmatch(text):
        raise BadValueError([(0, f'"{text}" is not a group name (1-128 letters, digits, "_", "-", ".", "%" or "|")')])
    return text


def _parse_node_id(text: str) -> str:
    if not NODE_ID.fullmatch(text):
        raise BadValueError([(0, f'"{text}" is not a node id (1-64 letters, digits, "_" or ".")')])
    return text


def _parse_node_ids(text: str) -> tuple[str, ...]:
    items = split_list(text)
    bad = [(at, f'"{item}" is not a node id') for at, item in items if not NODE_ID.fullmatch(item)]
    if bad:
        raise BadValueError(bad)
    return tuple(item for _, item in items)


def _parse_host(text: str) -> str | None:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if host and not _HOST.fullmatch(host):
        raise BadValueError([(0, f'"{text}" is not a host name or address')])
    return host or None


def _parse_path(text: str) -> str:
    if not text or "\0" in text:
        raise BadValueError([(0, "an empty path")])
    return os.path.expanduser(text)


def _same(text: str) -> str:
    return text


_PARSERS: Final[dict[Kind, Callable[[str], object]]] = {
    Kind.GROUP: _parse_group,
    Kind.NODE_ID: _parse_node_id,
    Kind.NODE_IDS: _parse_node_ids,
    Kind.PEERS: parse_peers,
    Kind.HOST: _parse_host,
    Kind.PATH: _parse_path,
    Kind.CHOICE: _same,
    Kind.INTEGER: parse_integer,
    Kind.BYTES: parse_bytes,
    Kind.MILLISECONDS: parse_milliseconds,
}
_NUMBERS: Final = frozenset({Kind.INTEGER, Kind.BYTES, Kind.MILLISECONDS})


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. ``field`` and ``default`` come from the `DLedgerConfig` field that carries the row."""

    key: str
    kind: Kind
    section: str
    doc: str
    aliases: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 2**62
    choices: tuple[str, ...] = ()
    field: str = ""
    default: Any = REQUIRED

    @property
    def names(self) -> tuple[str, ...]:
        """Every spelling a file may use, the canonical one first."""
        return (self.key, *self.aliases)

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    def parse(self, text: str) -> object:
        """Read a value from a file, a variable or a flag.

        Raises:
            BadValueError: every problem, with offsets.
        """
        value = _PARSERS[self.kind](text)
        if self.kind is Kind.CHOICE:
            # Java spells enums exactly; people do not.
            value = next((choice for choice in self.choices if choice.lower() == text.lower()), text)
        problem = self.check(value)
        if problem:
            raise BadValueError([(0, problem)])
        return value

    def check(self, value: object) -> str | None:
        """Return what is wrong with a value of the right text form, or None."""
        if self.kind in _NUMBERS:
            if not isinstance(value, int) or isinstance(value, bool):
                return f"{value!r} is not a whole number"
            if not self.minimum <= value <= self.maximum:
                return f"{value} is out of range {self.range_text()}"
            return None
        if self.kind is Kind.CHOICE:
            return None if value in self.choices else f'"{value}" is not one of {", ".join(self.choices)}'
        return self._check_text(value)

    def _check_text(self, value: object) -> str | None:
        """Check a value that a program passed: the text forms must parse back to it."""
        try:
            match self.kind:
                case Kind.PEERS:
                    if not isinstance(value, tuple) or not all(isinstance(p, Peer) for p in value):
                        return "is not a tuple of Peer (parse_peers makes one of text)"
                    parse_peers(format_peers(value))
                case Kind.NODE_IDS:
                    if not isinstance(value, tuple):
                        return "is not a tuple of node ids"
                    _parse_node_ids(";".join(value))
                case Kind.HOST:
                    _parse_host(str(value or ""))
                case _:
                    if not isinstance(value, str):
                        return f"{value!r} is not text"
                    _PARSERS[self.kind](value)
        except BadValueError as error:
            return str(error)
        return None

    def format(self, value: object) -> str:
        """Write a value as a file would have it; `parse` reads it back."""
        match self.kind:
            case Kind.PEERS:
                return format_peers(value) if isinstance(value, tuple) else str(value)
            case Kind.NODE_IDS:
                return ";".join(value) if isinstance(value, tuple) else str(value)
            case Kind.BYTES:
                return format_bytes(value) if isinstance(value, int) else str(value)
            case _:
                return "" if value is None else str(value)

    def range_text(self) -> str:
        """Return the range as people read it; empty where there is none."""
        if self.kind is Kind.CHOICE:
            return " | ".join(self.choices)
        if self.kind not in _NUMBERS:
            return ""
        low, high = self.format(self.minimum), self.format(self.maximum)
        unit = " ms" if self.kind is Kind.MILLISECONDS else ""
        return f"{low} and more{unit}" if self.maximum >= 2**62 else f"{low}–{high}{unit}"
