"""The first five seconds with dledger: three real processes, a real file, kill -9 in the middle of it, and a verdict.

``python -m dledger.quickstart [FILE] [--keep]``. Everything printed happened; the last line is the verdict.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.line_appender import LineAppender
from dledger.cli.progress import Progress
from dledger.cli.runtime import run
from dledger.errors import DLedgerError
from dledger.local_group import LocalGroup
from dledger.raft.messages import EntryType
from dledger.types import AppendResult, Entry
from dledger.verdict import Judgement, judge, longest_gap

__all__ = ["QuickStart", "main"]

_GROUP: Final = "quickstart"
_SAMPLE: Final = "ships_log.txt"
_INFLIGHT: Final = 64
_APPEND_S: Final = 30.0


@dataclass(slots=True)
class _Copy:
    """What one node's own files hold up to the commit index."""

    entries: dict[int, bytes]
    digest: str


@dataclass(slots=True)
class QuickStart:
    """One run. ``lines`` are the entries to append; the group's data goes below ``directory``."""

    lines: list[bytes]
    directory: Path
    keep: bool = False
    acknowledged: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _killed_at: float = 0.0

    async def run(self) -> bool:
        """Run it and print as it goes; True for PASS. The processes are ended unless they are to be kept."""
        group = LocalGroup(self.directory, group=_GROUP)
        self._say(f"starting three nodes, data in {_short(self.directory)}")
        kept = False
        try:
            leader = await group.start()
            for node_id, status in (await group.status()).items():
                node = group.node(node_id)
                flush = {"SYNC_FLUSH": "fsync on"}.get(status.flush_disk_type, "fsync OFF") if status else "DOWN"
                role = "  leader" if node_id == leader else ""
                self._say(f"{node_id}  {node.address}  pid {node.pid}  {flush}{role}")
            await self._append_and_kill(group)
            passed = await self._read_back(group)
            kept = self.keep
            return passed
        finally:
            if not kept:
                await group.stop()

    def _say(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._began:6.2f}  {text}")

    # ---------------------------------------------------------------- appending

    async def _append_and_kill(self, group: LocalGroup) -> None:
        """Append every line; half-way the leader is killed, and later started again."""
        half_way = asyncio.Event()
        killed = asyncio.Event()
        killer = asyncio.ensure_future(self._kill_leader(group, half_way, killed))
        self._say(f"appending {len(self.lines)} lines, {_INFLIGHT} in flight")
        with Progress("appending", len(self.lines)) as progress:
            async with group.connect(timeout=_APPEND_S) as client:
                half = len(self.lines) // 2

                def on_ack(line: int, _body: bytes, result: AppendResult) -> None:
                    self.acknowledged[line] = result.index
                    self._times.append(time.monotonic())
                    progress.advance()
                    if len(self.acknowledged) >= half:
                        half_way.set()

                def on_fail(line: int, _body: bytes, error: BaseException) -> None:
                    self.failures.append(f"line {line}: {error}")
                    half_way.set()

                appender = LineAppender(client, on_ack, on_fail, max_inflight_count=_INFLIGHT)
                if half == 0:
                    half_way.set()
                for number, line in enumerate(self.lines):
                    if number >= max(half, len(self.lines) * 3 // 4):
                        # A fast machine must not be done before the leader is dead.
                        await killed.wait()
                    await appender.submit(line)
                await appender.drain()
        victim = await killer
        for failure in self.failures[:3]:
            self._say(f"not acknowledged: {failure}")
        self._say(f"{len(self.acknowledged)} lines acknowledged")
        await group.restart(victim)
        status = await group.wait_caught_up(victim)
        self._say(f"{victim} is back and has caught up (pid {status.pid}, committed {status.commit_index})")

    async def _kill_leader(self, group: LocalGroup, half_way: asyncio.Event, killed: asyncio.Event) -> str:
        """Kill -9 whoever leads when half of the lines are acknowledged; returns its id."""
        await half_way.wait()
        try:
            leader = await group.leader() or await group.wait_leader()
            group.send_signal(leader, signal.SIGKILL)
            self._killed_at = time.monotonic()
        finally:
            killed.set()
        self._say(f"kill -9 {leader} (the leader) after {len(self.acknowledged)} acknowledgements, appends go on")
        await group.kill(leader)
        successor = await group.wait_leader(other_than=leader)
        status = (await group.status())[successor]
        self._say(f"{successor} leads (term {status.term if status else '?'})")
        return leader

    # ---------------------------------------------------------------- reading back

    async def _read_back(self, group: LocalGroup) -> bool:
        """Compare what was acknowledged with a linearizable read and with each node's own files."""
        judgement = Judgement()
        read: dict[int, bytes] = {}
        async with group.connect(timeout=_APPEND_S, session=False) as client:
            commit_index = await client.commit_index()
            async for entry in client.read(0):
                read[entry.index] = entry.body
        judgement.merge(judge(self.lines, self.acknowledged, read))
        self._say(f"read back {len(read)} entries through a linearizable read, committed {commit_index}")
        for node_id in group.nodes:
            await group.wait_caught_up(node_id)
        if not self.keep:
            await group.stop()
        copies: dict[str, _Copy] = {}
        for node in group.nodes.values():
            try:
                copies[node.node_id] = await asyncio.to_thread(_read_files, node.data_dir, commit_index)
            except DLedgerError as error:
                self._say(f"{node.node_id}: {error}")
        for node_id, copy in copies.items():
            judgement.merge(judge(self.lines, self.acknowledged, copy.entries))
            self._say(f"{node_id}'s own files: {len(copy.entries)} entries, SHA-256 {copy.digest[:16]}…")
        if self.keep:
            self._explain(group)
        return self._verdict(judgement, copies, len(group.nodes))

    def _explain(self, group: LocalGroup) -> None:
        pids = " ".join(str(node.pid) for node in group.nodes.values() if node.pid is not None)
        click.echo("\nThe group runs on. Talk to it:\n")
        click.echo(f"  export DLEDGER_PEERS='{group.peers}' DLEDGER_GROUP={group.group}")
        click.echo(f"  {_command()} status\n  {_command()} append hello\n  {_command()} tail -f")
        click.echo(f"\nEnd it:  kill {pids}\nData:    {group.directory}\n")

    def _verdict(self, judgement: Judgement, copies: Mapping[str, _Copy], nodes: int) -> bool:
        digests = [copy.digest for copy in copies.values()]
        identical = max((digests.count(digest) for digest in digests), default=0)
        gap = longest_gap(self._times, self._killed_at)
        unacknowledged = len(self.lines) - len(self.acknowledged)
        passed = judgement.clean and identical == nodes and not unacknowledged and bool(self.acknowledged)
        parts = [
            f"{len(self.acknowledged)} acknowledged, {len(judgement.lost)} lost, "
            f"{len(judgement.duplicated)} duplicated, {len(judgement.reordered)} reordered",
            f"{identical} of {nodes} logs identical",
            "write gap -" if gap is None else f"write gap {gap * 1000:.0f} ms",
        ]
        if unacknowledged:
            parts.append(f"{unacknowledged} not acknowledged")
        click.echo(f"{'PASS' if passed else 'FAIL'}  {'; '.join(parts)}")
        return passed


def _read_files(directory: Path, commit_index: int) -> _Copy:
    """Read a node's folder without the node: its normal entries up to ``commit_index``, and a digest of all bytes."""
    from dledger.storage.filesystem import RealFileSystem  # noqa: PLC0415 - not needed before the end
    from dledger.storage.verify import iter_directory  # noqa: PLC0415

    entries: dict[int, bytes] = {}
    end = 0
    for entry in iter_directory(RealFileSystem(), str(directory)):
        if entry.index > commit_index:
            break
        end = _end_of(entry)
        if entry.type is EntryType.NORMAL:
            entries[entry.index] = entry.body
    return _Copy(entries, _digest(directory / "data", end))


def _end_of(entry: Entry) -> int:
    return entry.pos + 48 + len(entry.body)


def _digest(data: Path, end: int) -> str:
    """Hash the data files' bytes in [0, ``end``): headers, CRCs, bodies, fillers."""
    digest = hashlib.sha256()
    for path in sorted(data.iterdir()):
        left = end - int(path.name)
        with open(path, "rb") as file:
            while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _command() -> str:
    """Return how this installation's command is called."""
    beside = Path(sys.executable).with_name("dledger")
    return _short(beside) if beside.exists() else f"{sys.executable} -m dledger"


def _read_lines(file: Path | None) -> list[bytes]:
    """Return the file's lines without line feeds; without a file, the sample text's."""
    try:
        source = resources.files("dledger") / "data" / _SAMPLE if file is None else file
        content = source.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    lines = content.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--keep", is_flag=True, help="Leave the group running and say how to talk to it.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("dledger-quickstart-data"), show_default=True)
def quickstart(file: Path | None, keep: bool, data_dir: Path) -> int:
    """Start three nodes, append FILE line by line, kill -9 the leader half-way, and check that nothing is lost."""
    lines = _read_lines(file)
    if not lines:
        raise click.ClickException(f"{file} has no lines; nothing to append")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="run-", dir=data_dir)).absolute()
    except OSError as error:
        raise click.ClickException(f"{data_dir}: {error.strerror}") from error
    try:
        passed = run(QuickStart(lines, directory, keep).run())
    except DLedgerError as error:
        what, _, details = str(error).partition("\n")
        click.echo(f"{details}\ndata kept in {directory}".lstrip(), err=True)
        click.echo(f"FAIL  {what}")
        return ExitCode.VERDICT_FAIL
    if not passed:
        click.echo(f"data kept in {directory}", err=True)
        return ExitCode.VERDICT_FAIL
    if not keep:
        shutil.rmtree(directory)
        if not any(data_dir.iterdir()):
            data_dir.rmdir()
    return ExitCode.DONE


def main() -> None:
    """Run the quick start and leave the process with its exit code (6: verdict FAIL)."""
    try:
        code = quickstart.main(prog_name="dledger.quickstart", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = ExitCode.INTERRUPTED
    sys.exit(int(code or 0))


if __name__ == "__main__":
    main()
