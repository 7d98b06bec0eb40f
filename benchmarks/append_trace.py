#!/usr/bin/env python3
"""Show where the time of one append goes: from the kernel's trace of a client and three nodes on this machine.

sudo python benchmarks/append_trace.py [--for 2s] [-o table|json]

One append at a time, as in the row `one` of docs/performance.md. The kernel (ftrace; root is needed) says when each of
the four processes reads, writes, syncs, and has a processor; each append is cut at these calls into what follows
each other. The follower is the one that answers first. Tracing slows an append by about a tenth.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

import dledger
from dledger.cli.options import output_option
from dledger.cli.options import seconds as duration
from dledger.cli.runtime import run
from dledger.cli.table import render_table
from dledger.local_group import LocalGroup

TRACEFS: Final = Path("/sys/kernel/tracing")
CALLS: Final = {
    "x86_64": {0: "read", 1: "write", 75: "fdatasync"},
    "aarch64": {63: "read", 64: "write", 83: "fdatasync"},
}
CLIENT: Final = "client"
_BUFFER_KB: Final = 16_384
_BODY: Final = b"x" * 256
_LONGEST_US: Final = 10_000
"""What takes longer met something else, such as a checkpoint or another process."""

_LINE: Final = re.compile(r"\s*.*-(\d+)\s+\[(\d+)\]\s+\S+\s+([\d.]+):\s+(\w+)(?::\s*|\()(.*)")
_CALL: Final = re.compile(r"(?:NR )?(\d+)( =|\s*\()?")
_SWITCH: Final = re.compile(r"prev_pid=(\d+) .*==> .*next_pid=(\d+)")


class Call(NamedTuple):
    """A system call begins (``enters``) or ends, at ``at_us``."""

    at_us: float
    name: str
    enters: bool


@dataclass(slots=True)
class Process:
    """What one process did: its calls, and the stretches (begin, end; microseconds) in which it had a processor."""

    calls: list[Call] = field(default_factory=list)
    ran: list[tuple[float, float]] = field(default_factory=list)

    def first(self, name: str, after_us: float, *, enters: bool = True) -> float:
        """Return when ``name`` is next called (or returns), from ``after_us`` on. Raises LookupError: never."""
        for number in range(bisect_left(self.calls, (after_us,)), len(self.calls)):
            call = self.calls[number]
            if call.name == name and call.enters is enters:
                return call.at_us
        raise LookupError(name)

    def last(self, name: str, before_us: float) -> float:
        """Return when ``name`` was last called before ``before_us``. Raises LookupError: never."""
        for number in range(bisect_left(self.calls, (before_us,)) - 1, -1, -1):
            call = self.calls[number]
            if call.name == name and call.enters:
                return call.at_us
        raise LookupError(name)

    def ran_us(self, begin_us: float, end_us: float) -> float:
        """Return how long it had a processor between two times."""
        at = max(bisect_left(self.ran, (begin_us,)) - 1, 0)
        total = 0.0
        while at < len(self.ran) and self.ran[at][0] < end_us:
            total += max(min(self.ran[at][1], end_us) - max(self.ran[at][0], begin_us), 0.0)
            at += 1
        return total


def read_trace(lines: Iterable[str], pids: Mapping[int, str], calls: Mapping[int, str]) -> dict[str, Process]:
    """Return what each process of ``pids`` (pid → name) did, by the kernel's text of its trace."""
    found = {name: Process() for name in pids.values()}
    since: dict[int, float] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        at_us, event, rest = float(match[3]) * 1e6, match[4], match[5]
        if event == "sched_switch" and (switch := _SWITCH.search(rest)):
            gone, come = int(switch[1]), int(switch[2])
            if gone in since:
                found[pids[gone]].ran.append((since.pop(gone), at_us))
            if come in pids:
                since[come] = at_us
        elif event in ("sys_enter", "sys_exit") and (call := _CALL.match(rest)):
            name, process = calls.get(int(call[1])), pids.get(int(match[1]))
            if name is not None and process is not None:
                found[process].calls.append(Call(at_us, name, event == "sys_enter"))
    return found


class Phase(NamedTuple):
    """A part of an append: whose it is, when it begins and ends (microseconds)."""

    name: str
    owner: str
    begin_us: float
    end_us: float


def phases_of(begin_us: float, end_us: float, processes: Mapping[str, Process], leader: str) -> list[Phase]:
    """Cut an append, from the client's write to its next one, into what follows each other.

    Raises:
        LookupError: it did not go the usual way.
    """
    client, lead = processes[CLIENT], processes[leader]
    heard = lead.first("read", begin_us)
    sent = lead.first("write", heard)
    ways = [_follow(processes[name], name, sent) for name in processes if name not in (CLIENT, leader)]
    follower, got, syncs, synced, told = min(ways, key=lambda way: way[-1])
    heard_back = client.last("read", end_us)
    answered = lead.last("write", heard_back)
    done = max(told, lead.first("fdatasync", sent, enters=False))
    taken = lead.first("read", done)
    if not begin_us < heard < sent < got < syncs < synced < told <= done < taken < answered < heard_back < end_us:
        raise LookupError("in another order")
    return [
        Phase("the leader wakes up", leader, begin_us, heard),
        Phase("leader: entry and message are made", leader, heard, sent),
        Phase("the first follower wakes up", follower, sent, got),
        Phase("follower: message is verified, taken into the log", follower, got, syncs),
        Phase("follower: fdatasync", follower, syncs, synced),
        Phase("follower: answer is made", follower, synced, told),
        Phase("leader: own fdatasync is still going on", leader, told, done),
        Phase("the leader wakes up again", leader, done, taken),
        Phase("leader: commit, answer is made", leader, taken, answered),
        Phase("the client wakes up", CLIENT, answered, heard_back),
        Phase("client: answer is taken, next append made", CLIENT, heard_back, end_us),
    ]


def _follow(process: Process, name: str, sent_us: float) -> tuple[str, float, float, float, float]:
    got = process.first("read", sent_us)
    syncs = process.first("fdatasync", got)
    synced = process.first("fdatasync", syncs, enters=False)
    return name, got, syncs, synced, process.first("write", synced)


def cut(processes: Mapping[str, Process], leader: str) -> list[list[Phase]]:
    """Return the phases of every append in the trace that went the usual way."""
    begins = [call.at_us for call in processes[CLIENT].calls if call.name == "write" and call.enters]
    found: list[list[Phase]] = []
    for begin_us, end_us in pairwise(begins):
        if end_us - begin_us > _LONGEST_US:
            continue
        try:
            found.append(phases_of(begin_us, end_us, processes, leader))
        except LookupError:
            continue
    return found


def summary(appends: list[list[Phase]], processes: Mapping[str, Process], cpu_count: int) -> list[dict[str, object]]:
    """Return a row for each phase (mean and median in microseconds, mean of it with a processor), and of the whole."""
    rows: list[dict[str, object]] = []
    for number, phase in enumerate(appends[0]):
        parts = [append[number] for append in appends]
        ran = [processes[part.owner].ran_us(part.begin_us, part.end_us) for part in parts]
        rows.append(_row(phase.name, [part.end_us - part.begin_us for part in parts], statistics.fmean(ran)))
    spans = [(append[0].begin_us, append[-1].end_us) for append in appends]
    ran = [sum(process.ran_us(*span) for process in processes.values()) for span in spans]
    rows.append(_row("all of it", [end - begin for begin, end in spans], statistics.fmean(ran)))
    rows[-1]["cpus"] = cpu_count
    return rows


def _row(name: str, took_us: list[float], ran_us: float) -> dict[str, object]:
    return {
        "phase": name,
        "mean_us": round(statistics.fmean(took_us), 1),
        "median_us": round(statistics.median(took_us), 1),
        "on_cpu_us": round(ran_us, 1),
    }


@contextmanager
def tracing(pids: Iterable[int]) -> Iterator[None]:
    """Have the kernel trace system calls of ``pids`` and all switches, into its own memory.

    Raises:
        click.ClickException: it may not be asked, or cannot.
    """
    of_pids = "||".join(f"common_pid=={pid}" for pid in pids)
    events = {"raw_syscalls/sys_enter": of_pids, "raw_syscalls/sys_exit": of_pids, "sched/sched_switch": ""}
    try:
        _ask("tracing_on", "0")
        _ask("trace", "")
        _ask("trace_clock", "mono")
        _ask("buffer_size_kb", str(_BUFFER_KB))
        for event, chosen in events.items():
            if chosen:
                _ask(f"events/{event}/filter", chosen)
            _ask(f"events/{event}/enable", "1")
    except OSError as error:
        raise click.ClickException(
            f"the kernel's trace cannot be had ({error}): run as root on Linux, with {TRACEFS} mounted"
            f" (mount -t tracefs nodev {TRACEFS})"
        ) from None
    try:
        _ask("tracing_on", "1")
        yield
    finally:
        _ask("tracing_on", "0")
        for event, chosen in events.items():
            _ask(f"events/{event}/enable", "0")
            if chosen:
                _ask(f"events/{event}/filter", "0")


def _ask(name: str, value: str) -> None:
    (TRACEFS / name).write_text(value, encoding="ascii")


async def append_for(group: LocalGroup, seconds: float) -> tuple[dict[int, str], str, list[str]]:
    """Append one entry at a time, the last ``seconds`` of it traced; return pid → name, the leader, the trace."""
    async with group.connect() as client:
        await _append_until(client, time.monotonic() + 1.0)
        leader = await group.wait_leader()
        pids = {node.pid: name for name, node in group.nodes.items() if node.pid is not None}
        pids[os.getpid()] = CLIENT
        with tracing(pids):
            await _append_until(client, time.monotonic() + seconds)
        return pids, leader, (TRACEFS / "trace").read_text(encoding="utf-8", errors="replace").splitlines()


async def _append_until(client: dledger.LedgerClient, until_s: float) -> None:
    while time.monotonic() < until_s:
        await client.append(_BODY)


async def measure(seconds: float) -> list[dict[str, object]]:
    """Start a group, trace, end the group; return the rows."""
    calls = CALLS.get(platform.machine())
    if calls is None:
        raise click.ClickException(f"the numbers of system calls are known for {', '.join(CALLS)} only")
    with tempfile.TemporaryDirectory(prefix="dledger-trace-", dir=".") as directory:
        async with LocalGroup(directory, group="trace") as group:
            pids, leader, lines = await append_for(group, seconds)
    processes = read_trace(lines, pids, calls)
    appends = cut(processes, leader)
    if not appends:
        raise click.ClickException("the trace shows no append: is something else tracing?")
    return [{**row, "appends": len(appends)} for row in summary(appends, processes, os.cpu_count() or 1)]


@click.command()
@click.option("--for", "seconds", type=duration, default="2s", show_default=True, help="How long to trace.")
@output_option("table", "json")
def main(seconds: float, output: str) -> None:
    """Show where the time of one append goes, by the kernel's trace (needs root)."""
    dledger.prefer_polling()
    rows = run(measure(seconds))
    if output == "json":
        click.echo(json.dumps(rows))
        return
    header = ("PHASE", "mean µs", "median µs", "of it on a CPU")
    cells = [[str(row[key]) for key in ("phase", "mean_us", "median_us", "on_cpu_us")] for row in rows]
    click.echo(render_table(header, cells, frozenset({1, 2, 3})))
    click.echo(f"{rows[0]['appends']} appends; {rows[-1]['cpus']} CPUs for the four processes")


if __name__ == "__main__":
    main()
