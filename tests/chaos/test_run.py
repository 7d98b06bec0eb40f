"""Chaos by its command: a short run with every process and network fault, what it leaves, and what it says when it fails."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dledger.chaos.group import ChaosGroup
from dledger.chaos.judge import judge_record
from dledger.chaos.load import value_of
from dledger.chaos.record import Event, Record
from dledger.chaos.run import ChaosOptions, Present, run_chaos, usable_faults
from dledger.chaos.schedule import Fault
from dledger.cli.exit_codes import ExitCode
from dledger.cli.main import _run

PROCESS_AND_NETWORK = "kill,pause,partition"


class Silent:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.phases: list[str] = []

    def say(self, event: Event) -> None:
        self.events.append(event)

    def tick(self, present: Present) -> None:
        self.phases.append(present.phase)


def run_command(tmp_path: Path, capsys, *arguments: str) -> tuple[int, str]:
    code = _run(["chaos", "--data-dir", str(tmp_path), *arguments])
    return code, capsys.readouterr().out


@pytest.mark.timeout(110)
def test_a_short_run_of_process_and_network_faults(tmp_path: Path, capsys) -> None:
    """The run that every change must pass: half a minute, kills, pauses and cuts; then its files."""
    html, history = tmp_path / "chaos.html", tmp_path / "chaos.jsonl.gz"
    code, out = run_command(
        tmp_path, capsys, "--for", "14s", "--faults", PROCESS_AND_NETWORK, "--clients", "4", "--seed", "1",
        "--html", str(html), "--history", str(history),
    )  # fmt: skip
    assert code == ExitCode.DONE, out
    assert re.match(
        r"PASS  \d+ acknowledged, 0 lost, 0 duplicated, 0 reordered; linearizable .* 3 of 3 logs identical", out
    )
    assert "--seed 1" in out
    # It did hurt: something was killed, paused and cut, and the leader was lost.
    record = Record.load(history)
    assert {span.kind for span in record.faults} == {"kill", "pause", "partition"}
    assert record.losses
    assert len({election.node for election in record.elections}) > 1
    assert len(record.history.reads) > 10
    # The folder of a run that passed is gone, and the report judges and draws the same again.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chaos.html", "chaos.jsonl.gz"]
    again = tmp_path / "again.html"
    assert _run(["report", str(html), "--html", str(again), "-o", "json"]) == ExitCode.DONE
    summary = json.loads(capsys.readouterr().out)
    assert summary["ok"] and summary["acknowledged"] == judge_record(record).verdict.acknowledged
    assert 'class="verdict pass"' in again.read_text(encoding="utf-8")


@pytest.mark.timeout(110)
def test_a_log_that_lost_something_fails_the_run_and_keeps_the_data(tmp_path: Path, capsys, monkeypatch) -> None:
    """The reader is made to forget one entry: verdict, exit code, data and replay line must say so."""
    real = value_of
    forgotten: list[str] = []

    def forgetful(body: bytes, prefix: str) -> str | None:
        value = real(body, prefix)
        if value is not None and (not forgotten or value in forgotten) and value.endswith(".7"):
            forgotten.append(value)
            return None
        return value

    monkeypatch.setattr("dledger.chaos.run.value_of", forgetful)
    code, out = run_command(tmp_path, capsys, "--for", "2s", "--faults", "transfer", "--clients", "2", "--seed", "5")
    assert code == ExitCode.VERDICT_FAIL
    assert out.startswith("FAIL")
    assert f"lost: append '{forgotten[0]}'" in out
    assert "fault active then:" in out
    assert "replay: dledger chaos --for 2s --faults transfer --clients 2" in out
    kept = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert (kept / "store" / "dledger-n0" / "data").is_dir()
    assert _run(["report", str(kept / "history.jsonl.gz")]) == ExitCode.VERDICT_FAIL


@pytest.mark.asyncio
async def test_a_running_group_is_hurt_only_by_what_is_ours(
    chaos_group: Callable[..., ChaosGroup], tmp_path: Path
) -> None:
    """Retries and transfers; the group's own entries before are nobody's; its processes are the same afterwards."""
    group = chaos_group()
    async with group:
        pids = [node.pid for node in group.nodes.values()]
        async with group.connect() as client:
            await client.append_many([b"there before"] * 10)
        observer = Silent()
        options = ChaosOptions(
            duration_s=4,
            faults=(Fault.RETRY, Fault.TRANSFER),
            seed=3,
            directory=tmp_path,
            clients=2,
            group=group.group,
            peers=group.peers,
        )
        record = await run_chaos(options, observer)
        assert [node.pid for node in group.nodes.values()] == pids
    judgement = judge_record(record)
    assert judgement.ok, "\n".join(judgement.lines(record))
    assert {span.kind for span in record.faults} == {"retry", "transfer"}
    assert record.meta["forced_retries"] > 0
    assert record.elections
    assert record.digests == {}
    assert len(observer.phases) > 8  # four times a second
    assert [event.words for event in observer.events] == [event.words for event in record.events]


def test_faults_that_cannot_be_had_are_skipped_by_name(monkeypatch) -> None:
    every = (Fault.KILL, Fault.SLOW_DISK, Fault.RETRY)
    assert usable_faults(every, own=False) == (
        (Fault.RETRY,),
        [
            "kill skipped: needs a group that this command started",
            "slow-disk skipped: needs a group that this command started",
        ],
    )
    monkeypatch.setattr("dledger.chaos.disks.shutil.which", lambda _: None)
    assert usable_faults(every, own=True) == ((Fault.KILL, Fault.RETRY), ["slow-disk skipped: no C compiler"])


def test_wrong_usage(capsys) -> None:
    assert _run(["chaos", "--faults", "kill,what"]) == ExitCode.USAGE
    assert '"what" is no fault' in capsys.readouterr().err
    assert _run(["chaos", "--for", "soon"]) == ExitCode.USAGE
    assert _run(["chaos", "--nodes", "4"]) == ExitCode.USAGE


async def force_retries(group: ChaosGroup, tmp_path: Path, wanted: int, concurrency: int) -> Record:
    """Runs of nothing but retries until there were enough of them, every one judged."""
    total = 0
    seed = 1
    async with group:
        while total < wanted:
            options = ChaosOptions(
                duration_s=10,
                faults=(Fault.RETRY,),
                seed=seed,
                directory=tmp_path,
                clients=4,
                concurrency=concurrency,
                group=group.group,
                peers=group.peers,
            )
            record = await run_chaos(options, Silent())
            judgement = await asyncio.to_thread(judge_record, record)
            assert judgement.ok, "\n".join(judgement.lines(record))
            assert record.meta["forced_retries"] > 0
            total += record.meta["forced_retries"]
            seed += 1
    return record


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.asyncio
async def test_a_hundred_thousand_forced_retries(chaos_group: Callable[..., ChaosGroup], tmp_path: Path) -> None:
    await force_retries(chaos_group(), tmp_path, 100_000, 256)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("nodes", ["3", "5"])
@pytest.mark.parametrize("seed", range(5))
def test_a_long_run_of_all_faults(tmp_path: Path, capsys, seed: int, nodes: str) -> None:
    code, out = run_command(
        tmp_path, capsys, "--for", "60s", "--faults", "all", "--seed", str(seed), "--nodes", nodes
    )  # fmt: skip
    assert code == ExitCode.DONE, out
