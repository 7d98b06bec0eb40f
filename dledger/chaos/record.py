"""What a run leaves behind: everything that was done to the group, seen of it and heard by clients. One file.

Times are seconds since the run began. The file is JSON lines (compressed where its name ends in ``.gz``): one of
``meta``, then faults, events, samples, elections, leader losses, the final log, and the operations as `History.dump`
writes them.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from dledger.checker import History
from dledger.errors import UnexpectedArgumentError

__all__ = ["Election", "Event", "FaultSpan", "LeaderLoss", "NodeSample", "Record", "embed"]

_LOG_ROW: Final = 1000
_EMBEDDED: Final = re.compile(r'<script type="application/octet-stream" id="history">([A-Za-z0-9+/=\s]*)</script>')


@dataclass(slots=True)
class FaultSpan:
    """One fault as it was done: ``words`` for people, ``nodes`` it hit, ``ended`` None while it lasts.

    ``takes``: those of the nodes that can do nothing for the group meanwhile.
    """

    kind: str
    words: str
    nodes: list[str]
    began: float
    ended: float | None = None
    takes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Event:
    """Something worth a line."""

    at: float
    words: str


@dataclass(slots=True)
class NodeSample:
    """One node at one moment. ``state``: leader, follower, …, or down, paused, silent; ``cut``: links of it are cut."""

    at: float
    node: str
    state: str
    cut: bool
    term: int
    commit_index: int
    last_index: int
    pid: int


@dataclass(slots=True)
class Election:
    """``node`` became leader of ``term``."""

    at: float
    node: str
    term: int


@dataclass(slots=True)
class LeaderLoss:
    """A fault took the leader. Milliseconds since then, None where it never came or is not known.

    ``failover`` False: the group could not replace it by itself, since no majority was left.
    """

    node: str
    kind: str
    at: float
    failover: bool
    detected_ms: float | None = None
    elected_ms: float | None = None
    elected: str = ""
    elected_term: int = 0
    first_ack_ms: float | None = None
    gap_ms: float | None = None


@dataclass(slots=True)
class Record:
    """Everything. ``meta``: configuration, versions, seed, command line, and counts that come from nowhere else.

    ``log``: the committed log, None for entries of nobody; ``digests``: node → hash of its files up to the log's end.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    faults: list[FaultSpan] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    samples: list[NodeSample] = field(default_factory=list)
    elections: list[Election] = field(default_factory=list)
    losses: list[LeaderLoss] = field(default_factory=list)
    history: History = field(default_factory=History)
    log: list[str | None] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    def faults_at(self, at: float) -> list[FaultSpan]:
        """The faults that were active at a moment."""
        return [
            span for span in self.faults if span.began <= at <= (float("inf") if span.ended is None else span.ended)
        ]

    # ---------------------------------------------------------------- files

    def dump(self, file: TextIO) -> None:
        """Write everything as JSON lines."""
        rows: Iterable[tuple[str, Iterable[Any]]] = (
            ("fault", self.faults),
            ("event", self.events),
            ("sample", self.samples),
            ("election", self.elections),
            ("loss", self.losses),
        )
        file.write(json.dumps(["meta", self.meta]) + "\n")
        for name, items in rows:
            for item in items:
                file.write(json.dumps([name, asdict(item)], separators=(",", ":")) + "\n")
        for at in range(0, len(self.log), _LOG_ROW):
            file.write(json.dumps(["log", self.log[at : at + _LOG_ROW]], separators=(",", ":")) + "\n")
        file.write(json.dumps(["digests", self.digests]) + "\n")
        self.history.dump(file)

    def save(self, path: Path) -> None:
        """Write the file; compressed where its name ends in ``.gz``."""
        if path.suffix == ".gz":
            with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as file:
                self.dump(file)
        else:
            with open(path, "w", encoding="utf-8") as file:
                self.dump(file)

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a history file, compressed or not, or the history inside an HTML report.

        Raises:
            UnexpectedArgumentError: it is none of these; says where it is wrong.
        """
        try:
            data = path.read_bytes()
            return cls.parse(_text(data).splitlines())
        except OSError as error:
            raise UnexpectedArgumentError(f"{path}: {error.strerror}") from error
        except (ValueError, EOFError, zlib.error) as error:
            raise UnexpectedArgumentError(f"{path} is no history of a chaos run: {error}") from error

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Record:
        """Read what `dump` wrote.

        Raises:
            ValueError: a line is wrong; says which.
        """
        record = cls()
        seen_meta = False
        operations: list[str] = []
        for number, line in enumerate(lines, 1):
            if line.startswith(('["a"', '["r"')):
                operations.append(line)
                continue
            try:
                name, value = json.loads(line)
                record._take(name, value)
                seen_meta = seen_meta or name == "meta"
            except (TypeError, ValueError, KeyError) as error:
                raise ValueError(f"line {number}: {error}") from error
        if not seen_meta:
            raise ValueError("it has no meta line")
        record.history = History.load(operations)
        return record

    def _take(self, name: str, value: Any) -> None:  # noqa: ANN401 - parsed JSON
        if name == "meta":
            self.meta = dict(value)
        elif name == "log":
            self.log.extend(value)
        elif name == "digests":
            self.digests = dict(value)
        elif name == "fault":
            self.faults.append(FaultSpan(**value))
        elif name == "event":
            self.events.append(Event(**value))
        elif name == "sample":
            self.samples.append(NodeSample(**value))
        elif name == "election":
            self.elections.append(Election(**value))
        elif name == "loss":
            self.losses.append(LeaderLoss(**value))
        else:
            raise ValueError(f"unknown row {name!r}")


def _text(data: bytes) -> str:
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data).decode()
    text = data.decode()
    if text.lstrip().startswith("<!DOCTYPE html>"):
        match = _EMBEDDED.search(text)
        if match is None:
            raise ValueError("the page has no history in it")
        return zlib.decompress(base64.b64decode(match[1])).decode()
    return text


def _pieces(text: str, width: int) -> Iterator[str]:
    for at in range(0, len(text), width):
        yield text[at : at + width]


def embed(record: Record) -> str:
    """Return the record as the element that an HTML report carries and `Record.load` reads."""
    out = io.StringIO()
    record.dump(out)
    packed = base64.b64encode(zlib.compress(out.getvalue().encode(), 6)).decode()
    body = "\n".join(_pieces(packed, 4096))
    return f'<script type="application/octet-stream" id="history">{body}</script>'
