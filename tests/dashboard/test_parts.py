"""The pure parts of the page: sentences, history, words, terminal."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
from pathlib import Path

import pytest

from dledger.cli.group_view import GroupView
from dledger.cli.screen import Screen
from dledger.client import DownNode
from dledger.dashboard.history import SPAN_S, Event, History, Point, RateMeter
from dledger.dashboard.sentences import sentence
from dledger.dashboard.terminal import frame, spark
from dledger.dashboard.view import group_json, health_words
from dledger.dashboard.watcher import Condition, NodeView
from tests.dashboard.stage import HOST, Stage, event, leading, status

CORE = Path(__file__).resolve().parents[2] / "dledger" / "raft" / "core.py"


def core_events() -> dict[str, set[str]]:
    """Every event of the core, with the names of its facts, read out of its source."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(CORE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_event":
            name = node.args[0]
            assert isinstance(name, ast.Constant)
            found[str(name.value)] = {keyword.arg or "" for keyword in node.keywords}
    return found


@pytest.mark.parametrize(("name", "facts"), sorted(core_events().items()))
def test_every_event_of_the_core_has_a_sentence(name: str, facts: set[str]) -> None:
    words = sentence("n1", name, {fact: f"<{fact.upper().replace('_', ' ')}>" for fact in facts})
    assert words.startswith("n1 ") and "_" not in words
    assert not words.endswith(")"), f"{name} is told by its facts alone: {words}"


def test_an_unknown_event_is_told_all_the_same() -> None:
    assert sentence("n1", "moon_rose", {"at": "9"}) == "n1: moon rose (at 9)"
    assert sentence("n1", "voted", {"for_whom": "n2"}) == "n1: voted (for_whom n2)"


# ---------------------------------------------------------------- history


def test_a_rate_needs_two_looks_and_never_runs_backwards() -> None:
    meter = RateMeter()
    assert meter.take(10.0, 100) is None
    assert meter.take(12.0, 300) == 100.0
    assert meter.take(13.0, -1) is None  # nobody answers
    assert meter.take(14.0, 300) == 0.0
    assert meter.take(15.0, 200) == 0.0  # the node that knew most is gone


def test_faults_begin_end_and_are_forgotten() -> None:
    history = History()
    began, _ = history.active([("down", "n1")], 100.0)
    assert [(fault.kind, fault.node, fault.began) for fault in began] == [("down", "n1", 100.0)]
    assert history.active([("down", "n1"), ("cut", "n2")], 101.0)[0][0].node == "n2"
    _, ended = history.active([("cut", "n2")], 105.0)
    assert [(fault.node, fault.ended) for fault in ended] == [("n1", 105.0)]
    history.active([("cut", "n2")], 105.0 + SPAN_S + 1)
    assert [fault["node"] for fault in history.faults_json()] == ["n2"]  # what lasts is kept, however old


def test_events_are_numbered_and_bounded() -> None:
    history = History()
    for number in range(400):
        history.say(number, "n0", "minor", f"event {number}")
    assert len(history.events) == 300
    assert [found.text for found in history.events_after(398)] == ["event 398", "event 399"]
    assert history.events_after(400) == []


# ---------------------------------------------------------------- words


def view(*nodes: object) -> GroupView:
    return GroupView("stage", nodes)  # type: ignore[arg-type]


def down(node_id: str) -> DownNode:
    return DownNode(node_id, f"{HOST}:7000", "connection refused")


def test_health_in_words() -> None:
    five = [leading(nodes=5), *(status(f"n{i}", 5) for i in (1, 2, 3, 4))]
    assert health_words(view(*five)) == ("ok", "5 of 5 up, tolerates 2 failures")
    three = [leading(), status("n1"), status("n2")]
    assert health_words(view(*three)) == ("ok", "3 of 3 up, tolerates 1 failure")
    assert health_words(view(*three[:2], down("n2"))) == ("degraded", "2 of 3 up, tolerates no more failures")
    health, words = health_words(view(status("n1"), status("n2"), down("n0")))
    assert (health, words) == ("leaderless", "2 of 3 up, nobody leads: an election is under way")
    health, words = health_words(view(status("n1"), down("n0"), down("n2")))
    assert (health, words) == ("lost", "1 of 3 up: no majority, nothing can be committed until 1 more come back")


def test_a_node_that_the_leader_has_not_heard_of_does_not_count() -> None:
    leader = leading()
    silent = dataclasses.replace(leader.peers[0], last_contact_ms=5000)
    cut = view(dataclasses.replace(leader, peers=(silent, leader.peers[1])), status("n1"), status("n2"))
    assert health_words(cut) == (
        "degraded",
        "3 of 3 up, but n1 out of touch with the leader: tolerates no more failures",
    )
    # A new leader has had no time to hear of everybody.
    young = dataclasses.replace(leader, peers=(silent, leader.peers[1]), role_since_ms=500)
    assert health_words(view(young, status("n1"), status("n2")))[0] == "ok"


def test_the_lag_of_a_node_that_the_leader_knows_nothing_of() -> None:
    leader = leading(last_index=119)
    unknown = dataclasses.replace(leader.peers[0], match_index=-1, lag_entries=120)
    behind = dataclasses.replace(leader.peers[1], match_index=89, lag_entries=30)
    rows = view(dataclasses.replace(leader, peers=(unknown, behind)), status("n1"), status("n2")).rows
    assert [row.lag_entries for row in rows] == [0, 20, 30], (
        "by its own word; by the leader's, who knows what is durable"
    )


def test_the_present_of_a_node() -> None:
    one, two = NodeView("n0", f"{HOST}:7000"), NodeView("n1", f"{HOST}:7001")
    one.up(leading(), 1.0)
    two.up(status("n1", last_index=97, commit_index=95), 1.0)
    two.down("no answer within 500 ms")
    now = group_json(view(leading(), down("n1")), [one, two], {"n1": Condition("paused", True)}, 12.34)
    assert now["strip"] == {"first": 40, "last": 99}
    assert now["since"] == 12.3
    leader, paused = now["nodes"]
    assert (leader["state"], leader["up"], leader["tail"]) == ("leader", True, [[36, 2], [80, 3]])
    assert (paused["state"], paused["cut"], paused["up"]) == ("paused", True, False)
    assert (paused["last"], paused["commit"]) == (97, 95), "the log as it last was"
    assert "lag" not in paused


def test_messages_are_counted_between_two_looks_at_the_same_process() -> None:
    node = NodeView("n0", f"{HOST}:7000")
    peers = leading().peers
    node.up(leading(peers=(dataclasses.replace(peers[0], sent={"Heartbeat": 10}),)), 1.0)
    assert node.sent_rates == {}
    node.up(leading(peers=(dataclasses.replace(peers[0], sent={"Heartbeat": 20, "AppendEntries": 5}),)), 1.5)
    assert node.sent_rates == {"n1": {"Heartbeat": 20.0, "AppendEntries": 10.0}}
    node.up(leading(peers=(dataclasses.replace(peers[0], sent={"Heartbeat": 1}),), pid=999), 2.0)
    assert node.sent_rates == {}, "another process counts from zero"


def test_events_of_a_restarted_node_are_new_and_truncations_flash_once() -> None:
    node = NodeView("n1", f"{HOST}:7001")
    cut = event(2, "truncated", from_index="90", entries="4")
    node.up(status("n1", events=(event(1, "voted"),)), 1.0)
    assert [name for _, name, _ in node.new_events()] == ["voted"]
    node.up(status("n1", events=(event(1, "voted"), cut)), 1.2)
    assert [name for _, name, _ in node.new_events()] == ["truncated"]
    assert node.flashed == (90, 4)
    node.up(status("n1", events=(event(1, "voted"), cut)), 1.4)
    assert (node.new_events(), node.flashed) == ([], None)
    node.up(status("n1", pid=777, events=(event(1, "voted"),)), 1.6)
    assert [name for _, name, _ in node.new_events()] == ["voted"]


# ---------------------------------------------------------------- terminal


def test_sparks() -> None:
    assert spark([0, 1, None, 8, 4]) == "▁▂ █▅"
    assert spark([None, 0]) == " ▁"


def test_the_picture_for_the_terminal() -> None:
    watcher = Stage().watcher()
    for node_id, found in Stage().nodes.items():
        watcher.views[node_id].up(found, 1.0)  # type: ignore[arg-type]
    watcher.views["n2"].down("connection refused")
    watcher.history.points.append(Point(1.0, 1234.0, 2.0, 9.0, {}, {}))
    watcher.history.events.extend([Event(1, 1.0, "n0", "election", "n0 leads"), Event(2, 2.0, "n0", "minor", "hum")])
    text = "\n".join(frame(watcher))
    assert "2 of 3 up, tolerates no more failures" in text
    assert re.search(r"commits/s +1 234 +█", text)
    assert re.search(r"p99 ms +9\.0", text)
    assert re.search(r"n0 .*LEADER", text)
    assert re.search(r"n2 .*DOWN.*connection refused", text)
    assert "n0 leads" in text and "hum" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_screen_is_redrawn_in_place_only_on_a_terminal() -> None:
    plain, live = io.StringIO(), Terminal()
    with Screen(plain) as screen:
        screen.draw("one")
        screen.draw("two")
    assert plain.getvalue() == "one\n\ntwo\n"
    with Screen(live) as screen:
        screen.draw("one")
        screen.draw("two")
    text = live.getvalue()
    assert text.startswith("\x1b[?25l") and text.endswith("\x1b[?25h")
    assert text.count("\x1b[H") == 2
