"""Asks every node five times a second what it is doing, each at its own pace, so that a hung one holds up no other.

While nobody follows it asks once a second: enough for the last five minutes, which whoever comes wants to see.

A process of its own, or at least no part of a node: it survives the kill that it shows. It only reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dledger.cli.group_view import GroupView
from dledger.cli.words import plain_words
from dledger.dashboard.history import Event, History, Point, RateMeter
from dledger.dashboard.sentences import MINOR, sentence
from dledger.dashboard.view import group_json
from dledger.errors import DLedgerError
from dledger.types import DownNode, NodeStatus

if TYPE_CHECKING:
    from dledger.client.grpc_transport import GrpcClientTransport

__all__ = ["Condition", "NodeView", "Watcher"]

_POLL_S: Final = 0.2
_IDLE_POLL_S: Final = 1.0
"""While nobody follows."""
_STATUS_LIMIT_S: Final = 0.5
_POINT_S: Final = 1.0
_ELECTION_EVENTS: Final = frozenset(
    {"voted", "campaign_started", "elected", "leader_ready", "follows", "election_lost", "stepped_down"}
)
_LOG_EVENTS: Final = frozenset({"truncated", "peer_lost_entries"})


@dataclass(frozen=True, slots=True)
class Condition:
    """What somebody who started the nodes knows better than they: ``paused``, ``killed``; ``cut`` off the others."""

    state: str = ""
    cut: bool = False


@dataclass(slots=True)
class NodeView:
    """A node as last seen. ``status`` None: it does not answer, for ``reason``; ``last``: what it said before that."""

    node_id: str
    address: str
    status: NodeStatus | None = None
    last: NodeStatus | None = None
    reason: str = "not asked yet"
    asked: bool = False
    sent_rates: dict[str, dict[str, float]] = field(default_factory=dict)
    flashed: tuple[int, int] | None = None
    """Entries truncated between the last two looks: first index and how many."""
    _sent_at: float = 0.0
    _event_number: int = 0

    def down(self, reason: str) -> None:
        """It did not answer."""
        self.status, self.reason, self.asked = None, reason, True
        self.sent_rates, self.flashed = {}, None

    def up(self, status: NodeStatus, now: float) -> None:
        """It answered."""
        before = self.last
        same = before is not None and before.pid == status.pid
        if before is None or not same:
            self._event_number = 0
        self.sent_rates = self._rates(before if same else None, status, now)
        self.status = self.last = status
        self.reason, self.asked, self._sent_at = "", True, now

    def _rates(self, before: NodeStatus | None, status: NodeStatus, now: float) -> dict[str, dict[str, float]]:
        """Messages a second to each peer by kind, since the last look."""
        if before is None or now <= self._sent_at:
            return {}
        earlier = {peer.node_id: peer.sent for peer in before.peers}
        return {
            peer.node_id: {
                kind: round((count - earlier.get(peer.node_id, {}).get(kind, 0)) / (now - self._sent_at), 1)
                for kind, count in peer.sent.items()
                if count > earlier.get(peer.node_id, {}).get(kind, 0)
            }
            for peer in status.peers
        }

    def new_events(self) -> list[tuple[int, str, Mapping[str, str]]]:
        """Return (age in ms, name, facts) of what the node has told since the last call."""
        if self.status is None:
            return []
        found = [event for event in self.status.events if event.number > self._event_number]
        cuts = [event.facts for event in found if event.name == "truncated"] if self._event_number else []
        self.flashed = (int(cuts[-1]["from_index"]), int(cuts[-1]["entries"])) if cuts else None
        if found:
            self._event_number = found[-1].number
        return [(event.age_ms, event.name, event.facts) for event in found]


class Watcher:
    """Watches ``nodes`` (id or address → address) of ``group``. Belongs to one event loop.

    ``conditions``: node → what the nodes' keeper knows. ``make_transport`` opens the connections.
    """

    def __init__(
        self,
        group: str,
        nodes: Mapping[str, str],
        make_transport: Callable[[], GrpcClientTransport],
        *,
        conditions: Callable[[], Mapping[str, Condition]] = dict,
    ) -> None:
        self.group = group
        self.history = History()
        self.views = {node_id: NodeView(node_id, address) for node_id, address in nodes.items()}
        self.extra: dict[str, Any] = {}
        """What others want on the page beside the nodes: the broker tab, the load, whether chaos is running."""
        self._conditions = conditions
        self._make_transport = make_transport
        self._transport: GrpcClientTransport | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._rate = RateMeter()
        self._next_point = 0.0
        self._leader_since: tuple[str, int, float] | None = None
        self._leaderless_since: float | None = None
        self._had_leader = False
        self._ticked = asyncio.Event()
        self._followers = 0
        self._followed = asyncio.Event()
        self._latest: dict[str, Any] = {}
        self._stopped = False
        self.failed: asyncio.Future[BaseException]
        """Has the error once a task of the watcher has died: what it shows is out of date from then on."""

    async def start(self) -> None:
        """Begin to ask."""
        self.failed = asyncio.get_running_loop().create_future()
        self._transport = self._make_transport()
        for node_id in list(self.views):
            self._watch(node_id)
        self._ticker = asyncio.ensure_future(self._tick())
        self._ticker.add_done_callback(self._task_done)

    async def stop(self) -> None:
        """End; those who follow are told that there is no more."""
        self._stopped = True
        self._ticked.set()
        tasks = [*self._tasks.values(), *([self._ticker] if self._ticker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._transport is not None:
            await self._transport.close()

    def group_view(self) -> GroupView:
        """Return the group as ``dledger status`` shows it."""
        return GroupView(
            self.group,
            [view.status or DownNode(view.node_id, view.address, view.reason) for view in self.views.values()],
        )

    def leader(self) -> str | None:
        """Who leads the highest term, as far as is known now."""
        return self.group_view().leader_id

    async def refresh(self) -> None:
        """Return when what is known of the nodes is no older than `_POLL_S` and an answer: at once, while somebody
        follows."""
        if not self._followers:
            await asyncio.gather(*(self._look(view) for view in list(self.views.values())))

    def say(self, node: str, kind: str, text: str) -> None:
        """Add a sentence of somebody else's to the events."""
        self.history.say(time.time(), node, kind, text)

    def full(self) -> dict[str, Any]:
        """Return the present and the last five minutes, for a page that has just connected."""
        return {**self._latest, **self.history.as_json()}

    async def updates(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the present at every tick, with the events since the last one. Ends when the watcher stops.

        A slow reader misses ticks, never events that are still kept.
        """
        number = self.history.events[-1].number if self.history.events else 0
        point = self.history.points[-1] if self.history.points else None
        with self._followed_by_one_more():
            while not self._stopped:
                await self._ticked.wait()
                if self._stopped:
                    return
                events = self.history.events_after(number)
                number = events[-1].number if events else number
                fresh = [p for p in self.history.points if point is None or p.t > point.t]
                point = fresh[-1] if fresh else point
                yield {
                    **self._latest,
                    "events": [_plain(event) for event in events],
                    "points": [_plain(p) for p in fresh],
                    "faults": self.history.faults_json(),
                }

    @contextlib.contextmanager
    def _followed_by_one_more(self) -> Iterator[None]:
        self._followers += 1
        self._followed.set()
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self._followed.clear()

    async def _rest(self, begun: float) -> None:
        """Wait for the next look after the one that began at ``begun``; a first follower ends a long wait at once."""
        now = asyncio.get_running_loop().time()
        if self._followers:
            await asyncio.sleep(max(0.0, begun + _POLL_S - now))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(begun + _IDLE_POLL_S):
                await asyncio.sleep(max(0.0, begun + _POLL_S - now))
                await self._followed.wait()

    # ---------------------------------------------------------------- asking

    def _watch(self, node_id: str) -> None:
        task = self._tasks[node_id] = asyncio.ensure_future(self._ask(self.views[node_id]))
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_result(error)

    async def _ask(self, view: NodeView) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            await self._look(view)
            await self._rest(begun)

    async def _look(self, view: NodeView) -> None:
        if self._transport is None:
            return
        was_up = view.status is not None
        try:
            header, status = await self._transport.status(view.address, _STATUS_LIMIT_S)
            if not header.ok:
                raise header.error()
        except DLedgerError as error:
            if was_up or not view.asked:
                self._note_down(view)
            view.down(_reason(error.message, view.address))
            return
        self._identify(view, status)
        if not was_up and view.asked:
            self.say(view.node_id, "repair", f"{view.node_id} answers again (pid {status.pid})")
        view.up(status, time.time())
        self._take_events(view)
        self._learn(status)

    def _note_down(self, view: NodeView) -> None:
        self.say(view.node_id, "fault", f"{view.node_id} does not answer")

    def _identify(self, view: NodeView, status: NodeStatus) -> None:
        """A node that was given by its address has a name now."""
        if view.node_id == status.node_id or status.node_id in self.views:
            return
        self._tasks[status.node_id] = self._tasks.pop(view.node_id)
        self.views = {(status.node_id if known is view else known.node_id): known for known in self.views.values()}
        view.node_id = status.node_id

    def _learn(self, status: NodeStatus) -> None:
        """Members that nobody has named are watched too, once all that were named are known by id."""
        if any(view.node_id == view.address for view in self.views.values()):
            return
        for peer in status.peers:
            if peer.node_id not in self.views:
                self.views[peer.node_id] = NodeView(peer.node_id, peer.address)
                self.views = dict(sorted(self.views.items()))
                self._watch(peer.node_id)

    def _take_events(self, view: NodeView) -> None:
        now = time.time()
        for age_ms, name, facts in view.new_events():
            kind = "minor" if name in MINOR else "election"
            if name in _LOG_EVENTS:
                kind = "log"
            elif name not in _ELECTION_EVENTS and kind != "minor":
                kind = "action" if name.startswith("transfer") else "fault"
            self.history.say(now - age_ms / 1000, view.node_id, kind, sentence(view.node_id, name, facts))

    # ---------------------------------------------------------------- the present

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            now = time.time()
            self._follow_leader(now)
            self._mark_faults(now)
            if now >= self._next_point:
                # On schedule, but after a pause of this process from now on.
                self._next_point = max(self._next_point + _POINT_S, now + _POINT_S - _POLL_S)
                self._add_point(now)
            since = self._leader_since[2] if self._leader_since else None
            self._latest = {
                "t": round(now, 3),
                **group_json(self.group_view(), list(self.views.values()), self._conditions(), since),
                **self.extra,
            }
            ticked, self._ticked = self._ticked, asyncio.Event()
            ticked.set()
            await self._rest(begun)

    def _follow_leader(self, now: float) -> None:
        """Remember since when who leads, and say how long nobody did."""
        leader = self.group_view().leader
        if leader is None:
            if self._leader_since is not None:
                self._leader_since, self._leaderless_since = None, now
            return
        known = self._leader_since
        if known is None or known[:2] != (leader.node_id, leader.term):
            self._leader_since = (leader.node_id, leader.term, now - leader.role_since_ms / 1000)
            self._had_leader, self._leaderless_since = True, None

    def _mark_faults(self, now: float) -> None:
        wrong: set[tuple[str, str]] = set()
        conditions = self._conditions()
        for view in self.views.values():
            condition = conditions.get(view.node_id, Condition())
            if condition.state == "paused":
                wrong.add(("paused", view.node_id))
            elif view.status is None and view.asked:
                wrong.add(("down", view.node_id))
            if condition.cut:
                wrong.add(("cut", view.node_id))
        if self._leaderless_since is not None:
            wrong.add(("leaderless", ""))
        self.history.active(wrong, now)

    def _add_point(self, now: float) -> None:
        group = self.group_view()
        up = [view.status for view in self.views.values() if view.status is not None]
        leader = group.leader
        rows = {row.node_id: row for row in group.rows}
        self.history.points.append(
            Point(
                round(now, 2),
                self._rate.take(now, max((status.commit_index for status in up), default=-1)),
                _ms(leader.append_p50_us) if leader else None,
                _ms(leader.append_p99_us) if leader else None,
                {view.node_id: rows[view.node_id].lag_entries if view.status else None for view in self.views.values()},
                {view.node_id: _ms(view.status.fsync_p99_us) if view.status else None for view in self.views.values()},
            )
        )


def _reason(message: str, address: str) -> str:
    if "DEADLINE_EXCEEDED" in message:
        return f"no answer within {_STATUS_LIMIT_S * 1000:.0f} ms"
    return plain_words(message).removeprefix(f"{address}: ")


def _ms(microseconds: int) -> float | None:
    return round(microseconds / 1000, 2) if microseconds >= 0 else None


def _plain(value: Event | Point) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
