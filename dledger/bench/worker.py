"""A client process of a load. It talks to whoever started it in lines:

==========  ===========================================================================
it reads    a line of JSON (`Task`); later ``BEGIN`` and ``STOP``
it writes   ``WARM``; after ``BEGIN`` and the window ``END``; after ``STOP`` the result
==========  ===========================================================================

so that several of them share one window, and the load goes on until the last has seen its end. The drivers of the
peers (`dledger.bench.peer_load`, ``benchmarks/peers``) speak the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from dledger.bench.load import Load, measure
from dledger.bench.work import open_work
from dledger.client import connect
from dledger.client.peers import parse_peers
from dledger.security.access import ClientTls

__all__ = ["LineControl", "Task", "read_task", "run_worker"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a client process is to do, and how it gets at the group."""

    peers: str
    group: str
    load: Load
    timeout_s: float = 30.0
    tls: ClientTls | None = None
    token: str | None = None

    def as_line(self) -> str:
        """Return it as the line that a worker reads: never on a command line, since it may hold a token."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Return what `as_line` wrote."""
        values: dict[str, Any] = json.loads(line)
        values["load"] = Load(**values["load"])
        values["tls"] = ClientTls(**values["tls"]) if values["tls"] else None
        return cls(**values)


def read_task() -> Task:
    """Return the task on standard input."""
    return Task.from_line(sys.stdin.readline())


class LineControl:
    """`Control` by lines on standard input and output."""

    async def begin(self) -> None:
        """Say ``WARM``; return after ``BEGIN``."""
        await self._say_and_wait("WARM", "BEGIN")

    async def end(self) -> None:
        """Say ``END``; return after ``STOP``."""
        await self._say_and_wait("END", "STOP")

    @staticmethod
    async def _say_and_wait(word: str, answer: str) -> None:
        print(word, flush=True)
        line = await asyncio.to_thread(sys.stdin.readline)
        if line.strip() != answer:
            # Whoever started us is gone.
            raise SystemExit(1)


async def run_worker(task: Task) -> None:
    """Put the load on the group; prints the measurement's transfer form.

    Raises:
        DLedgerError: the group is not there, or there is nothing to read.
    """
    async with connect(task.peers, group=task.group, timeout=task.timeout_s, tls=task.tls, token=task.token) as client:
        address = next(iter(parse_peers(task.peers).values()))
        async with open_work(client, address, task.load) as work:
            gc.collect()
            gc.freeze()
            found = await measure(work, task.load, control=LineControl())
    result: Mapping[str, Any] = found.transfer()
    print(json.dumps(result), flush=True)
