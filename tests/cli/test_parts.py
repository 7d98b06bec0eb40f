"""The parts of the command line that need no group: histogram, table, group view, line appender, entries, options."""

from __future__ import annotations

import asyncio
import io
import random

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dledger.bench.histogram import Histogram
from dledger.cli.entries import as_json, as_json_line, as_row
from dledger.cli.exit_codes import ExitCode
from dledger.cli.group_view import GroupView
from dledger.cli.line_appender import LineAppender
from dledger.cli.options import parse_overrides, resolve_target, seconds
from dledger.cli.progress import Progress
from dledger.cli.table import format_count, format_duration, format_size, render_table
from dledger.client import DownNode
from dledger.errors import EntryTooLargeError, QuorumTimeoutError
from dledger.raft.messages import EntryType
from dledger.types import AppendResult, Entry, NodeStatus, PeerStatus

# ---------------------------------------------------------------- histogram


@given(
    st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=200), st.sampled_from([50, 90, 99, 99.9])
)
def test_percentiles_are_within_two_percent_of_the_exact_ones(values: list[int], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    rank = max(-(-len(values) * percent // 100), 1)
    exact = sorted(values)[int(rank) - 1]
    assert exact <= histogram.percentile(percent) <= exact * 1.016 + 1
    assert histogram.maximum == max(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    assert histogram.count == len(values)


def test_an_empty_histogram_answers_zero() -> None:
    assert (Histogram().percentile(99), Histogram().mean, Histogram().maximum) == (0, 0.0, 0)


# ---------------------------------------------------------------- table and formats


def test_tables_align() -> None:
    assert (
        render_table(("A", "NUM"), [("x", "1"), ("long", "100")], frozenset({1})) == "A     NUM\nx       1\nlong  100"
    )


def test_formats() -> None:
    assert [format_count(n) for n in (-1, 0, 1234567)] == ["-", "0", "1 234 567"]
    assert [format_size(n) for n in (-1, 5, 4096, 3 << 30)] == ["-", "5 B", "4 K", "3 G"]
    assert [format_duration(n) for n in (-1, 900, 61_000, 7_300_000, 300_000_000)] == [
        "-",
        "0 s",
        "1 m 1 s",
        "2 h 1 m",
        "3 d 11 h",
    ]


# ---------------------------------------------------------------- group view


def status(node_id: str, role: str, term: int = 3, last: int = 10, commit: int = 10, **more) -> NodeStatus:
    return NodeStatus(
        "g", node_id, f"127.0.0.1:{node_id[1:]}", role, term, "", "", "", 0, last, last, commit, commit, **more
    )


def test_a_healthy_group() -> None:
    peers = (PeerStatus("n1", "a", True, lag_entries=4), PeerStatus("n2", "a", True, lag_entries=0))
    view = GroupView(
        "g", [status("n0", "leader", peers=peers), status("n1", "follower", last=6, commit=5), status("n2", "follower")]
    )
    assert view.exit_code is ExitCode.DONE
    out = view.as_json()
    assert (out["group"], out["leader"], out["term"]) == ("g", "n0", 3)
    assert [node["lag_entries"] for node in out["nodes"]] == [0, 4, 0]
    assert list(out["nodes"][0]) == [
        "node_id", "address", "up", "role", "term", "first_index", "last_index", "commit_index", "applied_index",
        "lag_entries", "note",
    ]  # fmt: skip
    assert "leader n0   term 3   committed 10   3 of 3 up, tolerates 1 failure" in view.as_table()


def test_a_dead_node_stays_with_its_reason() -> None:
    view = GroupView(
        "g", [status("n0", "leader"), DownNode("n1", "127.0.0.1:1", "connection refused"), status("n2", "follower")]
    )
    assert view.exit_code is ExitCode.DONE
    dead = view.as_json()["nodes"][1]
    assert dead == {
        "node_id": "n1", "address": "127.0.0.1:1", "up": False, "role": "down", "term": -1, "first_index": -1,
        "last_index": -1, "commit_index": -1, "applied_index": -1, "lag_entries": -1, "note": "connection refused",
    }  # fmt: skip
    line = next(line for line in view.as_table().splitlines() if line.startswith("n1"))
    assert "DOWN" in line
    assert "connection refused" in line
    assert "tolerates 0 failures" in view.headline()


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([status("n0", "leader"), DownNode("n1", "a", "x"), DownNode("n2", "b", "x")], ExitCode.NO_QUORUM),
        ([status("n0", "follower"), status("n1", "candidate"), DownNode("n2", "b", "x")], ExitCode.NO_QUORUM),
        ([DownNode("n0", "a", "x"), DownNode("n1", "b", "x"), DownNode("n2", "c", "x")], ExitCode.UNREACHABLE),
        ([status("n0", "leader")], ExitCode.DONE),
    ],
    ids=["minority", "no-leader", "nobody", "single"],
)
def test_exit_codes_of_a_group(nodes, code) -> None:
    view = GroupView("g", nodes)
    assert view.exit_code is code
    assert view.as_table()


def test_of_two_leaders_the_higher_term_leads() -> None:
    view = GroupView(
        "g", [status("n0", "leader", term=3), status("n1", "leader", term=4), status("n2", "follower", term=4)]
    )
    assert view.leader_id == "n1"
    assert view.rows[0].note == "deposed: n1 leads term 4"


# ---------------------------------------------------------------- line appender


class FakeClient:
    """Resolves appends in a random order, one at a time, when told to."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.waiting: list[tuple[bytes, asyncio.Future[AppendResult], int]] = []
        self.count = 0
        self.most = 0

    def append_nowait(self, body: bytes) -> asyncio.Future[AppendResult]:
        if body == b"huge":
            raise EntryTooLargeError("too large")
        future: asyncio.Future[AppendResult] = asyncio.get_running_loop().create_future()
        self.waiting.append((body, future, self.count))
        self.count += 1
        self.most = max(self.most, len(self.waiting))
        return future

    def resolve_one(self) -> None:
        body, future, index = self.waiting.pop(self.rng.randrange(len(self.waiting)))
        if body == b"bad":
            future.set_exception(QuorumTimeoutError("no quorum"))
        elif body == b"gone":
            future.cancel()
        else:
            future.set_result(AppendResult(index, 1))


@pytest.mark.asyncio
async def test_every_line_has_one_outcome_and_the_window_holds() -> None:
    client = FakeClient(random.Random(7))
    acked: dict[int, int] = {}
    failed: dict[int, BaseException] = {}
    appender = LineAppender(
        client,  # type: ignore[arg-type]
        lambda line, body, result: acked.__setitem__(line, result.index),
        lambda line, body, error: failed.__setitem__(line, error),
        max_inflight_count=5,
        max_inflight_bytes=100,
    )
    bodies = [
        b"bad" if n % 10 == 3 else b"gone" if n == 15 else b"huge" if n == 20 else b"line %d" % n for n in range(100)
    ]

    async def feed() -> None:
        for body in bodies:
            await appender.submit(body)
        await appender.drain()

    feeding = asyncio.ensure_future(feed())
    while not feeding.done():
        await asyncio.sleep(0)
        if client.waiting:
            client.resolve_one()
    await feeding
    assert sorted([*acked, *failed]) == list(range(100))
    assert sorted(failed) == sorted([*range(3, 100, 10), 15, 20])
    assert isinstance(failed[20], EntryTooLargeError)
    assert isinstance(failed[15], asyncio.CancelledError)
    assert client.most == 5
    assert [acked[line] for line in sorted(acked)] == sorted(acked.values())


@pytest.mark.asyncio
async def test_the_window_counts_bytes_too() -> None:
    client = FakeClient(random.Random(7))
    appender = LineAppender(client, lambda *_: None, lambda *_: None, max_inflight_bytes=100)  # type: ignore[arg-type]
    await appender.submit(b"x" * 150)
    second = asyncio.ensure_future(appender.submit(b"y"))
    await asyncio.sleep(0)
    assert not second.done()
    client.resolve_one()
    await second
    client.resolve_one()
    await appender.drain()


# ---------------------------------------------------------------- entries


def entry(body: bytes, kind: EntryType = EntryType.NORMAL) -> Entry:
    return Entry(7, 2, 100, kind, 0, body)


def test_entries_as_json() -> None:
    assert as_json(entry("grüße".encode())) == {"index": 7, "term": 2, "type": "normal", "body": "grüße"}
    assert as_json(entry(b"\xff\x00", EntryType.SESSION)) == {
        "index": 7,
        "term": 2,
        "type": "session",
        "body_base64": "/wA=",
    }
    assert as_json_line(entry(b'a"\n')) == b'{"index": 7, "term": 2, "type": "normal", "body": "a\\"\\n"}\n'


def test_entries_for_people_never_break_the_line_or_the_terminal() -> None:
    assert as_row(entry(b"a\nb\x1b[31m\xff")).decode().endswith("normal    a\\nb\\x1b[31m\\xff\n")


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(("text", "value"), [("5", 5.0), ("0.5", 0.5), ("5s", 5.0), ("200ms", 0.2), ("2min", 120.0)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1.2.3"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(click.BadParameter):
        seconds(text)


def test_overrides() -> None:
    assert parse_overrides(["a=1", "b = x=y ", "a=2"]) == {"a": "2", "b": "x=y"}
    with pytest.raises(click.UsageError):
        parse_overrides(["nothing"])


def test_the_target_is_flag_over_environment_over_file(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("DLEDGER_PEERS", raising=False)
    monkeypatch.delenv("DLEDGER_GROUP", raising=False)
    conf = tmp_path / "n.conf"
    conf.write_text("dLegerPeers=n0-h:1\ndLegerGroup=file\nlistenPort=1\n")
    with pytest.raises(click.UsageError, match="name the nodes"):
        resolve_target(None, None, None)
    found = resolve_target(None, None, str(conf))
    assert (found.peers, found.group) == ("n0-h:1", "file")
    monkeypatch.setenv("DLEDGER_PEERS", "n0-e:1")
    monkeypatch.setenv("DLEDGER_GROUP", "env")
    found = resolve_target(None, None, str(conf))
    assert (found.peers, found.group) == ("n0-e:1", "env")
    found = resolve_target("n0-f:1", "flag", str(conf))
    assert (found.peers, found.group) == ("n0-f:1", "flag")
    assert resolve_target("n0-f:1", None, None).group == "env"


# ---------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_off_a_terminal() -> None:
    out = io.StringIO()
    with Progress("appending", 10, stream=out) as progress:
        progress.advance(10)
    assert out.getvalue() == ""


@pytest.mark.parametrize("has_rich", [True, False])
def test_progress_shows_on_a_terminal(has_rich: bool, monkeypatch) -> None:
    if not has_rich:
        monkeypatch.setattr("dledger.cli.progress._make_rich", lambda *_: None)
    out = Terminal()
    with Progress("appending", 10, stream=out) as progress:
        progress.advance(5)
    assert "appending" in out.getvalue()
    assert "5/10" in out.getvalue()
