"""A node's page, probes and health service, on real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dledger.errors import UnavailableError
from dledger.raft.messages import InvariantError, Role
from tests.metrics.conftest import eventually, fetch, promtool, samples

pytestmark = pytest.mark.asyncio

PROMISED = frozenset(
    re.findall(
        r"\w+",
        """
dledger_build_info dledger_role dledger_term dledger_has_leader dledger_leader_changes_total dledger_elections_total
dledger_last_index dledger_commit_index dledger_applied_index dledger_first_index dledger_peer_match_index
dledger_peer_lag_entries dledger_peer_lag_seconds dledger_append_entry_latency_seconds dledger_append_entry_batch_bytes
dledger_append_entry_batch_count dledger_replicate_entry_latency_seconds dledger_wal_fsync_duration_seconds
dledger_wal_bytes_written_total dledger_proposals_pending dledger_proposals_failed_total dledger_peer_round_trip_seconds
dledger_peer_connected dledger_entries dledger_entry_store_size_bytes dledger_disk_free_ratio
""",
    )
)
"""The names that docs/metrics.md promises."""


async def start(group, count: int = 3, running: int | None = None):
    nodes = group(count)
    for node_id in nodes.node_ids[: running or count]:
        await nodes.start(node_id, metricsPort="0", heartBeatTimeIntervalMs="30")
    return nodes


async def page(server) -> dict[str, float]:
    status, text = await fetch(server.metrics_address, "/metrics")
    assert status == 200
    return samples(text)


async def test_every_promised_metric_is_there_and_promtool_has_no_complaint(group):
    nodes = await start(group)
    leader = await nodes.wait_leader()
    async with nodes.connect() as client:
        for _ in range(20):
            await client.append(bytes(100))
    for node_id, server in nodes.running.items():
        _, text = await fetch(server.metrics_address, "/metrics")
        assert set(re.findall(r"^# TYPE (\S+)", text, re.M)) >= PROMISED
        assert f'group="g",node="{node_id}"' in text
        checked = promtool("check", "metrics", page=text.encode())
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), node_id
    found = await page(nodes.running[leader])
    assert found["dledger_commit_index"] == nodes.running[leader].driver.core.commit_index
    assert found["dledger_append_entry_batch_count_sum"] == 21  # 20 entries and their session
    assert found["dledger_append_entry_latency_seconds_count"] == found["dledger_append_entry_batch_bytes_count"]
    assert 0 < found["dledger_append_entry_latency_seconds_sum"] < 20
    assert found["dledger_wal_bytes_written_total"] == nodes.running[leader].driver.store.end_pos
    assert found["dledger_wal_fsync_duration_seconds_count"] > 0
    assert 0 < found["dledger_disk_free_ratio"] < 1
    peer = next(node for node in nodes.node_ids if node != leader)
    assert found[f'dledger_replicate_entry_latency_seconds_count{{peer="{peer}"}}'] > 0
    await eventually(lambda: nodes.running[leader]._observer.metrics._transport.times[peer].round_trip.count)


async def test_gauges_of_leadership_fall_to_zero_on_step_down(group):
    nodes = await start(group)
    old = await nodes.wait_leader()
    server = nodes.running[old]
    core = server.driver.core
    await eventually(lambda: core.is_leader_ready and all(peer.match_index >= 0 for peer in core.progress.values()))
    before = await page(server)
    assert before['dledger_role{role="leader"}'] == 1
    assert [before[f'dledger_role{{role="{role.value}"}}'] for role in Role].count(1) == 1
    peers = [node for node in nodes.node_ids if node != old]
    assert all(before[f'dledger_peer_match_index{{peer="{peer}"}}'] >= 0 for peer in peers)
    new = await server.transfer_leadership()
    after = await page(server)
    assert after['dledger_role{role="leader"}'] == 0
    for peer in peers:
        assert after[f'dledger_peer_match_index{{peer="{peer}"}}'] == -1
        assert after[f'dledger_peer_lag_entries{{peer="{peer}"}}'] == 0
        assert after[f'dledger_peer_lag_seconds{{peer="{peer}"}}'] == 0
    assert after["dledger_proposals_pending"] == 0
    assert after["dledger_leader_changes_total"] == before["dledger_leader_changes_total"] + 1
    await eventually(lambda: nodes.running[new].driver.core.is_leader_ready)
    taken = await page(nodes.running[new])
    assert taken['dledger_role{role="leader"}'] == 1
    assert taken['dledger_elections_total{result="won"}'] == 1


async def test_a_peer_that_is_away_lags_in_entries_and_seconds(group):
    nodes = await start(group)
    leader = nodes.running[await nodes.wait_leader()]
    gone = next(node for node in nodes.node_ids if nodes.running[node] is not leader)
    await nodes.running.pop(gone).stop()
    async with nodes.connect() as client:
        await client.append_many([b"x"] * 10)
    metrics, now = leader._observer.metrics, asyncio.get_running_loop().time()
    metrics.sample(now)
    key = f'dledger_peer_lag_seconds{{peer="{gone}"}}'
    in_three_seconds = samples(b"".join([_render(metrics, now + 3)]).decode())
    assert in_three_seconds[f'dledger_peer_lag_entries{{peer="{gone}"}}'] >= 10
    assert 3 <= in_three_seconds[key] < 13
    assert in_three_seconds[f'dledger_peer_connected{{peer="{gone}"}}'] == 0


def _render(metrics, now_s: float) -> bytes:
    from dledger.metrics.registry import render

    return render(metrics.families(now_s))


async def test_refusals_are_counted_by_reason(group):
    nodes = await start(group)
    leader = await nodes.wait_leader()
    follower = next(server for node, server in nodes.running.items() if node != leader)
    from dledger.errors import NotLeaderError

    for _ in range(3):
        with pytest.raises(NotLeaderError):
            await follower.append(b"x")
    assert (await page(follower))['dledger_proposals_failed_total{reason="not_leader"}'] == 3


# ---- probes


async def health_of(address: str) -> dict[str, str]:
    async with aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return {
            service: health_pb2.HealthCheckResponse.ServingStatus.Name(
                (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status
            )
            for service in ("", "dledger.v1.LedgerService")
        }


async def test_a_node_without_a_majority_lives_and_is_not_ready(group):
    nodes = await start(group, running=1)
    server = nodes.running["n0"]
    assert (await fetch(server.metrics_address, "/livez"))[0] == 200
    assert await fetch(server.metrics_address, "/readyz") == (503, "no leader is known here\n")
    assert await fetch(server.metrics_address, "/healthz") == (503, "no leader is known here\n")
    assert await health_of(nodes.address("n0")) == {"": "SERVING", "dledger.v1.LedgerService": "NOT_SERVING"}
    assert (await page(server))["dledger_has_leader"] == 0
    for node_id in ("n1", "n2"):
        await nodes.start(node_id, metricsPort="0")
    await nodes.wait_leader()
    await eventually(lambda: server.readiness().ready)
    assert await fetch(server.metrics_address, "/readyz") == (200, "ok\n")

    both = {"": "SERVING", "dledger.v1.LedgerService": "SERVING"}
    async with asyncio.timeout(30):
        while await health_of(nodes.address("n0")) != both:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def test_a_follower_far_behind_is_not_ready(group):
    nodes = await start(group)
    leader = await nodes.wait_leader()
    follower = next(server for node, server in nodes.running.items() if node != leader)
    await eventually(lambda: follower.readiness().ready)
    follower.driver.core._leader_commit_index += 1000
    assert follower.readiness().reason == "1000 entries behind the leader"
    assert (await fetch(follower.metrics_address, "/livez"))[0] == 200


async def test_other_paths_and_methods(group):
    nodes = await start(group, 1)
    address = nodes.running["n0"].metrics_address
    status, body = await fetch(address, "/")
    assert (status, "/metrics" in body) == (404, True)
    assert (await fetch(address, "/metrics", "POST"))[0] == 405
    assert await fetch(address, "/livez?x=1", "HEAD") == (200, "")


async def test_a_port_that_is_taken_is_named(group):
    nodes = await start(group, 1)
    port = nodes.running["n0"].metrics_address.rpartition(":")[2]
    other = group(1)
    with pytest.raises(UnavailableError, match=f"metrics: cannot listen on 127.0.0.1:{port}.*metricsPort"):
        await other.start("n0", metricsPort=port)


async def test_connections_that_say_nothing_or_too_much_do_not_keep_others_out(group):
    nodes = await start(group, 1)
    host, _, port = nodes.running["n0"].metrics_address.rpartition(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
    assert (await fetch(f"{host}:{port}", "/livez"))[0] == 200
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /" + b"x" * 100_000)
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    more = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
    async with asyncio.timeout(20):
        for reader, writer in [*idle, *more]:  # sent away within five seconds, at once beyond the limit
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
    assert (await fetch(f"{host}:{port}", "/livez"))[0] == 200


# ---- the end


@pytest.mark.parametrize("error", [InvariantError("two and two"), KeyError("a mistake of ours")])
async def test_a_node_that_breaks_leaves_a_crash_file_and_says_that_it_is_dead(group, monkeypatch, error):
    nodes = await start(group)
    leader = nodes.running[await nodes.wait_leader()]
    async with nodes.connect() as client:
        await client.append(b"the body is nobody's business")

    def break_it(*_):
        raise error

    monkeypatch.setattr(type(leader.driver.core), "tick", break_it)
    with pytest.raises(type(error)):
        await asyncio.wait_for(leader.wait_stopped(), 30)
    monkeypatch.undo()
    await eventually(lambda: list(leader.config.node_dir.glob("crash-*.json")))
    (path,) = leader.config.node_dir.glob("crash-*.json")
    report = json.loads(path.read_text())
    assert report["error"]["kind"] == type(error).__name__
    assert "break_it" in "".join(report["error"]["traceback"])
    assert {"elected", "role_changed"} <= {event["name"] for event in report["events"]}
    assert report["status"]["commit_index"] >= 2
    assert report["settings"]["dLegerSelfId"] == leader.config.self_id
    assert "nobody's business" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert await fetch(leader.metrics_address, "/livez") == (503, "stopped\n")
    # The folder with the file in it opens again.
    node_id = leader.config.self_id
    await nodes.running.pop(node_id).stop()
    again = await nodes.start(node_id)
    await eventually(lambda: again.readiness().ready)


async def test_crash_files_do_not_fill_the_disk(group):
    from dledger.metrics.crash import write_crash_file

    nodes = await start(group, 1)
    server = nodes.running["n0"]
    await nodes.wait_leader()
    for number in range(20):
        (server.config.node_dir / f"crash-20200101T0000{number:02}Z-1.json").write_text("{}")
    path = write_crash_file(server.driver, InvariantError("x"))
    assert path is not None
    left = sorted(server.config.node_dir.glob("crash-*.json"))
    assert len(left) == 8
    assert left[-1] == path


async def test_measuring_is_by_the_proposal_and_not_by_the_entry(group):
    """What makes it cheap: ten thousand entries in one batch are measured as often as one."""
    nodes = await start(group)
    leader = nodes.running[await nodes.wait_leader()]
    driver, times = leader.driver, leader._observer.metrics._transport.times

    def observations() -> int:
        metrics = driver.appends.metrics
        histograms = [metrics.batch_bytes, metrics.batch_entries, metrics.fsync, driver.appends.times.latency]
        return sum(h.count for h in [*histograms, *(peer.replicate for peer in times.values())])

    await leader.append(b"x")
    counts = []
    for size in (1, 10_000):
        before = observations()
        await leader.append_batch([bytes(10)] * size)
        counts.append(observations() - before)
    assert counts[1] <= counts[0] + 4  # a large batch may travel as a few messages and group commits
