"""``dledger chaos`` on a group that wants certificates and a token."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from dledger.chaos.run import ChaosOptions, run_chaos
from dledger.chaos.schedule import Fault
from dledger.cli.exit_codes import ExitCode
from dledger.errors import AccessDeniedError, ConfigError
from tests.chaos.test_run import Silent
from tests.security.conftest import client_tls, tls_settings

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "chaos-token-0123456789"

pytestmark = pytest.mark.asyncio


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "node-tokens"
    path.write_text(f"chaos read,write,admin {TOKEN}\n", encoding="ascii")
    path.chmod(0o600)
    return path


async def start_all(nodes, certs, token_file):
    for node_id in nodes.node_ids:
        await nodes.start(node_id, **tls_settings(certs, node_id), tokensFile=str(token_file))
    return await nodes.wait_leader()


async def test_chaos_hurts_and_judges_a_group_with_tls_and_tokens(group, certs, token_file, tmp_path):
    nodes = group(3)
    await start_all(nodes, certs, token_file)
    (tmp_path / "mine").write_text(TOKEN, encoding="ascii")
    history = tmp_path / "history.jsonl.gz"
    command = ["chaos", "--for", "4s", "--peers", nodes.peers, "--group", "g", "--clients", "2", "--seed", "3"]
    access = ["--ca", certs / "ca.pem", "--cert", certs / "client.pem", "--key", certs / "client.key"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DLEDGER_")}
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "dledger", *command, *access, "--token-file", tmp_path / "mine"],
        *["--history", history, "--data-dir", tmp_path / "data", "-o", "json"],
        cwd=REPOSITORY,
        env=clean,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(90):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == ExitCode.DONE, (out, err)
    found = json.loads(out)
    assert found["schema"] == "dledger.chaos/v1"
    assert found["forced_retries"] > 0, "the links before the nodes carry TLS"
    record = gzip.decompress(history.read_bytes()).decode()
    assert '"transfer"' in record, "leadership was handed over, for which the token needs the right"
    assert TOKEN not in record + out.decode() + err.decode()


def options(nodes, tmp_path: Path, certs: Path, **changes) -> ChaosOptions:
    base = {"duration_s": 1, "faults": (Fault.RETRY,), "seed": 1, "directory": tmp_path, "group": "g"}
    return ChaosOptions(**base | {"peers": nodes.peers, "tls": client_tls(certs), "token": TOKEN} | changes)


async def test_chaos_without_a_good_token_says_so_at_once(group, certs, token_file, tmp_path):
    nodes = group(1)
    await start_all(nodes, certs, token_file)
    wrong = options(nodes, tmp_path, certs, token="another-token-0123456789")
    assert "another-token" not in repr(wrong)
    with pytest.raises(AccessDeniedError, match="the token is not known here"):
        await run_chaos(wrong, Silent())


async def test_retries_need_certificates_for_the_links_in_front(group, certs, token_file, tmp_path):
    nodes = group(1)
    await start_all(nodes, certs, token_file)
    peers = nodes.peers.replace("127.0.0.1", "localhost")
    with pytest.raises(ConfigError, match=r"retry: its links listen at 127\.0\.0\.1.*certificates of localhost"):
        await run_chaos(options(nodes, tmp_path, certs, peers=peers), Silent())
