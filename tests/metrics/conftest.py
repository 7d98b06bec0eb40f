"""What the metrics tests share: promtool, pages over HTTP, groups in this loop."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess

import pytest

from tests.security.conftest import Nodes, eventually, group

__all__ = ["Nodes", "eventually", "fetch", "group", "promtool", "samples"]


def promtool(*arguments: str, page: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run promtool; the test is skipped by name where there is none."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([program, *arguments], input=page, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


async def fetch(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    """Return status and body of one HTTP request."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split(" ")[1]), body


def samples(page: str) -> dict[str, float]:
    """Return ``name{labels without group and node}`` → value of every sample."""
    found = {}
    for line in page.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[re.sub(r'(group|node)="[^"]*",?', "", name).replace("{}", "").replace(",}", "}")] = float(value)
    return found
