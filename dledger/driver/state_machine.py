"""Committed entries handed to the embedding program, in order, once."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from dledger.types import Entry

__all__ = ["Applier", "StateMachine"]

ReadEntries = Callable[[int, int], Awaitable[Sequence[Entry]]]


class StateMachine(Protocol):
    """What the log means to a program (after DLedger's interface of the same name).

    ``apply`` gets committed entries of every type in index order, each exactly once in the life of the process, and
    from the first entry again after a restart. It may be plain or ``async``. An exception stops the node: a state
    machine that has missed an entry must not go on.

    One that keeps its state on disk may have an attribute ``applied_index``, the last index it has taken in: the replay
    after a restart then starts behind it.
    """

    def apply(self, entries: Sequence[Entry]) -> Awaitable[None] | None: ...


class Applier:
    """Drives one state machine behind the commit index.

    Invariant: applied_index <= commit_index, and it never falls.
    """

    def __init__(self, state_machine: StateMachine, read_entries: ReadEntries, first_index: int) -> None:
        self._state_machine = state_machine
        self._read_entries = read_entries
        self.applied_index = max(first_index - 1, int(getattr(state_machine, "applied_index", -1)))

    async def apply_to(self, commit_index: int) -> None:
        """Apply everything up to ``commit_index``."""
        while self.applied_index < commit_index:
            entries = await self._read_entries(self.applied_index + 1, commit_index)
            result = self._state_machine.apply(entries)
            if inspect.isawaitable(result):
                await result
            self.applied_index = entries[-1].index
