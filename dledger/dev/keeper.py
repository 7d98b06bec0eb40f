"""Keeps a dev group: does to it what the page and the verbs ask, and notices what others do to its processes."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dledger.chaos.fabric import OPEN, Flow, Rule
from dledger.chaos.judge import judge_record
from dledger.chaos.record import Event
from dledger.chaos.report import render
from dledger.chaos.run import ChaosOptions, Present, random_seed, replay_line, run_chaos_on
from dledger.chaos.schedule import Fault
from dledger.dashboard.watcher import Condition, Watcher
from dledger.dev.brokers import Sender
from dledger.dev.group import DevGroup
from dledger.errors import DLedgerError, UnavailableError, UnexpectedArgumentError, UnknownMemberError

if TYPE_CHECKING:
    from dledger.client import LedgerClient

__all__ = ["Keeper"]

_WATCH_S: Final = 0.1
_CHAOS_S: Final = 30.0
_CHAOS_CLIENTS: Final = 2
_CHAOS_CONCURRENCY: Final = 2
_CHAOS_FAULTS: Final = (Fault.KILL, Fault.PAUSE, Fault.PARTITION, Fault.DELAY, Fault.TRANSFER)
_MAX_TEXT_BYTES: Final = 4096
_SUCCESSOR_S: Final = 5.0
_STOP_S: Final = 1.0


class Keeper:
    """``Actions`` of the page, and the same for the verbs. ``client`` appends and transfers; with
    brokers ``sender`` sends messages instead of entries.

    All methods belong to the group's event loop. While chaos runs nothing else may be done to the group.
    """

    def __init__(
        self, group: DevGroup, client: LedgerClient, token: str, report_path: Path, sender: Sender | None = None
    ) -> None:
        self._group = group
        self._client = client
        self._sender = sender
        self._token = token
        self._report_path = report_path
        self._watcher: Watcher | None = None
        self._cut: set[str] = set()
        self._seen: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._chaos: asyncio.Task[None] | None = None
        self._chaos_ends = 0.0
        self.verdict = ""
        """What the last chaos run came to, in a line; empty while there was none."""
        self._do: Mapping[str, Callable[[str, str], Awaitable[str]]] = {
            "append": self._append,
            "transfer": self._transfer,
            "kill": self._kill,
            "pause": self._pause,
            "resume": self._resume,
            "cut": self._cut_off,
            "heal": self._heal,
            "chaos": self._run_chaos,
        }

    # ---------------------------------------------------------------- what the page needs

    @property
    def token(self) -> str:
        return self._token

    @property
    def chaos_running(self) -> bool:
        return self._chaos is not None and not self._chaos.done()

    @property
    def chaos_left_s(self) -> int:
        """Seconds until no more faults come; 0 when the group is being healed, judged, or no chaos runs."""
        left = self._chaos_ends - asyncio.get_running_loop().time()
        return max(math.ceil(left), 0) if self.chaos_running else 0

    @property
    def has_report(self) -> bool:
        return self._report_path.exists()

    async def act(self, action: str, node: str, text: str) -> str:
        """See ``Actions.act``."""
        do = self._do.get(action)
        if do is None:
            raise UnexpectedArgumentError(f'"{action}" is no action; there are {", ".join(self._do)}')
        if self.chaos_running and action != "append":
            raise UnavailableError("chaos is running; it heals the group when it is over")
        return await do(node, text)

    def report(self) -> bytes | None:
        """See ``Actions.report``."""
        try:
            return self._report_path.read_bytes()
        except OSError:
            return None

    def conditions(self) -> dict[str, Condition]:
        """What is known of the nodes' processes and links: for the watcher."""
        cut = {node_id for pair in self._group.fabric.cut_flows() for node_id in pair} if self.chaos_running else set()
        return {
            node_id: Condition(self._state(node_id), node_id in self._cut or node_id in cut)
            for node_id in self._group.nodes
        }

    def _state(self, node_id: str) -> str:
        node = self._group.nodes[node_id]
        if node.process is not None and node.pid is None:
            return "killed" if node.process.returncode == -signal.SIGKILL else "ended"
        return "paused" if self._group.is_paused(node_id) else ""

    # ---------------------------------------------------------------- life

    def watch(self, watcher: Watcher) -> None:
        """Begin to tell ``watcher`` what happens to the processes, whoever does it. The group has started."""
        self._watcher = watcher
        self._seen = {node_id: self._state(node_id) for node_id in self._group.nodes}
        self._task = asyncio.ensure_future(self._notice())

    async def stop(self) -> None:
        """End what runs here; the group is not touched."""
        tasks = [task for task in (self._task, self._chaos) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            # Chaos that is interrupted waits for the appends under way; the second time it does not.
            _, pending = await asyncio.wait(tasks, timeout=_STOP_S)
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _notice(self) -> None:
        while True:
            for node_id in self._group.nodes:
                state = self._state(node_id)
                if state != self._seen[node_id]:
                    self._tell_state(node_id, self._seen[node_id], state)
                    self._seen[node_id] = state
            await asyncio.sleep(_WATCH_S)

    def _tell_state(self, node_id: str, before: str, state: str) -> None:
        node = self._group.nodes[node_id]
        code = node.process.returncode if node.process is not None else None
        kind = "fault" if state else "repair"
        if state == "killed":
            text = f"{node_id} was killed with SIGKILL"
        elif state == "ended":
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            text = f"{node_id} ended {how}: {node.log_tail().rpartition(chr(10))[2][:300]}"
        elif state == "paused":
            text = f"{node_id} is paused (SIGSTOP): it hangs, its connections stay"
        elif before == "paused":
            text = f"{node_id} goes on after the pause"
        else:
            text = f"{node_id} was started again (pid {node.pid})"
        self._say(node_id, kind, text)

    def _say(self, node_id: str, kind: str, text: str) -> None:
        if self._watcher is not None:
            self._watcher.say(node_id, kind, text)

    # ---------------------------------------------------------------- actions

    async def _resolve(self, node: str) -> str:
        """Return the node id that ``leader`` or an id means now.

        Raises:
            UnavailableError: nobody leads.
            UnknownMemberError: there is no such node.
        """
        if node == "leader":
            leader = None
            if self._watcher is not None:
                await self._watcher.refresh()
                leader = self._watcher.leader()
            if leader is None:
                raise UnavailableError("nobody leads at the moment")
            return leader
        if node not in self._group.nodes:
            raise UnknownMemberError(f'"{node}" is no node; there are {", ".join(self._group.nodes)}, and leader')
        return node

    async def _named(self, node_id: str) -> str:
        leads = False
        if self._watcher is not None:
            await self._watcher.refresh()  # whoever says "n0" may know since a moment ago that it leads
            leads = self._watcher.leader() == node_id
        return f"{node_id}, the leader" if leads else node_id

    def _running(self, node_id: str) -> None:
        if self._group.nodes[node_id].pid is None:
            raise UnavailableError(f"{node_id} does not run; resume starts it again")

    async def _append(self, _node: str, text: str) -> str:
        body = (text or "hello").encode()
        if len(body) > _MAX_TEXT_BYTES:
            raise UnexpectedArgumentError(f"{len(body)} bytes; the page takes {_MAX_TEXT_BYTES}")
        if self._sender is not None:
            async with asyncio.timeout(_SUCCESSOR_S):
                words = await self._sender.send(body)
        else:
            result = await self._client.append(body, timeout=_SUCCESSOR_S)
            words = f"appended at index {result.index}, term {result.term}"
        self._say("", "action", f"{words}: {text or 'hello'}")
        return words

    async def _transfer(self, node: str, _text: str) -> str:
        target = None if node in {"", "leader"} else await self._resolve(node)
        leader = await self._client.transfer_leadership(target, timeout=_SUCCESSOR_S)
        return f"{leader} leads now"

    async def _kill(self, node: str, _text: str) -> str:
        node_id = await self._resolve(node)
        self._running(node_id)
        named = await self._named(node_id)
        await self._group.kill(node_id)
        return f"killed {named}; resume {node_id} starts it again"

    async def _pause(self, node: str, _text: str) -> str:
        node_id = await self._resolve(node)
        self._running(node_id)
        named = await self._named(node_id)
        self._group.pause(node_id)
        return f"paused {named}"

    async def _resume(self, node: str, _text: str) -> str:
        node_id = await self._resolve(node)
        if self._group.nodes[node_id].pid is None:
            await self._group.restart(node_id)
            return f"started {node_id} again"
        if not self._group.is_paused(node_id):
            return f"{node_id} was running"
        self._group.resume(node_id)
        return f"{node_id} goes on"

    async def _cut_off(self, node: str, _text: str) -> str:
        """Nothing passes between the node and the others, and nobody is told: what an unplugged cable does."""
        node_id = await self._resolve(node)
        named = await self._named(node_id)
        others = [other for other in self._group.nodes if other != node_id]
        flows = [pair for other in others for pair in ((node_id, other), (other, node_id))]
        self._group.fabric.set_rules(flows, Rule(Flow.LOST))
        self._cut.add(node_id)
        self._say(node_id, "fault", f"{node_id} is cut off from {', '.join(others)}")
        return f"cut off {named}"

    async def _heal(self, node: str, _text: str) -> str:
        """Undo everything, of one node or (empty) of all: links, pauses, kills."""
        chosen = [await self._resolve(node)] if node else list(self._group.nodes)
        done = []
        for node_id in chosen:
            if node_id in self._cut:
                self._reconnect(node_id)
                done.append(f"{node_id} is connected again")
            if self._state(node_id):
                done.append(await self._resume(node_id, ""))
        return "; ".join(done) or "nothing was wrong"

    def _reconnect(self, node_id: str) -> None:
        self._cut.discard(node_id)
        # The links to a node that is cut off itself stay cut.
        others = [other for other in self._group.nodes if other != node_id and other not in self._cut]
        flows = [pair for other in others for pair in ((node_id, other), (other, node_id))]
        self._group.fabric.set_rules(flows, OPEN)
        self._say(node_id, "repair", f"{node_id} is connected again")

    # ---------------------------------------------------------------- chaos

    async def _run_chaos(self, _node: str, text: str) -> str:
        """Thirty seconds (or ``text`` seconds) of kills, pauses, cuts and transfers under load, then the verdict."""
        await self._heal("", "")
        try:
            seconds = float(text) if text else _CHAOS_S
        except ValueError:
            raise UnexpectedArgumentError(f'"{text}" is no number of seconds') from None
        options = ChaosOptions(
            duration_s=min(max(seconds, 1.0), 600.0),
            faults=_CHAOS_FAULTS,
            seed=random_seed(),
            directory=self._group.directory,
            clients=_CHAOS_CLIENTS,
            concurrency=_CHAOS_CONCURRENCY,
            nodes=len(self._group.nodes),
            group=self._group.group,
        )
        self.verdict = ""
        self._chaos_ends = asyncio.get_running_loop().time() + options.duration_s
        self._chaos = asyncio.ensure_future(self._chaos_run(options))
        self._say("", "action", f"{options.duration_s:g} s of chaos begin, seed {options.seed}")
        return f"{options.duration_s:g} s of chaos, seed {options.seed}"

    async def _chaos_run(self, options: ChaosOptions) -> None:
        try:
            record = await run_chaos_on(self._group, options, self)
            record.meta["replay"] = replay_line(options)
            judgement = await asyncio.to_thread(judge_record, record)
            page = await asyncio.to_thread(render, record, judgement)
            self._report_path.write_text(page, encoding="utf-8")
            self.verdict = " ".join(judgement.lines(record)[0].split())
            self._say("", "action", self.verdict)
            if not judgement.ok:
                # The data of a failed run is evidence; the folder is kept by itself, unless somebody says --fresh.
                self._say("", "fault", f"data kept in {self._group.directory}")
        except DLedgerError as error:
            self.verdict = f"chaos ended early: {error}"
            self._say("", "fault", self.verdict)

    def say(self, event: Event) -> None:
        """Chaos tells what it does (``Observer``); what the watcher sees by itself is left out."""
        if " elected, term " not in event.words:
            self._say("", "action", event.words)

    def tick(self, present: Present) -> None:
        """Nothing to draw here: the page shows the nodes as they are (``Observer``)."""
