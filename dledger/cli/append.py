"""``dledger append``."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Final

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.line_appender import LineAppender
from dledger.cli.options import output_option, resolve_target, seconds, target_options
from dledger.cli.progress import Progress
from dledger.cli.runtime import diagnose, run, with_client
from dledger.cli.words import plain_words
from dledger.errors import DLedgerError, Outcome

if TYPE_CHECKING:
    from dledger.client import LedgerClient
    from dledger.types import AppendResult

__all__ = ["append"]

_READ_BYTES: Final = 1 << 18
_MAX_CHUNKS_AHEAD: Final = 8


@click.command()
@click.argument("text", required=False)
@target_options
@output_option("table", "json")
@click.option("-J", "json_lines", is_flag=True, help="One JSON line for each entry as it is acknowledged.")
@click.option("--timeout", type=seconds, default="30s", show_default=True, help="Deadline of one entry.")
def append(
    text: str | None,
    peers: str | None,
    group: str | None,
    config_file: str | None,
    output: str,
    json_lines: bool,
    timeout: float,
) -> int:
    """Append TEXT as one entry, or standard input (TEXT is "-" or missing) with one entry per line.

    Returns when a majority has them on disk. Retries ride out a failover and never append twice. -J prints
    {"line": n, "index": i, "term": t}, n from 0, for each acknowledged line.
    """
    target = resolve_target(peers, group, config_file)

    async def body(client: LedgerClient) -> int:
        if text is not None and text != "-":
            return await _append_one(client, os.fsencode(text), output, json_lines)
        if sys.stdin.isatty():
            click.echo("reading standard input, one entry per line; Ctrl-D ends it", err=True)
        return await _StreamAppend(client, output, json_lines).run()

    return run(with_client(target, body, timeout=timeout))


async def _append_one(client: LedgerClient, body: bytes, output: str, json_lines: bool) -> int:
    result = await client.append(body)
    if json_lines:
        click.echo(json.dumps({"line": 0, "index": result.index, "term": result.term}))
    elif output == "json":
        click.echo(json.dumps({"index": result.index, "term": result.term}))
    else:
        click.echo(f"index {result.index}  term {result.term}")
    return ExitCode.DONE


class _StreamAppend:
    """Standard input into the log, line by line."""

    def __init__(self, client: LedgerClient, output: str, json_lines: bool) -> None:
        self._client = client
        self._output = output
        self._json_lines = json_lines
        self._failures: list[tuple[int, BaseException]] = []
        self._acknowledged = 0
        self._first_index = -1
        self._last_index = -1
        self._flush_planned = False
        self._stdout = sys.stdout.buffer
        self._closed_stdout: BrokenPipeError | None = None
        total, self._total_is_bytes = _input_size()
        self._progress = Progress("appending", total)

    async def run(self) -> int:
        """Append until the end of input or the first failure; then wait for what is on its way."""
        appender = LineAppender(self._client, self._on_ack, self._on_fail)
        lines = _StandardInput(asyncio.get_running_loop())
        with self._progress:
            try:
                while not self._stopped and (chunk := await lines.next_lines()):
                    for line in chunk:
                        if self._stopped:
                            break
                        await appender.submit(line)
            finally:
                lines.close()
            await appender.drain()
        self._flush()
        if self._closed_stdout is not None:
            raise self._closed_stdout
        return await self._finish(appender.submitted)

    @property
    def _stopped(self) -> bool:
        """Whether nothing more is to be read: a line has failed, or nobody reads the acknowledgements."""
        return bool(self._failures) or self._closed_stdout is not None

    def _on_ack(self, line: int, body: bytes, result: AppendResult) -> None:
        self._acknowledged += 1
        if self._first_index < 0:
            self._first_index = result.index
        self._last_index = max(self._last_index, result.index)
        self._progress.advance(len(body) + 1 if self._total_is_bytes else 1)
        if self._json_lines and self._closed_stdout is None:
            self._print(b'{"line": %d, "index": %d, "term": %d}\n' % (line, result.index, result.term))

    def _print(self, text: bytes) -> None:
        """Write now, flush once for all acknowledgements that came together."""
        try:
            self._stdout.write(text)
        except BrokenPipeError as error:
            self._closed_stdout = error
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        try:
            self._stdout.flush()
        except BrokenPipeError as error:
            self._closed_stdout = error

    def _on_fail(self, line: int, _body: bytes, error: BaseException) -> None:
        self._failures.append((line, error))
        outcome = error.outcome if isinstance(error, DLedgerError) else Outcome.UNKNOWN
        what = f"{error.code.name}: {plain_words(str(error))}" if isinstance(error, DLedgerError) else repr(error)
        click.echo(f"line {line}: {outcome.value}: {what}", err=True)

    async def _finish(self, submitted: int) -> int:
        if not self._json_lines:
            summary = {"acknowledged": self._acknowledged, "failed": len(self._failures)}
            summary |= {"first_index": self._first_index, "last_index": self._last_index}
            if self._output == "json":
                click.echo(json.dumps(summary))
            else:
                span = f", indexes {self._first_index} to {self._last_index}" if self._acknowledged else ""
                click.echo(f"{self._acknowledged} appended{span}")
        if not self._failures:
            return ExitCode.DONE
        unknown = sum(1 for _, e in self._failures if not isinstance(e, DLedgerError) or e.outcome is Outcome.UNKNOWN)
        click.echo(
            f"dledger: {len(self._failures)} of {submitted} lines failed ({unknown} UNKNOWN, "
            f"{len(self._failures) - unknown} DEFINITE); nothing after line {submitted - 1} was sent",
            err=True,
        )
        if self._acknowledged:
            return ExitCode.FAILED
        return await diagnose(self._client, self._failures[0][1])


def _input_size() -> tuple[int | None, bool]:
    """Return (bytes to come, True) where standard input is a file, else (None, False)."""
    try:
        info = os.fstat(sys.stdin.fileno())
        if stat.S_ISREG(info.st_mode):
            return max(info.st_size - os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR), 0), True
    except (OSError, ValueError):
        # No standard input, or none with a descriptor: then nothing is known of its size.
        pass
    return None, False


class _StandardInput:
    """Lines of standard input, a chunk at a time, read by a daemon thread.

    The loop cannot poll regular files, and an executor's thread that waits for a silent pipe would hold up the exit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._ahead = threading.Semaphore(_MAX_CHUNKS_AHEAD)
        self._rest = b""
        self._closed = False
        self._ended = False
        threading.Thread(target=self._read_all, name="stdin", daemon=True).start()

    def _read_all(self) -> None:
        descriptor = sys.stdin.fileno()
        chunk = b"-"
        while chunk and not self._closed:
            self._ahead.acquire()
            try:
                chunk = os.read(descriptor, _READ_BYTES)
            except OSError as error:
                click.echo(f"dledger: standard input: {error.strerror}", err=True)
                chunk = b""
            try:
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:
                # The loop is closed: nobody waits for more.
                return

    async def next_lines(self) -> list[bytes]:
        """Return the next lines without their line feeds; an empty list at the end of input.

        A last line without a line feed counts. Everything but the line feed belongs to the entry.
        """
        while not self._ended:
            chunk = await self._chunks.get()
            self._ahead.release()
            if not chunk:
                self._ended = True
                return [self._rest] if self._rest else []
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if lines:
                return lines
        return []

    def close(self) -> None:
        """Let the thread end at its next chunk."""
        self._closed = True
        self._ahead.release()
