"""`benchmarks/append_trace.py`: what it makes of the kernel's text. (The kernel's trace itself needs root.)"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import click
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "append_trace.py"
PIDS = {10: "client", 20: "n0", 30: "n1", 40: "n2"}
CALLS = {0: "read", 1: "write", 75: "fdatasync"}
NUMBERS = {name: number for number, name in CALLS.items()}

# (microseconds after the client's write, pid, call); "fdatasync=" is its return. n2 answers first.
APPEND = [
    (0, 10, "write"),
    (20, 20, "read"),
    (120, 20, "write"),
    (140, 20, "write"),
    (150, 30, "read"),
    (160, 40, "read"),
    (200, 20, "fdatasync"),
    (300, 40, "fdatasync"),
    (330, 30, "fdatasync"),
    (400, 20, "fdatasync="),
    (500, 40, "fdatasync="),
    (540, 40, "write"),
    (570, 20, "read"),
    (580, 30, "fdatasync="),
    (620, 30, "write"),
    (650, 20, "write"),
    (690, 10, "read"),
]
LENGTHS = [20, 100, 40, 140, 200, 40, 0, 30, 80, 40, 60]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("append_trace", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "append_trace", module)
        spec.loader.exec_module(module)
        yield module


def call_line(at_us, pid, name):
    event = f"sys_exit: NR {NUMBERS[name[:-1]]} = 0" if name.endswith("=") else f"sys_enter: NR {NUMBERS[name]} (7, 0)"
    return f"          python-{pid:<6}  [001] .....  {3 + at_us / 1e6:.6f}: {event}"


def switch_line(at_us, gone, come):
    return (
        f"          python-{gone:<6}  [000] d..2.  {3 + at_us / 1e6:.6f}: sched_switch: prev_comm=a b prev_pid={gone} "
        f"prev_prio=120 prev_state=S ==> next_comm=python next_pid={come} next_prio=120"
    )


def trace_of(*appends, step_us=750):
    """The kernel's text of appends one behind the other, and of the write that begins one more."""
    lines = ["# tracer: nop", "#", ""]
    for number, append in enumerate(appends):
        lines += [call_line(number * step_us + at, pid, name) for at, pid, name in append]
    return [*lines, call_line(len(appends) * step_us, 10, "write")]


def lengths(append):
    return [round(phase.end_us - phase.begin_us) for phase in append]


def test_an_append_is_cut_where_one_process_waits_for_the_other(script):
    """By the follower that answers first, and the phases follow each other without a gap."""
    processes = script.read_trace(trace_of(APPEND, APPEND), PIDS, CALLS)
    appends = script.cut(processes, "n0")
    assert [lengths(append) for append in appends] == [LENGTHS, LENGTHS]
    assert [phase.owner for phase in appends[0]] == [
        "n0", "n0", "n2", "n2", "n2", "n2", "n0", "n0", "n0", "client", "client"
    ]  # fmt: skip
    for append in appends:
        assert all(one.end_us == following.begin_us for one, following in pairwise(append))


def test_the_leaders_own_sync_may_come_last(script):
    """Then the follower's answer waits for it."""
    moved = {(400, 20): 600, (570, 20): 610}
    late = sorted((moved.get((at, pid), at), pid, name) for at, pid, name in APPEND)
    (append,) = script.cut(script.read_trace(trace_of(late), PIDS, CALLS), "n0")
    assert lengths(append)[5:9] == [40, 60, 10, 40]


def test_what_went_another_way_is_left_out(script):
    """No follower has synced, or the client was held up for long."""
    unsynced = [step for step in APPEND if step[1] == 20 or not step[2].startswith("fdatasync")]
    assert script.cut(script.read_trace(trace_of(unsynced), PIDS, CALLS), "n0") == []
    assert script.cut(script.read_trace(trace_of(APPEND, step_us=20_000), PIDS, CALLS), "n0") == []
    assert len(script.cut(script.read_trace(trace_of(unsynced, APPEND), PIDS, CALLS), "n0")) == 1


def test_time_on_a_processor_is_that_of_the_phases_owner(script):
    """The leader has one for half of the 100 microseconds in which it makes the message; somebody else has the rest."""
    lines = trace_of(APPEND)
    lines += [switch_line(10, 99, 20), switch_line(70, 20, 99), switch_line(100, 99, 30), switch_line(155, 30, 99)]
    processes = script.read_trace(lines, PIDS, CALLS)
    rows = script.summary(script.cut(processes, "n0"), processes, 2)
    assert rows[0] == {"phase": "the leader wakes up", "mean_us": 20.0, "median_us": 20.0, "on_cpu_us": 10.0}
    assert (rows[1]["mean_us"], rows[1]["on_cpu_us"]) == (100.0, 50.0)
    assert rows[-1] == {
        "phase": "all of it", "mean_us": 750.0, "median_us": 750.0, "on_cpu_us": 115.0, "cpus": 2
    }  # fmt: skip


def test_without_the_kernels_trace_it_says_what_is_missing(script, monkeypatch, tmp_path):
    """And how to get it."""
    monkeypatch.setattr(script, "TRACEFS", tmp_path / "none")
    with pytest.raises(click.ClickException, match=r"run as root on Linux, with .*none mounted"), script.tracing([1]):
        pytest.fail("nothing can be traced there")
