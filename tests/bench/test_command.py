"""``dledger bench`` and the suite on real groups: what they print, compare and leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dledger.bench import suite as suite_module
from dledger.bench.group_bench import catch_up, idle_cpu
from dledger.bench.report import table
from dledger.bench.suite import Suite, SuiteOptions, save
from dledger.cli.exit_codes import ExitCode
from dledger.local_group import LocalGroup

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ("--for", "0.3s", "--warmup", "0.1s")


@pytest_asyncio.fixture
async def group(tmp_path: Path) -> AsyncIterator[LocalGroup]:
    async with LocalGroup(tmp_path / "group", nodes=1, group="g") as one:
        yield one


async def bench(group: LocalGroup, *words: str, expected: int = 0) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
    env |= {"DLEDGER_PEERS": group.peers, "DLEDGER_GROUP": group.group}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "dledger", "bench", *words],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env=env, timeout=60,
    )  # fmt: skip
    assert done.returncode == expected, done.stderr
    return done.stdout


@pytest.mark.asyncio
async def test_every_operation_and_several_processes(group: LocalGroup) -> None:
    async def runs(*words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(await bench(group, *words, *QUICK, "-o", "json"))["runs"]
        assert all(run["acknowledged"] > 0 and run["failed"] == 0 for run in found)
        return found

    batches = (await runs("--op", "append-batch", "--batch", "32", "--concurrency", "4", "--clients", "2"))[0]
    assert batches["acknowledged"] % 32 == 0
    assert batches["cpu_us_per_entry"]["n0 (leader)"] > 0
    assert batches["cpu_us_per_entry"]["clients"] > 0
    assert batches["rss_bytes"]["n0 (leader)"] > 1 << 20
    for operation in ("get", "read"):
        assert (await runs("--op", operation, "--concurrency", "2"))[0]["megabytes_per_s"] > 0
    for operation in ("unary", "unary-get", "unary-read"):
        ours, echo = await runs("--op", operation, "--concurrency", "2", "--channels", "2")
        assert (ours["where"], echo["where"]) == ("group", "echo")
    assert "echo, nothing behind it" in await bench(group, "--op", "unary", "--concurrency", "2", *QUICK)


@pytest.mark.asyncio
async def test_a_comparison_has_a_verdict_and_an_exit_code(group: LocalGroup, tmp_path: Path) -> None:
    words = ("--concurrency", "4", *QUICK)
    now = json.loads(await bench(group, *words, "-o", "json"))
    for factor, code, word in ((1e-3, ExitCode.DONE, "FASTER"), (1e3, ExitCode.VERDICT_FAIL, "SLOWER")):
        before = json.loads(json.dumps(now))
        for run in before["runs"]:
            run["throughput_per_s"] *= factor
            run["latency_ms"]["p50"] /= factor
        (tmp_path / "before.json").write_text(json.dumps(before), encoding="utf-8")
        said = await bench(group, *words, "--compare", str(tmp_path / "before.json"), expected=code)
        assert said.splitlines()[-1].startswith(word)
    (tmp_path / "before.json").write_text("{}", encoding="utf-8")
    await bench(group, *words, "--compare", str(tmp_path / "before.json"), expected=ExitCode.CONFIGURATION)


@pytest.mark.asyncio
async def test_a_log_without_entries_cannot_be_read(group: LocalGroup) -> None:
    await bench(group, "--op", "unary-get", *QUICK)  # a new group has its leader's first entry
    await bench(group, "--op", "get", "--batch", "4", *QUICK, expected=ExitCode.USAGE)
    await bench(group, "--clients", "3", "--concurrency", "2", *QUICK, expected=ExitCode.USAGE)


@pytest.mark.asyncio
async def test_an_empty_follower_catches_up_under_load(tmp_path: Path) -> None:
    found = await catch_up(tmp_path, 2_000_000, 256, 0.5)
    assert found["megabytes_per_s"] > 0
    assert min(found["before"], found["without"], found["during"]) > 0
    assert found["lost"] == pytest.approx(1 - found["during"] / found["before"], abs=0.01)
    assert found["seconds_with_start"] >= found["seconds"] > 0


@pytest.mark.asyncio
async def test_idle_nodes_cost_little(tmp_path: Path) -> None:
    found = await idle_cpu(tmp_path, 1.0)
    assert set(found) == {"leader", "follower 1", "follower 2"}
    assert all(0 <= share < 0.5 for share in found.values())


@pytest.mark.asyncio
async def test_a_round_of_the_suite(tmp_path: Path) -> None:
    keys = ("one", "unary", "read-cold", "open-small", "follower-cpu")
    said: list[str] = []
    options = SuiteOptions(
        rounds=1, duration_s=0.3, warmup_s=0.1, only=keys, peers=(), read_bytes=4 << 20, open_small_bytes=1 << 20,
        open_repeats=1,
    )  # fmt: skip
    suite = Suite(options, tmp_path, said.append)
    saved: list[int] = []
    suite.on_round = lambda: saved.append(len(suite.results()["rows"]))
    await suite.run()
    results = suite.results()
    assert set(results["skipped"]) == {"etcd", "rabbitmq", "nats"}
    assert {key: set(row) for key, row in results["rows"].items()} == {
        "one": {"dledger", "async"}, "unary": {"dledger", "echo"}, "read-cold": {"dledger", "echo"},
        "open-small": {"dledger", "page cache"}, "batch": {"dledger", "async"}, "follower-cpu": {"dledger", "async"},
    }  # fmt: skip
    assert not any("errors" in contender for row in results["rows"].values() for contender in row.values())
    assert saved == sorted(saved)
    assert saved[-1] == len(results["rows"])
    save(results, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    assert len(table(results).splitlines()) == 2 + len(results["rows"])
    assert os.listdir(tmp_path) == ["run.json"], "nothing else is left"


@pytest.mark.asyncio
async def test_a_contender_that_fails_is_noted_and_the_suite_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "etcd"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("ETCD", str(fake))
    monkeypatch.setenv("ETCD_LOAD", str(fake))
    options = SuiteOptions(rounds=1, duration_s=0.2, warmup_s=0.1, rest_s=0.01, only=("one",), peers=("etcd",))
    suite = Suite(options, tmp_path, lambda _: None)
    rests: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds == options.rest_s:
            rests.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(suite_module.asyncio, "sleep", noted)
    await suite.run()
    assert len(rests) == 3, "before each contender"
    row = suite.results()["rows"]["one"]
    assert "etcd ended with exit code 3" in row["etcd"]["errors"][0]
    assert row["dledger"]["median"] > 0
    assert "etcd failed" in table(suite.results())
