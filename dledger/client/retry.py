"""Calls that are asked again: tenacity under one deadline, at the next node, at once where a leader was named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from dledger.client.discovery import Directory
from dledger.client.transport import Header
from dledger.errors import DLedgerError, Outcome, ResponseCode, StorageError, UnavailableError

__all__ = ["call_with_retries"]

ATTEMPT_MIN_S = 1.0
_WORTH_S = 0.02
"""With less time left nobody is asked again: that no answer came in three milliseconds would be all that is said."""

_T = TypeVar("_T")
_BACKOFF = wait_random_exponential(multiplier=0.02, max=0.5)


async def call_with_retries(
    directory: Directory,
    ask: Callable[[str, float], Awaitable[tuple[Header, _T]]],
    timeout: float,
    *,
    leader_only: bool = False,
    repeatable: bool = True,
) -> _T:
    """Ask the leader, then other nodes, until one answers; return what it says.

    Args:
        ask: asks one address with a timeout (seconds) and returns the answer's header and value.
        timeout: seconds for all attempts together.
        leader_only: follow the leader that a refusal names; else any node may answer.
        repeatable: False for a call that must not be made twice: a lost answer ends it.

    Raises:
        DLedgerError: the refusal if it is final, else the last one before the deadline.
    """
    loop = asyncio.get_running_loop()
    calls = _Calls(directory, leader_only)
    deadline = loop.time() + timeout

    def worth_it(error: BaseException) -> bool:
        if not isinstance(error, DLedgerError):
            return False
        if isinstance(error, UnavailableError) and not repeatable:
            return error.outcome is Outcome.DEFINITE
        # Another node may have what this one's disk has lost.
        return error.retriable or (isinstance(error, StorageError) and not leader_only)

    def limit() -> float:
        left = deadline - loop.time()
        return min(left, max(ATTEMPT_MIN_S, left / 8)) if repeatable and len(calls) > 1 else left

    # Most calls succeed at once, and what counts retries would cost them more than the call itself.
    try:
        return await calls.once(ask, limit())
    except DLedgerError as error:
        if not worth_it(error) or loop.time() >= deadline:
            raise
        first: DLedgerError | None = error

    def stop(state: RetryCallState) -> bool:
        return loop.time() + state.upcoming_sleep >= deadline - min(_WORTH_S, timeout / 10)

    def wait(state: RetryCallState) -> float:
        return 0.0 if calls.fresh else float(_BACKOFF(state))

    attempts = AsyncRetrying(
        stop=stop, wait=wait, retry=retry_if_exception(worth_it), reraise=True, sleep=asyncio.sleep
    )
    async for attempt in attempts:
        with attempt:
            if first is not None:
                # The attempt above is the first one that they count: the same pause follows it.
                failed, first = first, None
                raise failed
            return await calls.once(ask, limit())
    raise UnavailableError("no attempt was made")  # not reached: the last attempt returns or raises


class _Calls:
    """Which node comes next."""

    def __init__(self, directory: Directory, leader_only: bool) -> None:
        self._directory = directory
        self._leader_only = leader_only
        self._route: list[str] = []
        self._tried: dict[str, None] = {}
        self.fresh = False
        """Whether the next node is one that was not asked in this round, so that no pause is due."""

    def __len__(self) -> int:
        return len(self._directory.nodes)

    async def once(self, ask: Callable[[str, float], Awaitable[tuple[Header, _T]]], timeout: float) -> _T:
        address = self._next()
        try:
            header, value = await ask(address, timeout)
        except UnavailableError:
            self._directory.forget_leader(address)
            self._plan()
            raise
        if header.code == ResponseCode.NOT_LEADER:
            self._directory.forget_leader(address)
        named = self._directory.learn(address, header)
        if header.ok:
            return value
        if self._leader_only and named is not None and named not in self._tried:
            self._route = [named]
        self._plan()
        raise header.error()

    def _next(self) -> str:
        if not self._route:
            self._tried.clear()
            self._route = self._directory.route()
        address = self._route.pop(0)
        self._tried[address] = None
        return address

    def _plan(self) -> None:
        if not self._route:
            self._route = [address for address in self._directory.route() if address not in self._tried]
        self.fresh = bool(self._route)
