"""``dledger health``: what it makes of a group's answers, and the command itself on real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys

import pytest

from dledger.cli.exit_codes import ExitCode
from dledger.cli.group_view import GroupView
from dledger.cli.health import judge
from dledger.client import DownNode
from dledger.local_group import LocalGroup
from dledger.types import NodeStatus, PeerStatus


def node(name: str, role: str = "follower", **facts) -> NodeStatus:
    base = {
        "group": "g", "node_id": name, "address": f"{name}:1", "role": role, "term": 3, "vote": "", "leader_id": "n0",
        "leader_address": "n0:1", "first_index": 0, "last_index": 9, "stable_index": 9, "commit_index": 9,
        "applied_index": 9, "disk_free_bytes": 50, "disk_total_bytes": 100,
    }  # fmt: skip
    return NodeStatus(**{**base, **facts})


def down(name: str) -> DownNode:
    return DownNode(name, f"{name}:1", "connection refused")


def lagging(entries: int) -> tuple[PeerStatus, ...]:
    return (
        PeerStatus("n1", "n1:1", True, match_index=1, lag_entries=entries),
        PeerStatus("n2", "n2:1", True, lag_entries=0),
    )


WELL = [node("n0", "leader"), node("n1"), node("n2")]


@pytest.mark.parametrize(
    ("nodes", "read_error", "severity", "code", "words"),
    [
        (WELL, None, 0, ExitCode.DONE, "HEALTHY  group g: 3 of 3 up, leader n0, term 3"),
        ([*WELL[:2], down("n2")], None, 1, ExitCode.DONE, "DEGRADED .*n2 is down .connection refused"),
        ([*WELL[:2], node("n2", note="disk full")], None, 1, ExitCode.DONE, "n2: disk full"),
        ([*WELL[:2], node("n2", disk_free_bytes=4)], None, 1, ExitCode.DONE, "n2 has 4 % of its disk free"),
        ([node("n0", "leader", peers=lagging(1001)), *WELL[1:]], None, 1, ExitCode.DONE, "n1 is 1001 entries behind"),
        ([node("n0", "leader", peers=lagging(1000)), *WELL[1:]], None, 0, ExitCode.DONE, "HEALTHY"),
        (WELL, "timed out", 2, ExitCode.NO_QUORUM, "UNHEALTHY .*a linearizable read fails: timed out"),
        ([node("n0"), node("n1"), node("n2")], None, 2, ExitCode.NO_QUORUM, "leader none.*no leader"),
        ([WELL[0], down("n1"), down("n2")], None, 2, ExitCode.NO_QUORUM, "no quorum: 2 nodes are needed"),
        ([down("n0"), down("n1"), down("n2")], "x", 2, ExitCode.UNREACHABLE, "nobody reachable"),
    ],
)
def test_judgement(nodes, read_error, severity, code, words):
    found = judge(GroupView("g", nodes), read_error)
    assert (found.severity, found.exit_code) == (severity, code)
    assert re.search(words, found.as_text())
    nagios = found.as_nagios()
    assert nagios.startswith(f"DLEDGER {('OK', 'WARNING', 'CRITICAL')[severity]} - ")
    assert re.fullmatch(r"up=\d;;2:;0;3 lag_entries=\d+;1000;;0", nagios.partition(" | ")[2])
    value = json.loads(found.as_json())
    assert value["schema"] == "dledger.health/v1"
    assert value["status"] == ("healthy", "degraded", "unhealthy")[severity]
    assert bool(value["reasons"]) is (severity > 0)


@pytest.mark.asyncio
async def test_on_real_processes_from_well_to_nobody(tmp_path):
    async with LocalGroup(tmp_path, nodes=3, group="g") as group:

        async def health(*arguments: str) -> tuple[int, str]:
            command = [sys.executable, "-m", "dledger", "health", "--peers", group.peers, "--group", "g", *arguments]
            env = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, env=env, timeout=60, check=False
            )
            return done.returncode, done.stdout

        assert (await health("--wait", "20s"))[0] == 0
        code, line = await health("--format", "nagios")
        assert (code, line.split(" - ")[0]) == (0, "DLEDGER OK")
        leader = await group.wait_leader()
        others = [name for name in group.nodes if name != leader]
        await group.kill(others[0])
        code, text = await health("--format", "json")
        assert (code, json.loads(text)["status"]) == (0, "degraded")
        assert (await health("--format", "nagios"))[0] == 1
        await group.kill(others[1])
        code, text = await health()
        assert code == 3
        assert "no quorum: 2 nodes are needed" in text
        assert (await health("--format", "nagios"))[0] == 2
        await group.kill(leader)
        assert (await health())[0] == 5
        await group.restart(others[0])
        await group.restart(others[1])
        code, text = await health("--wait", "20s")
        assert code == 0, text
