"""One seed, one run, one verdict.

A run has two phases. In the safety phase everything may break at any time, and nothing wrong may ever be seen. Then the
faults end, and within a bound there must be a leader, every append must be answered, and all logs must be equal to the
byte. At last the history of all clients is judged against the log.
"""

from __future__ import annotations

import asyncio
import gc
import traceback
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Final

from dledger.checker.check import check
from dledger.checker.history import History
from dledger.sim.clients import Client, LooseClient, PipelineClient, ReadingClient, SessionClient, Wire
from dledger.sim.cluster import Cluster
from dledger.sim.faults import Faults
from dledger.sim.guard import virtual_machine
from dledger.sim.invariants import InvariantViolation
from dledger.sim.loop import SimDeadlockError, SimLivelockError, SimLoop, new_loop
from dledger.sim.scenario import Scenario, draw_scenario
from dledger.sim.trace import KEPT_EVENTS, Trace

__all__ = ["RunResult", "run_scenario", "run_seed"]

_LOOK_EVERY_S: Final = 0.1


@dataclass(slots=True)
class RunResult:
    """What a run has shown. ``violation`` empty: nothing wrong."""

    seed: int
    violation: str = ""
    message: str = ""
    trace_hash: str = ""
    virtual_s: float = 0.0
    real_s: float = 0.0
    recovery_s: float = 0.0
    """From the end of the faults until all was well."""
    callbacks: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violation


def run_seed(
    seed: int, *, duration_s: float = 58.0, keep: int | None = KEPT_EVENTS, lines: int | None = 200
) -> RunResult:
    """Run one seed: a safety phase of ``duration_s`` virtual seconds, then liveness.

    ``keep``: events of the trace that are kept (None: all), ``lines``: how many of them the result tells (None: all);
    none where nothing was wrong, unless all are asked for.
    """
    return run_scenario(draw_scenario(seed, duration_s=duration_s), keep=keep, lines=lines)


def run_scenario(scenario: Scenario, *, keep: int | None = KEPT_EVENTS, lines: int | None = 200) -> RunResult:
    """As `run_seed`, for a scenario made by hand."""
    result = RunResult(scenario.seed)
    loop = new_loop(Random(f"{scenario.seed} loop"), shuffle=scenario.shuffle)
    trace = Trace(loop, keep=keep)
    run = _Run(loop, scenario, trace, result)
    collecting = gc.isenabled()
    gc.disable()  # thousands of small objects that live to the end of the run: collecting is all cost
    started = perf_counter()
    try:
        with virtual_machine(loop.time, lambda: run.faults.wall_clock_offset_s):
            loop.run_until_complete(run.main())
    except InvariantViolation as violation:
        result.violation, result.message = violation.name, str(violation)
    except (SimDeadlockError, SimLivelockError) as error:
        result.violation, result.message = "progress", str(error)
    finally:
        result.virtual_s = loop.time() - run.start
        result.callbacks = loop.callbacks
        run.finish()
        loop.close()
        result.real_s = perf_counter() - started
        if collecting:
            gc.enable()
    result.trace_hash = trace.hash
    if not result.ok or lines is None:
        result.trace = list(trace.lines(lines))
    return result


class _Run:
    """The parts of one run, and its two phases."""

    def __init__(self, loop: SimLoop, scenario: Scenario, trace: Trace, result: RunResult) -> None:
        self.loop = loop
        self.start = loop.time()
        self.scenario = scenario
        self.trace = trace
        self.result = result
        self.cluster = Cluster(loop, scenario, trace)
        self.wire = Wire(self.cluster, self.cluster.rng("wire"))
        self.history = History()
        self.faults = Faults(self.cluster, self.wire, self.history)
        self.clients = self._make_clients()

    def _make_clients(self) -> list[Client]:
        kinds: list[type[Client]] = [
            *[PipelineClient] * self.scenario.pipelines,
            *[SessionClient] * self.scenario.sessions,
            *[LooseClient] * self.scenario.loose,
            *[ReadingClient] * self.scenario.readers,
        ]
        return [kind(self.cluster, self.wire, self.history, number) for number, kind in enumerate(kinds)]

    async def main(self) -> None:
        """Both phases and the last judgement.

        Raises:
            InvariantViolation: what went wrong.
        """
        for node in self.cluster.nodes.values():
            self.cluster.start(node)
        tasks = [client.process.run(self.loop.create_task, client.run()) for client in self.clients]
        faults = self.loop.create_task(self.faults.run())
        await asyncio.sleep(self.scenario.duration_s)
        self.faults.end()
        ended = self.loop.time()
        await self._until_well(ended + self.scenario.liveness_s)
        for client in self.clients:
            client.stopping = True
        await self._finish_clients(tasks, ended + self.scenario.liveness_s)
        await self._until_equal(ended + self.scenario.liveness_s)
        self.result.recovery_s = self.loop.time() - ended
        faults.cancel()
        self._judge()

    async def _until_well(self, deadline: float) -> None:
        """Wait for a leader that has committed an entry of its term and that every node follows."""
        while not self._well():
            self._check()
            if self.loop.time() > deadline:
                raise InvariantViolation("liveness", f"no leader that all follow: {self._describe()}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _well(self) -> bool:
        leader = self.cluster.leader
        return (
            leader is not None
            and leader.live_driver.core.is_leader_ready
            and all(
                node.up and node.live_driver.core.leader_id == leader.node_id for node in self.cluster.nodes.values()
            )
        )

    async def _finish_clients(self, tasks: list[asyncio.Task[None]], deadline: float) -> None:
        while not all(task.done() for task in tasks):
            self._check()
            if self.loop.time() > deadline:
                left = [client.name for client, task in zip(self.clients, tasks, strict=True) if not task.done()]
                raise InvariantViolation("liveness", f"clients wait for ever: {left}; {self._describe()}")
            await asyncio.sleep(_LOOK_EVERY_S)
        for client, task in zip(self.clients, tasks, strict=True):
            if task.exception() is not None:
                trail = "".join(traceback.format_exception(task.exception())[-6:])
                raise InvariantViolation("client", f"{client.name} ended with {trail}")

    async def _until_equal(self, deadline: float) -> None:
        """Wait until every node has committed everything and no follower has more than the leader."""
        while not self._equal():
            self._check()
            if self.loop.time() > deadline:
                raise InvariantViolation("liveness", f"logs do not become equal: {self._describe()}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _equal(self) -> bool:
        return self._well() and {
            (node.live_driver.core.commit_index, node.live_driver.store.last_index, node.live_driver.core.stable_index)
            for node in self.cluster.nodes.values()
        } == {(len(self.cluster.invariants.chains) - 1,) * 3}

    def _describe(self) -> str:
        lines = []
        for node in self.cluster.nodes.values():
            if not node.up:
                lines.append(f"{node.node_id} down")
                continue
            core = node.live_driver.core
            lines.append(
                f"{node.node_id} {core.role.value} term {core.term} leader {core.leader_id} last {core.last_index} "
                f"stable {core.stable_index} commit {core.commit_index} floor {core.hard_state.vote_floor}"
            )
        return "; ".join(lines)

    def _check(self) -> None:
        if self.cluster.invariants.violation is not None:
            raise self.cluster.invariants.violation

    def _judge(self) -> None:
        self._check()
        self.cluster.invariants.check_equal_disks()
        self._check()
        verdict = check(self.history, self.cluster.invariants.values)
        if not verdict.ok:
            kind = next(iter(verdict.counts))
            raise InvariantViolation(f"history: {kind.value}", verdict.report())
        if self.loop.unhandled:
            name, context = self.loop.unhandled[0]
            trail = "".join(traceback.format_exception(context["exception"])) if "exception" in context else ""
            raise InvariantViolation("no unhandled error", f"{name}: {context.get('message')} {trail}")

    def finish(self) -> None:
        """Fill in the counts, also of a run that ended early."""
        cluster = self.cluster
        self.result.faults = self.faults.counts
        self.result.counts = {
            "appends": len(self.history.values),
            "reads": len(self.history.reads),
            "entries": len(cluster.invariants.chains),
            "elections": cluster.elections,
            "crashes": cluster.crashes,
            "power_failures": cluster.power_failures,
            "wipes": cluster.wipes,
            "messages": cluster.network.sent,
            "damaged": cluster.network.damaged,
            "events": self.trace.count,
        }
