"""Client processes of a load, seen from whoever starts them: one window for all, and what the processes cost in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from dledger.bench.load import Load, Measurement
from dledger.bench.meter import CpuMeter, resident_bytes
from dledger.bench.worker import Task
from dledger.errors import UnavailableError

__all__ = ["drive", "drive_group", "echo_server", "expect_line", "helper_command", "own_process", "python_environment"]

_ERROR_BYTES: Final = 2000
_LINE_BYTES: Final = 64 * 1024 * 1024
_END_S: Final = 60.0


def helper_command(*words: str) -> list[str]:
    """Return the command line of one of our own helper processes."""
    return [sys.executable, "-m", "dledger.bench", *words]


def python_environment() -> dict[str, str]:
    """Return an environment in which they find this package, with nothing that names another group."""
    root = str(Path(__file__).resolve().parents[2])
    env = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))}


@asynccontextmanager
async def own_process(command: Sequence[str], env: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """Start a process with pipes; whatever happens it has ended afterwards."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=_LINE_BYTES, env=dict(env or python_environment())
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(asyncio.CancelledError):
            await process.communicate()


async def expect_line(process: Process, word: str | None, limit_s: float) -> str:
    """Return the next line, which must be ``word`` unless that is None.

    Raises:
        UnavailableError: it is another, or none came in time, or the process ended; with what it wrote.
    """
    line = await _line(process, limit_s)
    if word is not None and line != word:
        raise UnavailableError(f"a helper process wrote {line[:80]!r} in place of {word}")
    return line


async def _line(process: Process, limit_s: float) -> str:
    if process.stdout is None or process.stderr is None:
        raise UnavailableError("a helper process without pipes")
    try:
        async with asyncio.timeout(limit_s):
            line = await process.stdout.readline()
            if not line:
                said = (await process.stderr.read(_ERROR_BYTES * 8))[-_ERROR_BYTES:].decode("utf-8", "replace")
                raise UnavailableError(f"a helper process ended: {said.strip() or 'it said nothing'}")
    except TimeoutError:
        raise UnavailableError(f"a helper process said nothing for {limit_s:g} s") from None
    return line.decode().strip()


async def _tell(process: Process, text: str) -> None:
    if process.stdin is not None:
        process.stdin.write(text.encode())
        await process.stdin.drain()


async def drive(
    commands: Sequence[Sequence[str]],
    load: Load,
    pids: Mapping[str, int],
    *,
    inputs: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Measurement:
    """Run one driver process a command, in one window, and account for them and for the processes in ``pids``.

    ``inputs``: a first line for each process. In the result ``cpu_s`` has the names of ``pids``, ``clients`` and
    ``rest of the machine``; ``rss_bytes`` those of ``pids``.

    Raises:
        UnavailableError: a driver ended early or said nothing; with what it wrote to standard error.
    """
    limit_s = load.warmup_s * 5 + _END_S
    async with contextlib.AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(own_process(command, env)) for command in commands]
        for process, line in zip(processes, inputs, strict=False):
            await _tell(process, line)
        await asyncio.gather(*(expect_line(process, "WARM", limit_s) for process in processes))
        names = dict(pids) | {f"client {number}": process.pid for number, process in enumerate(processes)}
        meter = CpuMeter(names)
        for process in processes:
            await _tell(process, "BEGIN\n")
        ends = [asyncio.ensure_future(expect_line(process, "END", load.duration_s + limit_s)) for process in processes]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            used = meter.read()
            resident = {name: resident_bytes(pid)[0] for name, pid in pids.items()}
            await asyncio.gather(*ends)
        finally:
            for end in ends:
                end.cancel()
        for process in processes:
            await _tell(process, "STOP\n")
        results: list[dict[str, Any]] = [json.loads(await _line(process, _END_S)) for process in processes]
    found = Measurement.joined(load, results)
    clients = sum(seconds for name, seconds in used.seconds.items() if name not in pids)
    found.cpu_s = {name: used.seconds[name] for name in pids}
    found.cpu_s |= {"clients": round(clients, 3), "rest of the machine": used.other_s}
    found.rss_bytes = resident
    return found


async def drive_group(task: Task, clients: int, pids: Mapping[str, int]) -> Measurement:
    """Run our own client, in so many processes that share the task's load.

    Raises:
        UnavailableError: as `drive`.
    """
    parts = [
        Task(task.peers, task.group, task.load.share(number, clients), task.timeout_s, task.tls, task.token)
        for number in range(clients)
    ]
    commands = [helper_command("load")] * clients
    return await drive(commands, task.load, pids, inputs=[part.as_line() for part in parts])


@asynccontextmanager
async def echo_server(entries: int, size_bytes: int) -> AsyncIterator[tuple[str, int]]:
    """Run the echo (`dledger.bench.echo`) in a process of its own; yields its address and process id.

    Raises:
        UnavailableError: it did not start.
    """
    command = helper_command("echo", "--entries", str(entries), "--size", str(size_bytes))
    async with own_process(command) as process:
        word, _, address = (await _line(process, _END_S)).partition(" ")
        if word != "READY":
            raise UnavailableError(f"the echo server wrote {word!r}")
        yield address, process.pid
