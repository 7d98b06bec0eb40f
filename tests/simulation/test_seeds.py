"""A seed is a run: the same one each time, judged, told, and kept apart from the machine. (Many: test_campaign.py.)"""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dledger.sim import run as run_module
from dledger.sim.command import sim
from dledger.sim.guard import NondeterminismError, virtual_machine
from dledger.sim.invariants import InvariantViolation
from dledger.sim.run import run_seed
from dledger.sim.scenario import FAULTS, draw_scenario


def test_the_same_seed_is_the_same_run():
    """Twice in this process, trace by trace."""
    for seed in range(40, 43):
        one, two = run_seed(seed, duration_s=10), run_seed(seed, duration_s=10)
        assert one.trace_hash == two.trace_hash
        assert (one.counts, one.callbacks, one.virtual_s) == (two.counts, two.callbacks, two.virtual_s)


def test_a_seed_is_the_same_run_in_any_process():
    """Python's hash of strings differs between processes; the run must not."""
    code = "from dledger.sim.run import run_seed\nprint([run_seed(seed, duration_s=8).trace_hash for seed in (50, 51)])"

    def hashes(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=100
        ).stdout

    assert hashes("1") == hashes("2") != ""


def test_scenarios_are_pure_and_cover_everything():
    """A seed draws the same scenario each time; over some hundred seeds each kind of fault and group is drawn."""
    assert draw_scenario(7) == draw_scenario(7)
    drawn = [draw_scenario(seed) for seed in range(300)]
    assert {len(scenario.node_ids) for scenario in drawn} == {1, 3, 5}
    assert {name for scenario in drawn for name in scenario.faults} == set(FAULTS)
    for scenario in drawn:
        assert len(scenario.frail) * 2 < len(scenario.node_ids), "a minority only may lose what it had"


def test_every_fault_exists():
    """Each name in the table is a method of `Faults`."""
    from dledger.sim.faults import Faults

    assert [name for name in FAULTS if not callable(getattr(Faults, f"_{name}", None))] == []


def test_a_violation_ends_the_run_with_its_trace(monkeypatch):
    """A failing run says what, when, and how it came to that."""
    judge = run_module._Run._judge

    def doubt(self):
        judge(self)
        raise InvariantViolation("made up", "made up: for this test")

    monkeypatch.setattr(run_module._Run, "_judge", doubt)
    result = run_seed(1, duration_s=2)
    assert (result.ok, result.violation) == (False, "made up")
    assert len(result.trace) == 200 and "faults_end" in "\n".join(run_seed(1, duration_s=2, lines=None).trace)
    outcome = CliRunner().invoke(
        sim, ["--seeds", "1..2", "--jobs", "1", "--virtual-seconds", "2"], standalone_mode=False
    )
    assert outcome.return_value == 6
    assert "dledger sim --seed 1 --virtual-seconds 2 --trace" in outcome.output
    assert "FAIL  2 seeds, 2 violations" in outcome.output


def test_the_command(monkeypatch):
    """PASS with its figures; one seed with its trace; wrong usage is refused."""
    runner = CliRunner()
    outcome = runner.invoke(sim, ["--seeds", "3..4", "--jobs", "1", "--virtual-seconds", "2"], standalone_mode=False)
    assert outcome.return_value == 0 and "PASS  2 seeds, 0 violations" in outcome.output
    outcome = runner.invoke(sim, ["--seed", "3", "--trace", "--virtual-seconds", "2"], standalone_mode=False)
    assert outcome.return_value == 0
    assert "process_started" in outcome.output and "PASS  seed 3, trace hash" in outcome.output
    for wrong in (
        [],
        ["--seeds", "5"],
        ["--seeds", "5..4"],
        ["--seed", "1", "--seeds", "1..2"],
        ["--seeds", "1..2", "--trace"],
    ):
        assert runner.invoke(sim, wrong).exit_code == 2


def test_seeds_run_in_several_processes():
    """Two jobs judge the same seeds."""
    outcome = CliRunner().invoke(
        sim, ["--seeds", "5..8", "--jobs", "2", "--virtual-seconds", "1"], standalone_mode=False
    )
    assert outcome.return_value == 0 and "PASS  4 seeds" in outcome.output


def test_the_machine_is_kept_out():
    """Clocks are virtual within a run, hidden randomness is refused, and both are back afterwards."""
    import time
    import uuid

    with virtual_machine(lambda: 5.0, lambda: 3600.0):
        assert time.monotonic() == 5.0
        assert time.time() == pytest.approx(1_700_003_605.0)
        for forbidden in (uuid.uuid4, random.random, lambda: os.urandom(4)):
            with pytest.raises(NondeterminismError):
                forbidden()
    assert time.monotonic() != 5.0
    random.random()
