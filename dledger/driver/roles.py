"""Role changes told to whoever embeds the log: in order, one at a time, never on the core's path."""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

import structlog

from dledger.raft.messages import Role

__all__ = ["MemberRole", "RoleChangeHandler", "RoleDispatcher"]


class MemberRole(enum.Enum):
    """The three roles that DLedger tells its handlers."""

    LEADER = "LEADER"
    FOLLOWER = "FOLLOWER"
    CANDIDATE = "CANDIDATE"


class RoleChangeHandler(Protocol):
    """After DLedger's interface of the same name. Methods may be plain or ``async``.

    ``handle(term, role)``: LEADER comes only after the first entry of the term is committed, so the log behind it is
    complete. A handler may be slow; events wait for it in order, elections do not. An exception is logged and the next
    event is delivered all the same.
    """

    def startup(self) -> Awaitable[None] | None: ...

    def handle(self, term: int, role: MemberRole) -> Awaitable[None] | None: ...

    def shutdown(self) -> Awaitable[None] | None: ...


@dataclass(frozen=True, slots=True)
class _Event:
    term: int
    role: MemberRole


_TOLD = {
    Role.FOLLOWER: MemberRole.FOLLOWER,
    Role.LEARNER: MemberRole.FOLLOWER,
    Role.PRE_CANDIDATE: MemberRole.CANDIDATE,
    Role.CANDIDATE: MemberRole.CANDIDATE,
}


class RoleDispatcher:
    """Delivers role changes to the handlers on one task of its own."""

    def __init__(self, logger: structlog.typing.FilteringBoundLogger) -> None:
        self._handlers: list[RoleChangeHandler] = []
        self._events: asyncio.Queue[_Event | None] = asyncio.Queue()
        self._last: _Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._logger = logger

    def add(self, handler: RoleChangeHandler) -> None:
        """Register a handler; twice the same is once."""
        if handler not in self._handlers:
            self._handlers.append(handler)

    async def start(self) -> None:
        for handler in self._handlers:
            await self._call(handler, handler.startup)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="role-changes")

    def role_changed(self, role: Role, term: int) -> None:
        """A role was taken. LEADER is told by `leader_ready`, later."""
        if role is not Role.LEADER:
            self._put(_Event(term, _TOLD[role]))

    def leader_ready(self, term: int) -> None:
        self._put(_Event(term, MemberRole.LEADER))

    def _put(self, event: _Event) -> None:
        if event != self._last:
            self._last = event
            self._events.put_nowait(event)

    async def _run(self) -> None:
        while (event := await self._events.get()) is not None:
            for handler in self._handlers:
                await self._call(handler, handler.handle, event.term, event.role)

    async def _call(self, handler: RoleChangeHandler, method: object, *args: object) -> None:
        try:
            result = method(*args)  # type: ignore[operator]
            if inspect.isawaitable(result):
                await result
        except Exception:
            self._logger.exception("role_change_handler_failed", handler=type(handler).__name__)

    async def stop(self) -> None:
        """Deliver what is queued, then tell the handlers to shut down."""
        if self._task is not None:
            self._events.put_nowait(None)
            await self._task
            self._task = None
            for handler in self._handlers:
                await self._call(handler, handler.shutdown)
