"""Who is in the group, who leads it, and how to find out. Knows no gRPC; the clock is the running loop's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from dledger.client.transport import ClientTransport, Header, Metadata
from dledger.errors import AccessDeniedError, DLedgerError, ResponseCode, UnavailableError, UnknownGroupError

__all__ = ["Directory", "LeaderFinder"]

ROUND_MIN_S = 0.01
ROUND_MAX_S = 0.1
QUICK_ROUNDS_COUNT = 30
ASK_TIMEOUT_S = 1.0


class Directory:
    """Addresses of the nodes and the last known leader, learnt from whatever any answer says.

    The address by which a node was reached is preferred to the one it advertises, which may be another network's.
    """

    def __init__(self, nodes: dict[str, str]) -> None:
        self._nodes = dict(nodes)
        self.leader_address: str | None = None
        self.leader_term = -1
        self._turn = 0

    @property
    def nodes(self) -> dict[str, str]:
        """Node id (the address where it is not known) → address."""
        return dict(self._nodes)

    def addresses(self) -> list[str]:
        """Every address, the leader's first."""
        found = list(self._nodes.values())
        if self.leader_address in found:
            found.remove(self.leader_address)
            found.insert(0, self.leader_address)
        return found

    def route(self) -> list[str]:
        """Every address for a read: the leader first, the others beginning with another one each time."""
        found = self.addresses()
        known = 1 if self.leader_address is not None else 0
        rest = found[known:]
        self._turn += 1
        cut = self._turn % len(rest) if rest else 0
        return [*found[:known], *rest[cut:], *rest[:cut]]

    def learn(self, address: str, header: Header) -> str | None:
        """Take in the header of an answer from ``address``; return the address of a leader it names, else None."""
        if header.node_id:
            self._identify(header.node_id, address)
        if not header.leader_id:
            return None
        leader = self._nodes.get(header.leader_id) or header.leader_address
        if not leader:
            return None
        self._identify(header.leader_id, leader)
        if header.term >= self.leader_term:
            self.leader_term, self.leader_address = header.term, leader
        return leader

    def learn_members(self, members: dict[str, str]) -> None:
        """Add the members that were not given, so that the client follows a group that has grown."""
        for node_id, address in members.items():
            if node_id not in self._nodes:
                self._identify(node_id, address)

    def forget_leader(self, address: str) -> None:
        """``address`` does not lead, or cannot be reached; its term is kept, so that an older claim is not believed."""
        if self.leader_address == address:
            self.leader_address = None

    def _identify(self, node_id: str, address: str) -> None:
        """Give the node its own id where it was called by its address; a node that is known keeps its address."""
        if node_id in self._nodes:
            return
        if address in self._nodes:
            self._nodes = {(node_id if key == address else key): value for key, value in self._nodes.items()}
        elif address not in self._nodes.values():
            self._nodes[node_id] = address


class LeaderFinder:
    """Asks all nodes at once, again and again, until one says that it leads.

    Only a node's word about itself counts, since the others name a dead leader until they elect. A fail-over takes tens
    of milliseconds, so the first 30 rounds begin at most 10 ms apart; then the pause grows to 100 ms. A node that does
    not answer holds up nobody.
    """

    def __init__(self, transport: ClientTransport, directory: Directory, rng: random.Random) -> None:
        self._transport = transport
        self._directory = directory
        self._rng = rng
        self._stray: dict[asyncio.Task[Metadata], None] = {}
        self.report: dict[str, DLedgerError | None] = {}
        """Per address: why the last ask brought no leader (None: it answered, and knows none or names another)."""

    async def find(self, wanted: Callable[[], bool]) -> tuple[str, Metadata]:
        """Return address and answer of a node that leads; the highest term known goes first.

        Raises:
            UnavailableError: ``wanted()`` turned false before a leader was found.
            UnknownGroupError, AccessDeniedError: every node answered, and none has this group, or lets us in.
        """
        pause = ROUND_MIN_S
        rounds = 0
        asks: dict[str, asyncio.Task[Metadata]] = {}
        woken = asyncio.Event()
        try:
            while wanted():
                self._ask_idle(asks, woken)
                # In the end an older term is believed too: the group may have been set up anew behind this address.
                above = self._directory.leader_term - 1 if pause < ROUND_MAX_S else -1
                found = await self._round(asks, woken, pause * self._rng.uniform(0.5, 1.0), above=above)
                if found is not None:
                    return found
                self._check_group()
                rounds += 1
                if rounds > QUICK_ROUNDS_COUNT:
                    pause = min(pause * 1.5, ROUND_MAX_S)
        finally:
            self._leave(asks)
        raise self.failure("nothing waits for a leader any more")

    async def newer(self, term: int, address: str, limit_s: float) -> str | None:
        """Ask every node but ``address`` once, for at most ``limit_s``; return one that leads a term above ``term``."""
        asks: dict[str, asyncio.Task[Metadata]] = {}
        woken = asyncio.Event()
        try:
            self._ask_idle(asks, woken, but=address)
            found = await self._round(asks, woken, limit_s, above=term, all_answered_ends=True)
        finally:
            self._leave(asks)
        return None if found is None else found[0]

    def failure(self, when: str) -> DLedgerError:
        """Return the error that says why there is no leader: code 302 if nobody answered, 404 if somebody did."""
        told = [f"{address}: {'no leader' if error is None else error}" for address, error in self.report.items()]
        reached = any(error is None for error in self.report.values())
        what = "no leader" if reached else "no node could be reached"
        code = ResponseCode.NOT_LEADER if reached else ResponseCode.NETWORK_ERROR
        return UnavailableError(f"{what}: {when} ({'; '.join(told) or 'nobody asked yet'})", code=code)

    async def close(self) -> None:
        """Wait until every ask that was given up has ended."""
        if self._stray:
            await asyncio.gather(*self._stray, return_exceptions=True)

    def _ask_idle(self, asks: dict[str, asyncio.Task[Metadata]], woken: asyncio.Event, *, but: str = "") -> None:
        for address in self._directory.addresses():
            if address not in asks and address != but:
                task = asyncio.ensure_future(self._transport.metadata(address, ASK_TIMEOUT_S))
                task.add_done_callback(lambda _: woken.set())
                asks[address] = task

    async def _round(
        self,
        asks: dict[str, asyncio.Task[Metadata]],
        woken: asyncio.Event,
        length_s: float,
        *,
        above: int,
        all_answered_ends: bool = False,
    ) -> tuple[str, Metadata] | None:
        """Take answers until one leads (a term above ``above``) or ``length_s`` is over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + length_s
        while True:
            woken.clear()
            for address in [address for address, task in asks.items() if task.done()]:
                answer = self._take(address, asks.pop(address))
                if answer is not None and answer.header.claims_leadership and answer.term > above:
                    return address, answer
            if all_answered_ends and not asks:
                return None
            try:
                async with asyncio.timeout_at(end):
                    await woken.wait()
            except TimeoutError:
                return None

    def _take(self, address: str, task: asyncio.Task[Metadata]) -> Metadata | None:
        try:
            answer = task.result()
        except DLedgerError as error:
            self.report[address] = error
            return None
        if not answer.header.ok:
            self.report[address] = answer.header.error()
            return None
        self.report[address] = None
        self._directory.learn(address, answer.header)
        self._directory.learn_members(answer.members)
        return answer

    def _check_group(self) -> None:
        errors = [self.report.get(address) for address in self._directory.addresses()]
        for error in errors:
            if not isinstance(error, UnknownGroupError | AccessDeniedError):
                return
        if errors and errors[0] is not None:
            raise type(errors[0])(errors[0].message)

    def _leave(self, asks: dict[str, asyncio.Task[Metadata]]) -> None:
        for task in asks.values():
            task.cancel()
            self._stray[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Metadata]) -> None:
        self._stray.pop(task, None)
        if not task.cancelled():
            task.exception()
