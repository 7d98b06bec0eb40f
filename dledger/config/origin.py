"""Where a value came from."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Origin", "OriginKind"]


class OriginKind(enum.IntEnum):
    """Sources by rank: a higher one wins."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    FLAG = 3
    CODE = 4


@dataclass(frozen=True, slots=True)
class Origin:
    """One source of a value. ``name``: file, variable or key; places count from 1, 0 outside files."""

    kind: OriginKind
    name: str = ""
    line: int = 0
    column: int = 0
    text: str = ""
    overridden: tuple[Origin, ...] = ()
    """The sources that lost, best first."""

    def where(self, offset: int = 0) -> str:
        """Return the place as a problem names it: ``file:line:column``, the variable, or the flag."""
        match self.kind:
            case OriginKind.FILE:
                return f"{self.name}:{self.line}:{self.column + offset}"
            case OriginKind.ENVIRONMENT:
                return f"environment:{self.name}"
            case OriginKind.FLAG:
                return f"-D {self.name}"
            case OriginKind.DEFAULT:
                return "default"
            case OriginKind.CODE:
                return "DLedgerConfig"

    def describe(self) -> str:
        """Return what ``config show --origin`` prints: the source, and what it overrode."""
        match self.kind:
            case OriginKind.FILE:
                text = f"{self.name}:{self.line}"
            case OriginKind.ENVIRONMENT:
                text = f"env {self.name}"
            case OriginKind.FLAG:
                text = f"flag -D {self.name}"
            case OriginKind.DEFAULT:
                return "default"
            case OriginKind.CODE:
                return "set by the program"
        lost = [
            f"file said {o.text}, {o.name}:{o.line}" if o.kind is OriginKind.FILE else f"env {o.name} said {o.text}"
            for o in self.overridden
        ]
        return f"{text} ({'; '.join(lost)})" if lost else text
