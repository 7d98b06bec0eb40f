"""Keeps the machine out of a run: clocks become virtual, and randomness that no seed decides is refused."""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import NoReturn
from unittest import mock

__all__ = ["NondeterminismError", "virtual_machine"]

_WALL_CLOCK_START_S = 1_700_000_000.0


class NondeterminismError(Exception):
    """The code under test asked the machine for something that differs from run to run."""


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise NondeterminismError(f"{name} was called in a simulated run: take it from the loop or the given rng")

    return refuse


@contextlib.contextmanager
def virtual_machine(monotonic: Callable[[], float], wall_offset: Callable[[], float]) -> Iterator[None]:
    """Within it ``time`` tells virtual time (the wall clock with jumps of ``wall_offset``), all in seconds.

    ``os.urandom``, ``uuid`` and the functions of ``random`` that share one hidden state are refused.
    """

    def wall() -> float:
        return _WALL_CLOCK_START_S + monotonic() + wall_offset()

    clocks: dict[str, Callable[[], float]] = {
        "monotonic": monotonic,
        "perf_counter": monotonic,
        "time": wall,
        "monotonic_ns": lambda: int(monotonic() * 1e9),
        "perf_counter_ns": lambda: int(monotonic() * 1e9),
        "time_ns": lambda: int(wall() * 1e9),
    }
    with contextlib.ExitStack() as stack:
        for name, clock in clocks.items():
            stack.enter_context(mock.patch.object(time, name, clock))
        for name in ("random", "randint", "randrange", "choice", "shuffle", "uniform", "getrandbits", "randbytes"):
            stack.enter_context(mock.patch.object(random, name, _refuse(f"random.{name}")))
        stack.enter_context(mock.patch.object(os, "urandom", _refuse("os.urandom")))
        stack.enter_context(mock.patch.object(uuid, "uuid4", _refuse("uuid.uuid4")))
        yield
