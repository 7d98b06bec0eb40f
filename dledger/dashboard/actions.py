"""What the page's buttons do, where there is somebody who started the nodes."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Actions"]


class Actions(Protocol):
    """Implemented by the keeper of a dev group."""

    @property
    def token(self) -> str:
        """The secret that a request must carry."""

    async def act(self, action: str, node: str, text: str) -> str:
        """Do something and return what was done, as a sentence.

        ``append`` (``text``), ``transfer``, ``kill``, ``pause``, ``resume``, ``cut``, ``heal`` or ``chaos``; ``node``
        is an id, ``leader``, or empty where nobody need be named.

        Raises:
            DLedgerError: it could not be done; the message says why.
        """

    def report(self) -> bytes | None:
        """Return the HTML report of the last chaos run, None where there was none."""
