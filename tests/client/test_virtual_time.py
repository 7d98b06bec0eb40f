"""The same pipeline on virtual time: thousands of forced retries, exact deadlines, one conversation per seed."""

from __future__ import annotations

import ast
import asyncio
import random
from pathlib import Path

import pytest

import dledger.client
from dledger.client.discovery import Directory
from dledger.client.options import PipelineOptions
from dledger.client.pipeline import DEADLINE_GRAIN_S, AppendPipeline
from dledger.client.retry import call_with_retries
from dledger.errors import DLedgerError, Outcome, UnavailableError
from dledger.sim.loop import SimLoop
from tests.client.group import ChaosScript, FakeGroup, MemoryTransport


def on_virtual_time(seed, main):
    loop = SimLoop(random.Random(seed))
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


class Weather:
    """Kills, revives, hangs and elects nodes at random times until told to stop."""

    def __init__(self, transport, rng):
        self.transport = transport
        self.group = transport.group
        self._rng = rng

    async def run(self):
        rng, group, transport = self._rng, self.group, self.transport
        while True:
            await asyncio.sleep(rng.uniform(0.01, 0.4))
            node = rng.choice(group.node_ids)
            event = rng.randrange(5)
            if event == 0 and len(transport.down) < 1:
                transport.kill(node)
                if group.leader == node:
                    group.elect(None)
            elif event == 1:
                transport.down.clear()
            elif event == 2:
                transport.hung = set() if transport.hung else {node}
            elif event == 3:
                group.elect(rng.choice([None, *group.node_ids]))
            if group.leader is None or group.leader in transport.down:
                alive = [one for one in group.node_ids if one not in transport.down]
                asyncio.get_running_loop().call_later(rng.uniform(0.01, 0.3), group.elect, rng.choice(alive))

    def calm(self):
        self.transport.down.clear()
        self.transport.hung.clear()
        self.group.script = None
        if self.group.leader is None:
            self.group.elect("n1")


async def campaign(seed, *, share, timeout_s, tasks=30, appends=100, evictions=False):
    """Run appends through everything that can go wrong; return the group, what was told, and the script."""
    rng = random.Random(seed)
    group = FakeGroup()
    transport = MemoryTransport(group, delay_s=0.0003)
    script = group.script = ChaosScript(seed, share)
    options = PipelineOptions(batch_entries=rng.choice([1, 4, 32]), max_wire_batches=rng.choice([1, 3, 16]))
    nodes = {node: node for node in group.node_ids}
    pipeline = AppendPipeline(transport, Directory(nodes), options, random.Random(seed + 1))
    weather = Weather(transport, rng)
    raging = asyncio.ensure_future(weather.run())
    told = {}

    async def producer(task):
        for number in range(appends):
            body = b"%d/%d" % (task, number)
            try:
                told[body] = (await pipeline.queue.submit(body, rng.uniform(0.1, 1.9) * timeout_s)).index
            except DLedgerError as error:
                told[body] = error
            if evictions and rng.random() < 0.005:
                group.evict()

    await asyncio.gather(*[producer(task) for task in range(tasks)])
    raging.cancel()
    weather.calm()
    last = await pipeline.queue.submit(b"last", 60.0)
    assert group.log[last.index][3] == b"last"
    await pipeline.close()
    assert (pipeline.queue.pending_count, pipeline.queue.pending_bytes) == (0, 0)
    assert asyncio.all_tasks() - {asyncio.current_task(), raging} == set()
    return group, told, script


@pytest.mark.parametrize("seed", range(4))
def test_exactly_once_through_kills_hangs_elections_and_refusals(seed):
    """With time enough every append is acknowledged; each stands once, where it was said to be."""
    group, told, script = on_virtual_time(seed, campaign(seed, share=0.3, timeout_s=10_000.0, appends=60))
    assert script.forced > 20
    assert all(isinstance(index, int) for index in told.values())
    assert sorted(group.bodies()) == sorted([*told, b"last"])
    assert all(group.log[index][3] == body for body, index in told.items())
    for task in range(30):
        places = [told[b"%d/%d" % (task, number)] for number in range(60)]
        assert places == sorted(places)


@pytest.mark.parametrize("evictions", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_said_of_an_append_is_true(seed, evictions):
    """Short deadlines in bad weather: a success stands where it was said, a definite failure nowhere, nothing twice."""
    made = campaign(100 + seed, share=0.4, timeout_s=0.15, evictions=evictions)
    group, told, _ = on_virtual_time(seed, made)
    stands = group.bodies()
    assert len(set(stands)) == len(stands)
    outcomes = {Outcome.DEFINITE: 0, Outcome.UNKNOWN: 0}
    for body, result in told.items():
        if isinstance(result, int):
            assert group.log[result][3] == body
            continue
        outcomes[result.outcome] += 1
        assert result.outcome is Outcome.UNKNOWN or body not in stands
    assert min(outcomes.values()) > 0


def test_a_deadline_is_kept_to_the_hundredth_of_a_second():
    async def main():
        loop = asyncio.get_running_loop()
        transport = MemoryTransport(FakeGroup(leader=None))
        pipeline = AppendPipeline(transport, Directory({"n0": "n0"}), PipelineOptions(), random.Random(1))
        began = loop.time()
        ends = {}
        futures = []
        for timeout in (3.0, 1.0, 1.004, 2.0, 0.5):
            future = pipeline.queue.submit(b"a", timeout)
            future.add_done_callback(lambda _, timeout=timeout: ends.setdefault(timeout, loop.time() - began))
            futures.append(future)
        await asyncio.gather(*futures, return_exceptions=True)
        await pipeline.close()
        return ends

    for timeout, end in on_virtual_time(1, main()).items():
        assert timeout <= end + 1e-9 <= timeout + 0.011


@pytest.mark.parametrize("seed", range(20))
def test_the_last_attempt_has_time_to_say_what_is_wrong(seed):
    """An attempt that could only run out of time would hide the answer of the one before it."""

    async def main():
        limits = []

        async def ask(address, timeout):
            limits.append(timeout)
            await asyncio.sleep(min(0.01, timeout))
            if timeout < 0.01:
                raise UnavailableError(f"no answer within {timeout} s")
            raise UnavailableError("connection refused")

        with pytest.raises(UnavailableError, match="connection refused"):
            await call_with_retries(Directory({"n0": "a", "n1": "b"}), ask, 0.3)
        return limits

    limits = on_virtual_time(seed, main())
    assert len(limits) > 2
    assert min(limits) >= 0.02


def test_the_same_seed_gives_the_same_conversation():
    def conversation():
        group, told, _ = on_virtual_time(5, campaign(5, share=0.4, timeout_s=0.3, tasks=5, appends=40))
        return group.batches, group.log, {body: str(result) for body, result in told.items()}

    assert conversation() == conversation()


def test_the_logic_imports_neither_network_nor_clock_nor_thread():
    allowed = {"asyncio", "collections", "dataclasses", "enum", "itertools", "random", "typing", "__future__"}
    home = Path(dledger.client.__file__).parent
    for name in ("batch", "discovery", "options", "pipeline", "queue", "transport"):
        tree = ast.parse((home / f"{name}.py").read_text())
        for node in ast.walk(tree):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                assert module.split(".")[0] in allowed | {"dledger"}, f"{name} imports {module}"
                assert "grpc" not in module
                assert not module.startswith("dledger.rpc")


def test_each_append_keeps_its_own_deadline_within_a_batch():
    async def main():
        loop = asyncio.get_running_loop()
        group = FakeGroup(leader=None)
        pipeline = AppendPipeline(
            MemoryTransport(group),
            Directory({node: node for node in group.node_ids}),
            PipelineOptions(),
            random.Random(7),
        )
        began, ends, futures = loop.time(), {}, []
        for timeout in (0.3, 0.1, 0.2):
            futures.append(pipeline.queue.submit(b"%f" % timeout, timeout))
            futures[-1].add_done_callback(lambda _, timeout=timeout: ends.setdefault(timeout, loop.time() - began))
        lasting = pipeline.queue.submit(b"lasting", 10.0)
        await asyncio.gather(*futures, return_exceptions=True)
        assert list(ends) == [0.1, 0.2, 0.3]
        assert all(abs(ends[timeout] - timeout) <= DEADLINE_GRAIN_S for timeout in ends)
        group.elect("n0")
        await lasting
        assert group.bodies() == [b"lasting"]
        await pipeline.close()

    on_virtual_time(3, main())
