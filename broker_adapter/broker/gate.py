"""Requests that only a master can serve, at a broker that is none: held until a master is known, then handed to it.

Remoting clients re-read routes every 30 s, so after a failover they go on talking to the old master. Here such a
request waits (bounded by time and number) for the end of the election and is then served by whoever is master,
this broker itself or another. Order is that of arrival: a request that a broker refused (code 14, certainly not
stored) is tried again before the later ones.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from broker_adapter.broker.roles import RoleState
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.errors import RemotingConnectError, RemotingError

__all__ = ["FORWARDED_FIELD", "FORWARDED_HOST_FIELD", "MasterGate", "is_forwarded"]

FORWARDED_FIELD: Final = "dledgerForwardedBy"
"""Ext field that marks a forwarded request; such a one is never forwarded again."""

FORWARDED_HOST_FIELD: Final = "dledgerBornHost"
"""Ext field with the client's address: the message's born host."""

_RETRY_S: Final = 0.05

Local = Callable[[RemotingCommand], Awaitable[RemotingCommand]]
_HERE: Final = ""


def is_forwarded(request: RemotingCommand) -> bool:
    """Whether another broker handed this request on."""
    return FORWARDED_FIELD in request.ext


@dataclass(slots=True, order=True)
class _Item:
    sequence: int
    request: RemotingCommand = field(compare=False)
    client_address: str = field(compare=False)
    local: Local = field(compare=False)
    deadline: float = field(compare=False)
    idempotent: bool = field(compare=False)
    answer: asyncio.Future[RemotingCommand] = field(compare=False)


class MasterGate:
    """Holds and forwards. Invariant: at most ``max_pending`` requests are held or on the way."""

    def __init__(
        self,
        state: RoleState,
        client: RemotingClient,
        *,
        own_address: Callable[[], str],
        timeout_ms: int,
        max_pending: int,
    ) -> None:
        self._state = state
        self._client = client
        self._own_address = own_address
        self._timeout_s = timeout_ms / 1000
        self._max_pending = max_pending
        self._items: list[_Item] = []
        self._inflight: set[asyncio.Task[None]] = set()
        self._sequence = 0
        self._pump: asyncio.Task[None] | None = None
        self._refused: tuple[str, int] | None = None
        self._last_target: str | None = None
        self._loop = asyncio.get_running_loop()
        self.forwarded_count = 0
        self.held_here_count = 0
        self.failed_count = 0
        self.refused_count = 0

    @property
    def is_idle(self) -> bool:
        """Nothing is held or on the way: a master may serve directly without overtaking anyone."""
        return not self._items and not self._inflight

    @property
    def pending_count(self) -> int:
        return len(self._items) + len(self._inflight)

    def statistics(self) -> dict[str, str]:
        """Return the counters as brokerStatus shows them."""
        return {
            "forwardPending": str(self.pending_count),
            "forwardedTotal": str(self.forwarded_count),
            "forwardFailedTotal": str(self.failed_count),
            "forwardHeldServedHereTotal": str(self.held_here_count),
            "forwardRefusedTotal": str(self.refused_count),
        }

    def submit(
        self, request: RemotingCommand, client_address: str, local: Local, *, idempotent: bool
    ) -> Awaitable[RemotingCommand]:
        """Have the master answer ``request``; its place in order is that of the call.

        ``local`` serves it if this broker is or becomes the master. ``idempotent``: whether it may be sent again after
        an outcome that nobody knows. Never raises for what goes wrong on the way: that is in the answer.
        """
        answer: asyncio.Future[RemotingCommand] = self._loop.create_future()
        if self.pending_count >= self._max_pending:
            self.refused_count += 1
            answer.set_result(
                request.response(ResponseCode.SYSTEM_BUSY, f"{self.pending_count} requests wait for the master already")
            )
            return answer
        self._sequence += 1
        deadline = self._loop.time() + self._timeout_s
        heapq.heappush(self._items, _Item(self._sequence, request, client_address, local, deadline, idempotent, answer))
        if self._pump is None or self._pump.done():
            self._pump = self._loop.create_task(self._run(), name="master-gate")
        return answer

    # ------------------------------------------------------------------ the pump

    async def _run(self) -> None:
        while self._items:
            target = await self._target()
            if target is None:
                self._fail_head()
                continue
            if target != self._last_target:
                # What is still on the way to the old one comes back first, or order would be lost.
                await self._drain()
                self._last_target = target
                continue
            item = heapq.heappop(self._items)
            if item.answer.done():
                continue
            await self._dispatch(item, target)

    def _current(self) -> str | None:
        if self._state.is_master:
            return _HERE
        record = self._state.master
        if record is None or not record.address or record.address == self._own_address():
            return None
        return None if (record.address, record.term) == self._refused else record.address

    async def _target(self) -> str | None:
        """Return where the head goes, None when its time is up."""
        while self._items:
            target = self._current()
            if target is not None:
                return target
            left = self._items[0].deadline - self._loop.time()
            if left <= 0:
                return None
            await self._state.wait_change(min(left, _RETRY_S))
            # A refusal is no judgement for ever: the same master may come back in the same term.
            self._refused = None
        return None

    async def _drain(self) -> None:
        while self._inflight:
            await asyncio.wait(list(self._inflight), return_when=asyncio.ALL_COMPLETED)

    def _fail_head(self) -> None:
        if self._items:
            item = heapq.heappop(self._items)
            self._answer(item, ResponseCode.SERVICE_NOT_AVAILABLE, "no master was found in time; nothing was stored")

    def _answer(self, item: _Item, code: int, remark: str) -> None:
        self.failed_count += 1
        if not item.answer.done():
            item.answer.set_result(item.request.response(code, remark))

    async def _dispatch(self, item: _Item, target: str) -> None:
        if target == _HERE:
            self.held_here_count += 1
            self._spawn(self._serve_here(item))
            return
        try:
            connection = await self._client.connect(target)
        except RemotingConnectError as error:
            self._refuse(item, target, str(error))
            return
        forwarded = self._forwarded(item)
        # Sent here and now, in order; only the answer is awaited apart.
        future = connection.call(forwarded)
        self._spawn(self._await_answer(item, target, future, lambda: connection.forget(forwarded)))

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)  # type: ignore[arg-type]
        self._inflight.add(task)
        task.add_done_callback(self._inflight.discard)

    def _forwarded(self, item: _Item) -> RemotingCommand:
        request = item.request
        ext = dict(request.ext)
        ext[FORWARDED_FIELD] = self._own_address()
        ext[FORWARDED_HOST_FIELD] = item.client_address
        return RemotingCommand(
            request.code,
            ext,
            request.body,
            language=request.language,
            version=request.version,
            serialize_type=request.serialize_type,
        )

    async def _serve_here(self, item: _Item) -> None:
        try:
            response = await item.local(item.request)
        except Exception as error:
            structlog.get_logger().error("held_request_failed", code=item.request.code, exc_info=error)
            self._answer(item, ResponseCode.SYSTEM_ERROR, f"{type(error).__name__}: {error}")
            return
        if response.code == ResponseCode.SERVICE_NOT_AVAILABLE and not self._state.is_master:
            self._again(item)
        elif not item.answer.done():
            item.answer.set_result(response)

    async def _await_answer(
        self,
        item: _Item,
        target: str,
        future: asyncio.Future[RemotingCommand],
        forget: Callable[[], None],
    ) -> None:
        done, _ = await asyncio.wait({future}, timeout=max(0.001, item.deadline - self._loop.time()))
        if not done:
            forget()
            self._answer(item, ResponseCode.SYSTEM_ERROR, "the master did not answer in time; the outcome is unknown")
            return
        error = future.exception()
        if isinstance(error, RemotingError):
            if item.idempotent:
                self._refuse(item, target, str(error))
            else:
                self._answer(item, ResponseCode.SYSTEM_ERROR, "the master's connection broke; the outcome is unknown")
            return
        response = future.result()
        if response.code == ResponseCode.SERVICE_NOT_AVAILABLE:
            self._refuse(item, target, response.remark or "")
            return
        self.forwarded_count += 1
        if not item.answer.done():
            item.answer.set_result(item.request.response(response.code, response.remark, response.ext, response.body))

    def _refuse(self, item: _Item, target: str, reason: str) -> None:
        """The target certainly did not take it: look for another, then try again."""
        record = self._state.master
        if record is not None and record.address == target:
            self._refused = (record.address, record.term)
        self._last_target = None
        self._again(item)

    def _again(self, item: _Item) -> None:
        if item.answer.done():
            return
        heapq.heappush(self._items, item)
        if self._pump is None or self._pump.done():
            self._pump = self._loop.create_task(self._run(), name="master-gate")

    # ------------------------------------------------------------------ end

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait until nothing is held, at most ``timeout_s``."""
        deadline = self._loop.time() + timeout_s
        while not self.is_idle and self._loop.time() < deadline:
            pump = self._pump
            waiting = [t for t in (*self._inflight, *([pump] if pump is not None else [])) if not t.done()]
            if not waiting:
                return
            await asyncio.wait(
                waiting, timeout=max(0.0, deadline - self._loop.time()), return_when=asyncio.FIRST_COMPLETED
            )

    async def stop(self) -> None:
        """Answer what is held with code 14, drop what is on the way."""
        tasks = [*self._inflight, *([self._pump] if self._pump is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._items:
            self._fail_head()
