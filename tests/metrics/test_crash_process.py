"""A real process whose node breaks: it ends, says why, leaves a crash file, and gives no secret away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.security.conftest import SECRETS, certs, tls_settings, tokens

__all__ = ["certs", "tokens"]

BREAK = """
import sys
from dledger.raft.core import RaftCore
from dledger.raft.messages import InvariantError
from dledger.driver.executor import ThreadExecutor

ready = RaftCore.ready
def broken(core):
    if core.is_leader_ready:
        if {hang!r}:
            ThreadExecutor.shutdown = lambda self: __import__("time").sleep(3600)
        raise InvariantError("made by the test")
    return ready(core)
RaftCore.ready = broken

from dledger.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("hang", [False, True], ids=["", "with a disk that hangs"])
def test_the_process_ends_and_leaves_a_crash_file(tmp_path, certs, tokens, hang):
    settings = {
        "group": "g",
        "selfId": "n0",
        "peers": "n0-127.0.0.1:0",
        "storeBaseDir": str(tmp_path / "store"),
        "tokensFile": str(tokens),
        **tls_settings(certs, "n0"),
    }
    arguments = [word for key, value in settings.items() for word in ("-D", f"{key}={value}")]
    log = tmp_path / "log"
    env = {**os.environ, "TMPDIR": str(tmp_path), "DLEDGER_TOKEN": SECRETS[0]}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", BREAK.format(hang=hang), "start", *arguments], stdout=out, stderr=out, env=env
        )
    try:
        assert process.wait(60) == 1, log.read_text()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    (crash,) = (tmp_path / "store" / "dledger-n0").glob("crash-*.json")
    report = json.loads(crash.read_text())
    assert report["error"] | {"traceback": 0} == {
        "kind": "InvariantError", "message": "made by the test", "traceback": 0,
    }  # fmt: skip
    assert "elected" in {event["name"] for event in report["events"]}
    assert report["settings"]["tokensFile"] == str(tokens)
    text = log.read_text() + crash.read_text()
    assert str(crash) in text
    assert "node_failed" in text
    key = "".join((certs / "n0.key").read_text().splitlines()[1:-1])
    assert key[:20] not in text
    assert not any(secret in text for secret in SECRETS)
