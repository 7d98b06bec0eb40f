"""A second judge that knows no trick: it searches for an order of the operations that explains what was seen.

Exponential; for histories of a dozen operations, to check the linear-time judge against (Wing and Gong's
search with Lowe's memory of states seen). The model is a log as an abstract object: ``append`` adds a value
at the end and returns its index, a read looks at the whole log, entries of nobody (None) may come at any
moment, and at the very end somebody reads the whole log.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf

from dledger.checker.history import ACKNOWLEDGED, FAILED, FinalLog, History, Read

__all__ = ["is_linearizable"]

_State = tuple[Hashable | None, ...]


class _Operation:
    """An operation that must (or, if optional, may) take effect once between ``call`` and ``ret``."""

    __slots__ = ("call", "optional", "ret")

    def __init__(self, call: float, ret: float, *, optional: bool) -> None:
        self.call = call
        self.ret = ret
        self.optional = optional

    def apply(self, state: _State) -> _State | None:
        """Return the state after the operation, or None if it could not have happened (with its answer) here."""
        raise NotImplementedError


class _Append(_Operation):
    __slots__ = ("index", "value")

    def __init__(self, call: float, ret: float, value: Hashable, index: int | None, *, optional: bool) -> None:
        super().__init__(call, ret, optional=optional)
        self.value = value
        self.index = index

    def apply(self, state: _State) -> _State | None:
        if self.index is not None and len(state) != self.index:
            return None
        return (*state, self.value)


class _Look(_Operation):
    __slots__ = ("read",)

    def __init__(self, read: Read) -> None:
        super().__init__(read.call if read.linearizable else -inf, read.ret, optional=False)
        self.read = read

    def apply(self, state: _State) -> _State | None:
        read = self.read
        if len(state) < read.min_length:
            return None
        if read.linearizable and read.max_length is not None and len(state) > read.max_length:
            return None
        known = state[read.first_index : read.first_index + len(read.values)]
        return state if list(known) == list(read.values) else None


def is_linearizable(history: History, log: FinalLog) -> bool:
    """Say whether some order of effects explains every answer and ends with exactly ``log``.

    A local read may take effect at any time before it returned; streams are not looked at.
    """
    operations: list[_Operation] = []
    for number, value in enumerate(history.values):
        outcome = history.outcomes[number]
        if outcome == FAILED:
            continue  # it must never take effect; then nothing else can put its value into the log
        operations.append(
            _Append(
                history.calls[number],
                history.rets[number] if outcome == ACKNOWLEDGED else inf,
                value,
                history.indexes[number] if outcome == ACKNOWLEDGED else None,
                optional=outcome != ACKNOWLEDGED,
            )
        )
    operations.extend(_Look(read) for read in history.reads)
    return _search(operations, tuple(log))


def _search(operations: list[_Operation], final: _State) -> bool:
    everything = (1 << len(operations)) - 1
    needed = sum(1 << i for i, operation in enumerate(operations) if not operation.optional)
    seen: set[tuple[int, int]] = set()
    # A log only grows, so a state that is not the beginning of the final one leads nowhere: its length names it.
    stack: list[tuple[int, int]] = [(0, 0)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        done, length = node
        if length == len(final) and done & needed == needed:
            return True
        state = final[:length]
        if length < len(final) and final[length] is None:
            stack.append((done, length + 1))
        # Only what was called before every unfinished operation has returned may go next.
        deadline = min((op.ret for i, op in enumerate(operations) if not done >> i & 1), default=inf)
        for i, operation in enumerate(operations):
            if done >> i & 1 or operation.call > deadline or done == everything:
                continue
            after = operation.apply(state)
            if after is not None and after == final[: len(after)]:
                stack.append((done | 1 << i, len(after)))
    return False
