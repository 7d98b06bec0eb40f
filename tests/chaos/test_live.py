"""What is shown while a run goes on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dledger.chaos.live import LaneHistory, PlainView, TerminalView, frame, make_view
from dledger.chaos.monitor import NodeView
from dledger.chaos.record import Event, Record
from dledger.chaos.run import ChaosOptions, Present
from dledger.chaos.schedule import Fault


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def present(at: float, acks: list[float], states: dict[str, str] | None = None, cut: str = "") -> Present:
    """The present of a run that is made up."""
    views = {
        "n0": NodeView("n0", "leader", 3),
        "n1": NodeView("n1", "follower", 3),
        "n2": NodeView("n2", "silent", 2),
    }
    record = Record(meta={"fsync": "fsync on"})
    options = ChaosOptions(duration_s=60, faults=(Fault.KILL,), seed=42, directory=Path())
    load: Any = SimpleNamespace(acks=acks, latencies_ms=[5.0] * len(acks), unknown=1, refused=2)
    monitor: Any = SimpleNamespace(views=views, is_cut=lambda node_id: node_id == cut, elections=[])
    injector: Any = SimpleNamespace(states=states or {}, counts={"kills": 3, "pause": 1}, forced_retries=7)
    return Present(options, record, lambda: at, load, monitor, injector)


def test_the_picture() -> None:
    history = LaneHistory()
    history.tick(present(0.25, [0.1, 0.2]))
    now = present(1.5, [0.1, 0.2, 1.0, 1.1], {"n2": "down"}, cut="n1")
    history.events.append(Event(21.4, "kill -9 n2"))
    history.tick(now)
    lines = frame(history, now)
    assert lines[0] == "chaos seed 42   00:01.5 / 01:00.0   8 clients   fsync on   faults"
    assert lines[1].split() == ["n0", "◆◆", "LEADER", "term", "3"]
    assert lines[2].split() == ["n1", "█▓", "follower", "term", "3"]
    assert lines[3].split() == ["n2", "·░", "down", "term", "2"]
    assert "gap now 400 ms   worst 800 ms" in lines[5]
    assert lines[6] == "acknowledged 4   unknown 1   refused 2   kills 3  pauses 1  cuts 0  retries 7   elections 0"
    assert lines[7] == "00:21.4 kill -9 n2"


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    view = make_view(out)
    assert isinstance(view, PlainView)
    view.say(Event(1.0, "kill -9 n2"))
    for at in (0.0, 0.25, 4.9, 5.0):
        view.tick(present(at, [0.1]))
    view.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "00:01.0 kill -9 n2"
    assert len(lines) == 3
    assert lines[2].startswith("00:05.0")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_is_redrawn() -> None:
    pytest.importorskip("rich")
    out = Terminal()
    view = make_view(out)
    assert isinstance(view, TerminalView)
    view.say(Event(1.0, "kill -9 n2"))
    view.tick(present(1.0, [0.1]))
    view.tick(present(1.25, [0.1, 1.2]))
    view.close()
    assert out.getvalue().count("chaos seed 42") >= 2
    assert "kill -9 n2" in out.getvalue()


def test_without_any_acknowledgement_there_are_no_figures_to_fail_on() -> None:
    history = LaneHistory()
    now = present(0.0, [])
    history.tick(now)
    assert any("p99 -" in line for line in frame(history, now))
