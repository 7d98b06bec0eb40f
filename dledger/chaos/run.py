"""One chaos run: a group, its clients, its faults; then everything healed and restarted, read back and compared."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import os
import platform
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

from dledger.chaos.disks import why_no_shim
from dledger.chaos.fabric import Fabric
from dledger.chaos.failover import log_digest
from dledger.chaos.group import CLIENTS, ChaosGroup
from dledger.chaos.injector import Injector
from dledger.chaos.load import ClientLoad, Clock, value_of
from dledger.chaos.monitor import LogEvent, Monitor
from dledger.chaos.record import Election, Event, FaultSpan, LeaderLoss, Record
from dledger.chaos.schedule import FOREIGN_FAULTS, Fault, Step, make_schedule
from dledger.client import LedgerClient, connect
from dledger.client.grpc_transport import GrpcClientTransport
from dledger.client.peers import parse_peers
from dledger.config.peers import split_address
from dledger.errors import ConfigError, DLedgerError
from dledger.raft.messages import EntryType
from dledger.security.access import ClientTls
from dledger.version import VERSION

__all__ = [
    "ChaosOptions",
    "Observer",
    "Present",
    "random_seed",
    "replay_line",
    "resolve_losses",
    "run_chaos",
    "run_chaos_on",
    "usable_faults",
]

_TICK_S: Final = 0.25
_TIMEOUTS_S: Final = (10.0, 2.0, 0.7, 5.0)
"""How long the clients wait for an append, by turns: the impatient ones bring unknown outcomes."""

_HOST: Final = "127.0.0.1"
_SILENCE_S: Final = 0.1
_RECOVERY_S: Final = 60.0
_HEADER_BYTES: Final = 48
_WATCH_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What to run. ``peers``: a running group instead of one of our own, which ``nodes`` and ``settings`` are for;
    ``tls`` and ``token``: what lets clients in there."""

    duration_s: float
    faults: tuple[Fault, ...]
    seed: int
    directory: Path
    clients: int = 8
    concurrency: int = 4
    nodes: int = 3
    entry_bytes: int = 128
    group: str = "chaos"
    peers: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    tls: ClientTls | None = None
    token: str | None = field(default=None, repr=False)

    def access(self) -> dict[str, Any]:
        """Return what ``dledger.connect`` needs beside the peers to be let in."""
        return {"tls": self.tls, "token": self.token}


@dataclass(slots=True)
class Present:
    """What an observer may show: the record as it grows, and what is going on now."""

    options: ChaosOptions
    record: Record
    clock: Clock
    load: ClientLoad
    monitor: Monitor
    injector: Injector
    phase: str = "faults"


class Observer(Protocol):
    """Whoever watches a run. Calls come on the loop and must be quick."""

    def say(self, event: Event) -> None:
        """Something happened."""

    def tick(self, present: Present) -> None:
        """Four times a second."""


def usable_faults(faults: tuple[Fault, ...], *, own: bool) -> tuple[tuple[Fault, ...], list[str]]:
    """Return the faults that can be had here, and for each other one a line that says why not."""
    shim = why_no_shim()
    usable: list[Fault] = []
    skipped: list[str] = []
    for fault in faults:
        if not own and fault not in FOREIGN_FAULTS:
            skipped.append(f"{fault.value} skipped: needs a group that this command started")
        elif fault.of_disk and shim:
            skipped.append(f"{fault.value} skipped: {shim}")
        else:
            usable.append(fault)
    return tuple(usable), skipped


# -------------------------------------------------------------------- the group under test


@dataclass(slots=True)
class _Subject:
    """A group as a run sees it. ``direct``: addresses for watching; ``addresses``: where append clients go.

    ``lives_on``: the group is ours to hurt, but its log has others' entries, and it runs on afterwards.
    """

    group: str
    direct: dict[str, str]
    addresses: dict[str, str]
    local: ChaosGroup | None
    fabric: Fabric | None
    lives_on: bool = False

    @property
    def owns_log(self) -> bool:
        return self.local is not None and not self.lives_on

    def log_paths(self) -> dict[str, Path]:
        return {} if self.local is None else {node_id: node.log_path for node_id, node in self.local.nodes.items()}


@contextlib.asynccontextmanager
async def _subject(options: ChaosOptions) -> AsyncIterator[_Subject]:
    """Start a group, or find the one that runs."""
    if options.peers is not None:
        async with _foreign(options) as subject:
            yield subject
        return
    group = ChaosGroup(
        options.directory,
        nodes=options.nodes,
        group=options.group,
        settings=options.settings,
        with_disks=any(fault.of_disk for fault in options.faults),
        proxied_clients=Fault.RETRY in options.faults,
    )
    async with group:
        direct = {node_id: node.address for node_id, node in group.nodes.items()}
        yield _Subject(options.group, direct, group.addresses(), group, group.fabric)


@contextlib.asynccontextmanager
async def _foreign(options: ChaosOptions) -> AsyncIterator[_Subject]:
    """A group that somebody else runs; clients go through links of ours where their connections are to be hurt."""
    given = parse_peers(options.peers or "")
    async with connect(given, group=options.group, timeout=10.0, session=False, **options.access()) as client:
        members = dict((await client.metadata()).members)
    # As the client does: the address that was given is good for us, the one that nodes name is perhaps another port.
    direct = {node_id: given.get(node_id, address) for node_id, address in members.items()}
    _check_certificates(options, direct)
    if Fault.RETRY not in options.faults:
        yield _Subject(options.group, direct, dict(direct), None, None)
        return
    fabric = Fabric(direct, [CLIENTS], between=False)
    await fabric.open()
    try:
        for node_id, address in direct.items():
            fabric.set_target(node_id, *split_address(address))
        proxied = {node_id: f"{_HOST}:{fabric.port(CLIENTS, node_id)}" for node_id in direct}
        yield _Subject(options.group, direct, proxied, None, fabric)
    finally:
        await fabric.close()


def _check_certificates(options: ChaosOptions, direct: Mapping[str, str]) -> None:
    """Refuse retries where the nodes' certificates are for other hosts than that of the links in front of them.

    Raises:
        ConfigError: clients would reach the nodes at an address that no certificate names.
    """
    others = sorted({host for host, _ in map(split_address, direct.values())} - {_HOST})
    if options.tls is not None and Fault.RETRY in options.faults and others:
        raise ConfigError(
            [
                f"retry: its links listen at {_HOST}, for which the certificates of {', '.join(others)} are not good; "
                "name the nodes by that address, or leave it out: --faults transfer"
            ]
        )


# -------------------------------------------------------------------- the run


async def run_chaos(options: ChaosOptions, observer: Observer) -> Record:
    """Run it; the record says everything, ``meta["error"]`` why there could be no final read.

    Raises:
        DLedgerError: the group could not be started or reached.
    """
    record = Record()
    async with _subject(options) as subject:
        await _Run(options, subject, record, observer).run()
    return record


async def run_chaos_on(group: ChaosGroup, options: ChaosOptions, observer: Observer) -> Record:
    """Run it on a group that somebody started in this process, and that runs on afterwards.

    Every node is killed and restarted at the end, as in any run. Files are not compared: that takes stopped nodes.
    """
    record = Record()
    direct = {node_id: node.address for node_id, node in group.nodes.items()}
    subject = _Subject(group.group, direct, group.addresses(), group, group.fabric, lives_on=True)
    await _Run(options, subject, record, observer).run()
    return record


class _Run:
    """One run against one group."""

    def __init__(self, options: ChaosOptions, subject: _Subject, record: Record, observer: Observer) -> None:
        began = time.monotonic()
        self._options = options
        self._subject = subject
        self._record = record
        self._observer = observer
        self._clock: Clock = lambda: time.monotonic() - began
        self._states: dict[str, str] = {}
        # A log of our own holds this run's entries alone, and any other is a finding.
        self._prefix = "" if subject.owns_log else f"chaos-{secrets.token_hex(4)}/"
        self._ended = False
        self._load = ClientLoad(
            record.history,
            self._clock,
            self._prefix,
            entry_bytes=options.entry_bytes,
            seed=options.seed,
            addresses=subject.direct,
            transport=self._transport,
        )
        self._monitor = Monitor(
            subject.direct,
            self._clock,
            log_paths=subject.log_paths(),
            override=self._states.get,
            is_cut=self._is_cut,
            on_election=self._elected,
            transport=self._transport,
        )
        self._admin = connect(subject.direct, group=subject.group, timeout=5.0, session=False, **options.access())
        self._injector = Injector(
            record,
            self._clock,
            self._monitor,
            self._load,
            node_ids=list(subject.direct),
            group=subject.local,
            fabric=subject.fabric,
            admin=self._admin,
            states=self._states,
            say=observer.say,
        )
        self._present = Present(options, record, self._clock, self._load, self._monitor, self._injector)

    async def run(self) -> None:
        """Load and faults, then recovery, then the last read."""
        self._record.meta = _describe(self._options, self._prefix)
        ticker = asyncio.ensure_future(self._tick())
        watcher = asyncio.ensure_future(self._watch())
        self._monitor.begin()
        try:
            async with self._admin:
                base = await self._base()
                await self._hurt()
                await self._recover()
                await self._read_back(base)
        except (DLedgerError, TimeoutError) as error:
            self._record.meta["error"] = f"the group did not recover: {error or type(error).__name__}"
        finally:
            self._ended = True
            for task in (ticker, watcher):
                task.cancel()
            for ended in await asyncio.gather(ticker, watcher, return_exceptions=True):
                if isinstance(ended, Exception):  # a run that was not watched to its end has shown less than it says
                    self._record.meta.setdefault("problems", []).append(f"watching failed: {ended!r}")
            await self._monitor.stop()
        if self._subject.local is not None and self._subject.owns_log and "error" not in self._record.meta:
            await self._compare(self._subject.local)
        self._finish()

    async def _base(self) -> int:
        """The first index that may be this run's."""
        return 0 if self._subject.owns_log else await self._admin.commit_index() + 1

    # ---------------------------------------------------------------- hurting

    async def _hurt(self) -> None:
        """The clients' time: faults by the schedule, then quiet, then the end of every append."""
        options, load = self._options, self._load
        load.begin(self._connect, options.clients, options.concurrency, _TIMEOUTS_S)
        try:
            await self._inject(
                make_schedule(options.seed, options.duration_s, options.faults, nodes=len(self._nodes()))
            )
            left = options.duration_s - self._clock()
            if left > 0:
                await asyncio.sleep(left)
        finally:
            await self._injector.heal()
            self._record.meta["load_s"] = round(self._clock(), 3)
            await load.stop()

    def _nodes(self) -> list[str]:
        return list(self._subject.direct)

    def _connect(self, timeout: float, session: bool) -> LedgerClient:
        access = self._options.access()
        return connect(self._subject.addresses, group=self._subject.group, timeout=timeout, session=session, **access)

    def _transport(self) -> GrpcClientTransport:
        return GrpcClientTransport(self._subject.group, tls=self._options.tls, token=self._options.token)

    async def _inject(self, schedule: list[Step]) -> None:
        """Each step at its time, or as soon as the one before is over; what would not end in time is left out."""
        for step in schedule:
            wait = step.at_s - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
            if self._clock() + max(action.hold_s for action in step.actions) > self._options.duration_s:
                return
            await asyncio.gather(*(self._injector.inject(action) for action in step.actions))

    def _is_cut(self, node_id: str) -> bool:
        """Whether nothing passes between the node and some other."""
        fabric = self._subject.fabric
        return fabric is not None and any(node_id in pair for pair in fabric.cut_flows() if CLIENTS not in pair)

    def _elected(self, election: Election) -> None:
        if not self._ended:
            self._injector.say(f"{election.node} elected, term {election.term}")

    async def _watch(self) -> None:
        """A node that ends without having been told to is a finding; it is started again all the same."""
        group = self._subject.local
        while group is not None:
            for node_id, node in group.nodes.items():
                if node.process is not None and node.pid is None and node_id not in self._states:
                    tail = node.log_tail().rpartition("\n")[2]
                    words = f"{node_id} ended by itself (exit code {node.process.poll()}): {tail[:500]}"
                    self._record.meta.setdefault("problems", []).append(words)
                    self._injector.say(words)
                    self._states[node_id] = "down"
                    await self._injector.bring_back(node_id)
            await asyncio.sleep(_WATCH_S)

    async def _tick(self) -> None:
        while True:
            self._observer.tick(self._present)
            await asyncio.sleep(_TICK_S)

    # ---------------------------------------------------------------- the end

    async def _recover(self) -> None:
        """Kill and restart every node: what the log promises, it promises from disk."""
        self._present.phase = "recovery"
        group = self._subject.local
        if group is None:
            return
        self._injector.say("healed; kill -9 and restart of every node")
        for node_id in group.nodes:
            self._states[node_id] = "down"
            group.send_signal(node_id, signal.SIGKILL)
        await asyncio.gather(*(group.kill(node_id) for node_id in group.nodes))
        for node_id in group.nodes:
            await group.restart(node_id)
        self._states.clear()
        await group.wait_leader(_RECOVERY_S)
        for node_id in group.nodes:
            await group.wait_caught_up(node_id, _RECOVERY_S)

    async def _read_back(self, base: int) -> None:
        """Read the whole log through a quorum. The index it ends at was committed before the read began."""
        self._present.phase = "reading back"
        commit_index = await self._admin.commit_index(timeout=_RECOVERY_S)
        log: list[str | None] = [None] * (commit_index + 1)
        async for entry in self._admin.read(base):
            if entry.index <= commit_index and entry.type is EntryType.NORMAL:
                log[entry.index] = value_of(entry.body, self._prefix)
        self._record.log = log
        if commit_index >= 0:
            last = await self._admin.get(commit_index)
            self._record.meta["end_pos"] = last.pos + _HEADER_BYTES + len(last.body)

    async def _compare(self, group: ChaosGroup) -> None:
        """Hash each node's own files. The nodes are ended first: what is compared is what is on disk."""
        self._present.phase = "comparing"
        await group.stop()
        end_pos = int(self._record.meta.get("end_pos", 0))
        for node_id, node in group.nodes.items():
            self._record.digests[node_id] = await asyncio.to_thread(log_digest, node.data_dir, end_pos)

    def _finish(self) -> None:
        """Fill in what is known only at the end."""
        record, load = self._record, self._load
        record.samples = self._monitor.samples
        record.elections = sorted(self._monitor.elections, key=lambda election: election.at)
        resolve_losses(record, self._monitor.log_events, load, nodes=len(self._nodes()))
        record.meta["counts"] = dict(self._injector.counts)
        record.meta["forced_retries"] = self._injector.forced_retries
        record.meta["errors"] = dict(load.error_words)
        record.meta["ended_s"] = round(self._clock(), 3)


def _describe(options: ChaosOptions, prefix: str) -> dict[str, Any]:
    """What the report says of the run's circumstances."""
    flush = options.settings.get("flushDiskType", "SYNC_FLUSH")
    return {
        "schema": "dledger.chaos/v1",
        "seed": options.seed,
        "duration_s": options.duration_s,
        "faults": [fault.value for fault in options.faults],
        "clients": options.clients,
        "concurrency": options.concurrency,
        "entry_bytes": options.entry_bytes,
        "nodes": options.nodes,
        "own_group": options.peers is None,
        "settings": dict(options.settings),
        "prefix": prefix,
        "fsync": "fsync on" if flush == "SYNC_FLUSH" else "fsync OFF (ASYNC_FLUSH)",
        "version": VERSION,
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
        "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


# -------------------------------------------------------------------- leader losses


def resolve_losses(record: Record, events: list[LogEvent], load: ClientLoad, *, nodes: int) -> None:
    """Fill in when each loss was noticed, repaired and over; losses that were none (a short pause) go."""
    elections = sorted(record.elections, key=lambda election: election.at)
    kept: list[LeaderLoss] = []
    for loss in record.losses:
        before = max((e.term for e in elections if e.at <= loss.at), default=0)
        elected = next((e for e in elections if e.at > loss.at and e.term > before), None)
        span = next(span for span in record.faults if span.began == loss.at and loss.node in span.takes)
        if elected is None or (loss.kind != Fault.KILL.value and _outlived(span, elected)):
            continue
        if any(other.elected_term == elected.term for other in kept):
            continue  # two faults at once took the same leader: one loss
        _fill(loss, elected, events, load)
        loss.failover = _majority_stays(record.faults, loss, nodes)
        kept.append(loss)
    record.losses = kept


def _outlived(span: FaultSpan, elected: Election) -> bool:
    """Whether the fault was over before it had cost the leader anything."""
    return span.ended is not None and elected.at > span.ended


def _fill(loss: LeaderLoss, elected: Election, events: list[LogEvent], load: ClientLoad) -> None:
    detected = next(
        (
            e.at
            for e in events
            if loss.at <= e.at <= elected.at and e.node != loss.node and e.role.endswith("candidate")
        ),
        None,
    )
    loss.elected, loss.elected_term = elected.node, elected.term
    loss.elected_ms = _since(loss.at, elected.at)
    loss.detected_ms = None if detected is None else _since(loss.at, detected)
    first = bisect.bisect_left(load.acks, loss.at)
    while first < len(load.acks) and load.terms[first] < elected.term:
        first += 1
    if first == len(load.acks):
        return
    loss.first_ack_ms = _since(loss.at, load.acks[first])
    begin = bisect.bisect_left(load.acks, loss.at)
    last = load.acks[begin - 1] if begin else loss.at
    # A silence that was there before belongs to an earlier fault; this one's begins with it.
    started = last if loss.at - last < _SILENCE_S else loss.at
    gaps = [after - before for before, after in itertools.pairwise([started, *load.acks[begin : first + 1]])]
    loss.gap_ms = round(max(gaps) * 1000, 1)


def _since(began: float, at: float) -> float:
    return round((at - began) * 1000, 1)


def _majority_stays(faults: list[FaultSpan], loss: LeaderLoss, nodes: int) -> bool:
    """Whether all the while enough nodes were left that no fault had taken."""
    until = loss.at + (loss.first_ack_ms or loss.elected_ms or 0.0) / 1000
    taken = {
        node_id
        for span in faults
        if span.began <= until and (span.ended is None or span.ended >= loss.at)
        for node_id in span.takes
    }
    return nodes - len(taken) > nodes // 2


def replay_line(options: ChaosOptions) -> str:
    """The command that runs the same schedule again."""
    faults = ",".join(fault.value for fault in options.faults)
    return (
        f"dledger chaos --for {options.duration_s:g}s --faults {faults} --clients {options.clients} "
        f"--concurrency {options.concurrency} --nodes {options.nodes} --seed {options.seed}"
    )


def random_seed() -> int:
    """A seed for a run that was given none."""
    return random.SystemRandom().randrange(1_000_000)
