"""Ports: is one free, and who has it if not. Linux; reads ``/proc``, so only the user's own processes have names."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from dledger.errors import UnavailableError

__all__ = ["claim", "listener", "require_free"]

_LISTEN: Final = "0A"
_WORDS: Final = 6


def claim(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``host``:``port`` (0: any free one).

    Raises:
        UnavailableError: it is taken or not allowed; says by whom where that can be known.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise UnavailableError(f"port {port} on {host} {_why(port, error)}") from error
    sock.setblocking(False)
    return sock


def _why(port: int, error: OSError) -> str:
    who = listener(port)
    return f"is taken by {who}" if who else f"cannot be used: {os.strerror(error.errno or 0).lower()}"


def require_free(host: str, port: int) -> None:
    """Do nothing if ``port`` can be listened on.

    Raises:
        UnavailableError: it is taken.
    """
    claim(host, port).close()


def listener(port: int) -> str:
    """Return ``pid 123 (python -m dledger …)`` of the process that listens on a TCP port; empty if nobody is known."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(Path("/proc/net") / table, port)}
    if not inodes:
        return ""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _has_socket(folder, inodes):
            return f"pid {folder.name} ({_command(folder)})"
    return "a process of another user"


def _listening(table: Path, port: int) -> list[str]:
    """Return the inodes of the sockets that listen on ``port``."""
    try:
        rows = [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _has_socket(folder: Path, inodes: set[str]) -> bool:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    try:
        return any(os.readlink(folder / "fd" / name) in wanted for name in os.listdir(folder / "fd"))
    except OSError:
        return False  # another user's, or it ended in this moment


def _command(folder: Path) -> str:
    try:
        words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "?"
    words = [os.path.basename(words[0]), *words[1:]]
    return " ".join(words[:_WORDS]).strip() or "?"
