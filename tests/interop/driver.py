"""A client program of another language that is told over JSON lines what to do: the test's side of it.

A wish ``{"op": …}`` is answered by one line ``{"reply": {…}}``; what is consumed, and how a flood fares, comes between
them as ``{"event": {…}}``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SENT_TIMEOUT_S = 60.0
CLUSTER = "RaftCluster"

Event = dict[str, Any]


class Process:
    """A child that talks JSON lines; its lines collect in `lines`."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, cwd: Path = REPOSITORY) -> None:
        self._log = log.open("ab")
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env, cwd=cwd
        )
        self.lines: list[dict[str, Any]] = []
        self._fresh: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            # The C++ client prints to standard output too.
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    if "ready" not in value:
                        self.lines.append(value)
                    self._fresh.put(value)

    def next(self, timeout_s: float = 60) -> dict[str, Any]:
        return self._fresh.get(timeout=timeout_s)

    def ask(self, **wish: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(wish).encode() + b"\n")
        self.child.stdin.flush()
        return self.next()

    def end(self, timeout_s: float = 40) -> None:
        """Close its input and wait; a client library that hangs at its end is ended."""
        if self.child.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                assert self.child.stdin is not None
                self.child.stdin.close()
            try:
                self.child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self._reader.join(10)
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._log.close()


class DriverError(Exception):
    """The client refused or failed; ``reply`` is what it said, ``code`` the broker's number where there is one."""

    def __init__(self, reply: dict[str, Any]) -> None:
        super().__init__(reply.get("error"))
        self.reply = reply
        self.code = reply.get("code")


class Driver(Process):
    """One client process. ``lines`` holds its events in the order in which they came; ``broker``: one for its admin."""

    _numbers = itertools.count()

    def __init__(self, kind: str, command: list[str], env: dict[str, str], log: Path, broker: str) -> None:
        self.kind = kind
        self.broker = broker
        self._changed = threading.Condition()
        # Some of mqadmin's commands write files where they run.
        super().__init__(command, env, log, log.parent)
        ready = self.next()
        assert "ready" in ready, ready

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            # A library may print to standard output too.
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and "event" in value:
                    with self._changed:
                        self.lines.append(value["event"])
                        self._changed.notify_all()
                elif isinstance(value, dict):
                    self._fresh.put(value)

    @classmethod
    def name(cls, what: str) -> str:
        """A name that nothing else has."""
        return f"{what}{next(cls._numbers)}"

    def do(self, op: str, **wish: Any) -> dict[str, Any]:
        """Have it do something; its answer.

        Raises:
            DriverError: it could not.
        """
        reply: dict[str, Any] = self.ask(op=op, **wish)["reply"]
        if not reply["ok"]:
            raise DriverError(reply)
        return reply

    def producer(self, **wish: Any) -> str:
        """Start a producer; its id."""
        name = self.name("producer")
        self.do("producer", id=name, group=f"P-{name}-{self.kind}", **wish)
        return name

    def push(self, topic: str, **wish: Any) -> str:
        """Start a push consumer; its id. Without ``group`` it has one of its own."""
        name = self.name("consumer")
        self.do("push", **{"id": name, "group": f"G-{name}-{self.kind}", "topic": topic, **wish})
        return name

    def create_topic(self, topic: str, queues: int = 4) -> None:
        """Have the client's own admin make a topic at ``broker``; returns once the name server has it."""
        deadline = time.monotonic() + SENT_TIMEOUT_S
        while True:
            try:
                self.do("topic", topic=topic, cluster=CLUSTER, broker=self.broker, queues=queues)
                break
            except DriverError as error:
                # Admin clients give up within seconds, which a busy machine may need; making it twice is harmless.
                assert time.monotonic() < deadline, f"{self.kind}: topic {topic} cannot be made: {error}"
        while not self.do("routed", topic=topic)["routed"]:
            assert time.monotonic() < deadline, f"{self.kind}: topic {topic} was made and is not routed"

    def events(self, **like: Any) -> list[Event]:
        """The events that have these values."""
        with self._changed:
            return [e for e in self.lines if all(e.get(name) == value for name, value in like.items())]

    def wait(self, until: Callable[[list[Event]], bool], timeout_s: float = SENT_TIMEOUT_S, **like: Any) -> list[Event]:
        """Wait for events; those that have the values once ``until`` says yes to them."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = [e for e in self.lines if all(e.get(name) == value for name, value in like.items())]
                if until(found):
                    return found
                left = deadline - time.monotonic()
                assert left > 0, f"{self.kind}: within {timeout_s:.0f} s only {found[-5:]} ({len(found)})"
                self._changed.wait(left)

    def consumed(self, consumer: str, bodies: list[str], timeout_s: float = SENT_TIMEOUT_S) -> list[Event]:
        """Wait until a consumer has all these bodies; what it has. Nothing else, and nothing twice, may be there."""
        found = self.wait(lambda got: {e["body"] for e in got} >= set(bodies), timeout_s, consumer=consumer)
        assert sorted(e["body"] for e in found) == sorted(bodies)
        return found
