"""What clients did and what they were told: the record that the checker judges.

An append is one *value* (anything hashable that no other append of the run uses) and has one of three
outcomes: acknowledged with its index, definitely failed, or unknown. A read says what it learnt of the
log's length at one instant between its call and its return, and which values it saw. All times are seconds
of one monotonic clock.

Columns instead of objects, so that a million operations cost tens of megabytes and are judged in seconds.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TextIO

__all__ = ["ACKNOWLEDGED", "FAILED", "UNKNOWN", "FinalLog", "History", "Read"]

UNKNOWN: Final = 0
"""No answer, or one that leaves it open: the append may or may not be in the log, now or later."""

ACKNOWLEDGED: Final = 1
FAILED: Final = 2
"""Definitely failed: it is not in the log and never will be."""

FinalLog = Sequence[Hashable | None]
"""The committed log after the run, by index; None for entries that no client wrote (no-op, session)."""


@dataclass(slots=True)
class Read:
    """One read of the log.

    Attributes:
        client: who read.
        call, ret: when it was asked and answered.
        linearizable: False for a local read, which may be stale but never wrong.
        min_length: the log had at least so many committed entries at the instant of the read.
        max_length: and at most so many (None: the read does not say).
        first_index, values: what was seen, by index; None for entries that no client wrote.
        where: the node that answered, for the report.
    """

    client: int
    call: float
    ret: float
    linearizable: bool
    min_length: int
    max_length: int | None
    first_index: int
    values: Sequence[Hashable | None]
    where: str = ""


class History:
    """All operations of a run. Appends are named by the number that `invoke` returns.

    Attributes:
        values, clients, calls, rets, outcomes, indexes: the appends' columns. ``rets`` is infinite and ``indexes`` -1
            where there was no answer.
        order: (stream, place in it) where a client's appends must stand in the log in the order in which it sent
            them; stream -1 where nothing is promised.
        reads: the reads.
    """

    def __init__(self) -> None:
        self.values: list[Hashable] = []
        self.clients = array("l")
        self.calls = array("d")
        self.rets = array("d")
        self.outcomes = bytearray()
        self.indexes = array("q")
        self.streams = array("q")
        self.reads: list[Read] = []

    def __len__(self) -> int:
        return len(self.values) + len(self.reads)

    def invoke(self, client: int, value: Hashable, now: float, *, stream: int = -1) -> int:
        """Record that an append was called; within one ``stream`` the calls are in the order promised.

        ``now`` in seconds. Until told otherwise its outcome is unknown.
        """
        operation = len(self.values)
        self.values.append(value)
        self.clients.append(client)
        self.calls.append(now)
        self.rets.append(inf)
        self.outcomes.append(UNKNOWN)
        self.indexes.append(-1)
        self.streams.append(stream)
        return operation

    def acknowledge(self, operation: int, index: int, now: float) -> None:
        """Record that the append was acknowledged at ``index``."""
        self.rets[operation] = now
        self.outcomes[operation] = ACKNOWLEDGED
        self.indexes[operation] = index

    def fail(self, operation: int, now: float, *, definite: bool) -> None:
        """Record that the append failed. An unknown outcome has no return: it may still take effect."""
        if definite:
            self.rets[operation] = now
            self.outcomes[operation] = FAILED

    def add_read(self, read: Read) -> None:
        """Record a read that was answered (one that failed says nothing)."""
        self.reads.append(read)

    def describe(self, operation: int) -> str:
        """One append in words."""
        value = self.values[operation]
        text = f"append {value!r} of client {self.clients[operation]} called at {self.calls[operation]:.6f}"
        outcome = self.outcomes[operation]
        if outcome == ACKNOWLEDGED:
            return f"{text}, acknowledged at index {self.indexes[operation]} at {self.rets[operation]:.6f}"
        if outcome == FAILED:
            return f"{text}, definitely failed at {self.rets[operation]:.6f}"
        return f"{text}, outcome unknown"

    # --- files ---

    def dump(self, file: TextIO) -> None:
        """Write one JSON line per operation. Values must be strings or numbers."""
        for i, value in enumerate(self.values):
            ret = self.rets[i]
            row: list[object] = [
                "a", self.clients[i], value, self.calls[i], None if ret == inf else ret, self.outcomes[i],
                self.indexes[i], self.streams[i],
            ]  # fmt: skip
            file.write(json.dumps(row) + "\n")
        for read in self.reads:
            row = [
                "r", read.client, read.call, read.ret, read.linearizable, read.min_length, read.max_length,
                read.first_index, list(read.values), read.where,
            ]  # fmt: skip
            file.write(json.dumps(row) + "\n")

    @classmethod
    def load(cls, lines: Iterable[str]) -> History:
        """Read what `dump` wrote.

        Raises:
            ValueError: a line is not one of a history; says which.
        """
        history = cls()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row[0] == "a":
                    _, client, value, call, ret, outcome, index, stream = row
                    operation = history.invoke(client, value, call, stream=stream)
                    history.rets[operation] = inf if ret is None else ret
                    history.outcomes[operation] = outcome
                    history.indexes[operation] = index
                elif row[0] == "r":
                    history.add_read(Read(*row[1:]))
                else:
                    raise ValueError("neither an append nor a read")
            except (TypeError, ValueError, IndexError, KeyError) as error:
                raise ValueError(f"line {number} of the history: {error}") from error
        return history
