"""How the verbs reach the supervisor: one line of JSON each way over a loopback connection, with the token in it."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from typing import Any, Final

from dledger.dashboard.actions import Actions
from dledger.dev.state import DevState
from dledger.errors import DLedgerError, UnavailableError

__all__ = ["ControlServer", "ask"]

_HOST: Final = "127.0.0.1"
_MAX_LINE_BYTES: Final = 64 * 1024
_READ_S: Final = 5.0
_MAX_CONNECTIONS: Final = 16


class ControlServer:
    """Answers the verbs. Belongs to the supervisor's loop."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._server: asyncio.Server | None = None
        self._open = 0
        self.port = 0

    async def start(self) -> None:
        """Listen on a free loopback port."""
        self._server = await asyncio.start_server(self._serve, _HOST, 0, limit=_MAX_LINE_BYTES)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_READ_S):
                    line = await reader.readline()
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # whoever asked has gone, or says nothing
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, str]:
        try:
            row: dict[str, Any] = json.loads(line)
            token, action, node, text = (str(row.get(key, "")) for key in ("token", "action", "node", "text"))
        except (ValueError, AttributeError) as error:
            return {"error": f"not a request: {error}"}
        if not hmac.compare_digest(token.encode(), self._actions.token.encode()):
            return {"error": "the token is wrong"}
        try:
            return {"done": await self._actions.act(action, node, text)}
        except (DLedgerError, TimeoutError) as error:
            return {"error": str(error) or "timed out"}


def ask(state: DevState, action: str, node: str = "", text: str = "", *, timeout: float = 30.0) -> str:
    """Have the supervisor do something; returns what was done, as a sentence. Blocks up to ``timeout`` seconds.

    Raises:
        UnavailableError: it does not run or does not answer.
        DLedgerError: it could not be done.
    """
    request = json.dumps({"token": state.token, "action": action, "node": node, "text": text}).encode() + b"\n"
    try:
        with socket.create_connection((_HOST, state.control_port), timeout=timeout) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline(_MAX_LINE_BYTES))
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the supervisor (pid {state.pid}) does not answer: {error}") from error
    if "error" in answer:
        raise DLedgerError(str(answer["error"]))
    return str(answer["done"])
