"""Client processes of a load, seen from whoever starts them: one window for all, and what the processes cost in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any, Final

from dledger.bench.load import Load, Measurement
from dledger.bench.meter import CpuMeter, resident_bytes
from dledger.bench.worker import Task
from dledger.errors import UnavailableError

__all__ = [
    "Helper",
    "drive",
    "drive_group",
    "echo_server",
    "expect_line",
    "helper_command",
    "own_process",
    "python_environment",
]

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


class Helper:
    """A helper process with pipes.

    `subprocess` starts it and not the loop: uvloop runs Python in the forked child, where the collector may meet gRPC's
    objects and wait for their threads for ever.
    """

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, errors: IO[bytes]) -> None:
        self._process = process
        self._reader = reader
        self._errors = errors

    @property
    def pid(self) -> int:
        return self._process.pid

    async def readline(self) -> str:
        """Return its next line without the line end; "" where it has closed its output."""
        return (await self._reader.readline()).decode("utf-8", "replace").strip()

    def tell(self, text: str) -> None:
        """Write to its standard input: a few kilobytes at most, since this waits for the pipe.

        Raises:
            UnavailableError: it has ended.
        """
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(text.encode())
                self._process.stdin.flush()
        except BrokenPipeError:
            raise UnavailableError(f"a helper process ended: {self.last_words()}") from None

    def last_words(self) -> str:
        """Return the end of what it has written to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(size - _ERROR_BYTES, 0))
        return self._errors.read().decode("utf-8", "replace").strip() or "it said nothing"

    async def end(self) -> None:
        """Kill it, if it runs, and collect it."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)


def _start(command: Sequence[str], env: Mapping[str, str] | None, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = dict(env or python_environment())
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, env=environment)


@asynccontextmanager
async def own_process(command: Sequence[str], env: Mapping[str, str] | None = None) -> AsyncIterator[Helper]:
    """Start a process with pipes; whatever happens it has ended afterwards."""
    with tempfile.TemporaryFile() as errors:
        process = _start(command, env, errors)
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        helper = Helper(process, reader, errors)
        transport: asyncio.BaseTransport | None = None
        try:
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, process.stdout)
            yield helper
        finally:
            try:
                await helper.end()
            finally:
                if transport is not None:
                    transport.close()
                with contextlib.suppress(BrokenPipeError):
                    if process.stdin is not None:
                        process.stdin.close()


async def expect_line(process: Helper, word: str | None, limit_s: float) -> str:
    """Return the next line, which must be ``word`` unless that is None.

    Raises:
        UnavailableError: it is another, or none came in time, or the process ended; with what it wrote.
    """
    try:
        async with asyncio.timeout(limit_s):
            line = await process.readline()
    except TimeoutError:
        raise UnavailableError(f"a helper process said nothing for {limit_s:g} s") from None
    if not line:
        raise UnavailableError(f"a helper process ended: {process.last_words()}")
    if word is not None and line != word:
        raise UnavailableError(f"a helper process wrote {line[:80]!r} in place of {word}")
    return line


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
            process.tell(line)
        await asyncio.gather(*(expect_line(process, "WARM", limit_s) for process in processes))
        names = dict(pids) | {f"client {number}": process.pid for number, process in enumerate(processes)}
        meter = CpuMeter(names)
        for process in processes:
            process.tell("BEGIN\n")
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
            process.tell("STOP\n")
        results: list[dict[str, Any]] = [json.loads(await expect_line(process, None, _END_S)) for process in processes]
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
        word, _, address = (await expect_line(process, None, _END_S)).partition(" ")
        if word != "READY":
            raise UnavailableError(f"the echo server wrote {word!r}")
        yield address, process.pid
