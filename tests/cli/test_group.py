"""The command against three real processes, with kill -9 where it belongs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dledger.cli.exit_codes import ExitCode
from dledger.local_group import LocalGroup

REPOSITORY = Path(__file__).resolve().parents[2]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("DLEDGER_")}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGroup]:
    found = LocalGroup(tmp_path_factory.mktemp("group"), group="cli-test")
    try:
        asyncio.run(found.start())
        yield found
    finally:
        asyncio.run(found.stop())


@pytest.fixture
def own_group(tmp_path: Path) -> Iterator[LocalGroup]:
    """A group for a test that hurts it."""
    found = LocalGroup(tmp_path / "group", group="own")
    try:
        asyncio.run(found.start())
        yield found
    finally:
        asyncio.run(found.stop())


def environment(group: LocalGroup) -> dict[str, str]:
    return CLEAN | {"DLEDGER_PEERS": group.peers, "DLEDGER_GROUP": group.group}


def dledger(group: LocalGroup, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "dledger", *arguments],
        input=stdin,
        capture_output=True,
        cwd=REPOSITORY,
        env=environment(group),
        timeout=90,
        check=False,
    )


def ok(group: LocalGroup, *arguments: str, stdin: bytes = b"") -> str:
    found = dledger(group, *arguments, stdin=stdin)
    assert found.returncode == 0, found
    return found.stdout.decode()


def test_status_of_a_live_group_needs_no_grpc_and_says_the_same(group: LocalGroup) -> None:
    """The question without gRPC is answered by real nodes, so that nothing falls back to the slow way unseen."""
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dledger", "status", "-o", "json"],
        capture_output=True,
        cwd=REPOSITORY,
        env=environment(group),
        timeout=90,
        check=True,
        text=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "dledger.client.bare_call" in loaded
    assert not {"grpc", "asyncio", "google.protobuf"} & loaded
    through_grpc = json.loads(ok(group, "status", "-o", "json", "--wait", "10s"))
    assert json.loads(found.stdout)["nodes"] and json.loads(found.stdout) == through_grpc


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_append_get_and_tail_one_entry(group: LocalGroup) -> None:
    placed = json.loads(ok(group, "append", "grüße", "-o", "json"))
    index = placed["index"]
    assert ok(group, "get", str(index)) == "grüße\n"
    assert json.loads(ok(group, "get", str(index), "-o", "json")) == {
        "index": index,
        "term": placed["term"],
        "type": "normal",
        "body": "grüße",
    }
    assert ok(group, "tail", "--from", str(index)).splitlines()[0] == "grüße"
    assert re.fullmatch(r"index \d+  term \d+\n", ok(group, "append", "second"))
    assert rows(ok(group, "append", "-J", "third"))[0]["line"] == 0


def test_standard_input_goes_in_line_by_line_and_comes_out_the_same(group: LocalGroup) -> None:
    bodies = [b"line %d" % n for n in range(500)] + [
        b"",
        b"equal",
        b"equal",
        b"cr\r",
        b"\xff\x00",
        b"no feed at the end",
    ]
    acked = rows(ok(group, "append", "-J", "-", stdin=b"\n".join(bodies)))
    assert sorted(row["line"] for row in acked) == list(range(len(bodies)))
    index_of = {row["line"]: row["index"] for row in acked}
    assert sorted(index_of.values()) == [index_of[n] for n in range(len(bodies))], "order"
    read = {row["index"]: row for row in rows(ok(group, "tail", "-J"))}
    for line, body in enumerate(bodies):
        row = read[index_of[line]]
        assert row["type"] == "normal"
        if body == b"\xff\x00":
            assert row["body_base64"] == "/wA="
        else:
            assert row["body"].encode() == body
    plain = dledger(group, "tail", "--from", str(index_of[0])).stdout
    assert plain == b"\n".join(bodies) + b"\n"


def test_all_types_show_what_the_log_adds(group: LocalGroup) -> None:
    kinds = {row["type"] for row in rows(ok(group, "tail", "-J", "--all-types"))}
    assert "noop" in kinds
    assert {row["type"] for row in rows(ok(group, "tail", "-J"))} <= {"normal"}


def test_tail_follows(group: LocalGroup) -> None:
    start = json.loads(ok(group, "append", "-o", "json", "before"))["index"]
    follower = subprocess.Popen(
        [sys.executable, "-m", "dledger", "tail", "-f", "-J", "--from", str(start)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env=environment(group),
    )
    try:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["body"] == "before"
        ok(group, "append", "after")
        assert json.loads(follower.stdout.readline())["body"] == "after"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == ExitCode.INTERRUPTED
    finally:
        follower.kill()
        follower.communicate()


def test_status(group: LocalGroup) -> None:
    out = json.loads(ok(group, "status", "-o", "json"))
    assert out["group"] == "cli-test"
    by_id = {node["node_id"]: node for node in out["nodes"]}
    assert sorted(by_id) == ["n0", "n1", "n2"]
    assert by_id[out["leader"]]["role"] == "leader"
    assert sorted(node["role"] for node in out["nodes"]) == ["follower", "follower", "leader"]
    assert all(node["up"] for node in out["nodes"])
    table = ok(group, "status")
    assert f"leader {out['leader']}" in table
    assert "LEADER" in table


def test_the_configuration_file_names_the_group_too(group: LocalGroup) -> None:
    conf = str(group.nodes["n1"].conf_path)
    found = subprocess.run(
        [sys.executable, "-m", "dledger", "status", "-c", conf],
        cwd=REPOSITORY,
        env=CLEAN,
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found
    assert b"GROUP cli-test" in found.stdout


def test_transfer_and_step_down(group: LocalGroup) -> None:
    before = json.loads(ok(group, "status", "-o", "json"))["leader"]
    target = next(node for node in group.nodes if node != before)
    assert f"leadership {before} → {target} in " in ok(group, "transfer", target)
    assert json.loads(ok(group, "status", "-o", "json"))["leader"] == target
    assert ok(group, "transfer", target).startswith(f"{target} leads already")
    assert ok(group, "step-down").startswith(f"{target} stepped down")
    ok(group, "status", "--wait", "20s", "--not", target)
    refused = dledger(group, "transfer", "n9")
    assert refused.returncode == ExitCode.FAILED
    assert b"UNKNOWN_MEMBER" in refused.stderr


@pytest.mark.parametrize("index", ["1000000", "-1"])
def test_an_index_that_is_not_there(group: LocalGroup, index: str) -> None:
    found = dledger(group, "get", index)
    assert found.returncode == ExitCode.FAILED
    assert found.stdout == b""
    assert b"INDEX_OUT_OF_RANGE" in found.stderr


def test_an_unknown_group(group: LocalGroup) -> None:
    found = dledger(group, "append", "x", "--group", "other", "--timeout", "2s")
    assert found.returncode != 0
    assert b"UNKNOWN_GROUP" in found.stderr
    assert found.stdout == b""


def test_an_entry_over_the_limit_is_definite(group: LocalGroup) -> None:
    found = dledger(group, "append", "-J", "-", stdin=b"x" * (4 * 1024 * 1024 + 1))
    assert found.returncode == ExitCode.FAILED
    assert b"line 0: DEFINITE: UNEXPECTED_ARGUMENT" in found.stderr
    assert found.stdout == b""


def test_bench_against_the_group(group: LocalGroup) -> None:
    out = json.loads(ok(group, "bench", "--concurrency", "1,16", "--count", "200", "--warmup", "0s", "-o", "json"))
    assert out["fsync"] == "on (SYNC_FLUSH)"
    assert out["nodes_up"] == 3
    assert [run["acknowledged"] for run in out["runs"]] == [200, 200]
    assert all(run["failed"] == 0 and run["latency_ms"]["p50"] > 0 for run in out["runs"])
    assert "16 in flight" in ok(group, "bench", "--concurrency", "16", "--count", "50", "--warmup", "0s")
    offered = json.loads(ok(group, "bench", "--rate", "500/s", "--count", "100", "--warmup", "0s", "-o", "json"))
    assert offered["runs"][0]["acknowledged"] == 100
    batches = json.loads(
        ok(group, "bench", "--batch", "10", "--count", "100", "--concurrency", "2", "--warmup", "0s", "-o", "json")
    )
    assert batches["runs"][0]["acknowledged"] == 100


def test_log_verify_and_dump_while_the_node_runs(group: LocalGroup) -> None:
    folder = str(group.nodes["n0"].data_dir)
    assert ok(group, "log", "verify", folder).splitlines()[-1].startswith("PASS  ")
    dumped = rows(ok(group, "log", "dump", folder, "-J"))
    read = rows(ok(group, "tail", "-J", "--all-types"))
    assert [row["index"] for row in dumped] == list(range(len(dumped)))
    assert dumped[: len(read) - 5] == read[: len(dumped)][: len(read) - 5]


def test_append_stops_when_nobody_reads_its_acknowledgements(group: LocalGroup, tmp_path: Path) -> None:
    """``… | head -1``: no traceback, not all of the input appended, and not exit code 0."""
    (tmp_path / "input").write_bytes(b"x\n" * 300_000)
    errors = tmp_path / "errors"
    with open(tmp_path / "input", "rb") as source, open(errors, "wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "dledger", "append", "-J"],
            stdin=source, stdout=subprocess.PIPE, stderr=sink, cwd=REPOSITORY, env=environment(group),
        )  # fmt: skip
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["line"] == 0
        process.stdout.close()
        assert process.wait(60) == ExitCode.FAILED
    assert errors.read_bytes() == b""


# ---------------------------------------------------------------- groups that are hurt


def test_append_rides_out_kill_nine_of_the_leader(own_group: LocalGroup) -> None:
    """Every line is acknowledged once, in order, and stands in the log once, though the leader dies in between."""
    lines = [b"line %d" % n for n in range(3000)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dledger", "append", "-J", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env=environment(own_group),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    acked: list[dict] = []
    half_way = threading.Event()

    def collect() -> None:
        assert process.stdout is not None
        for row in process.stdout:
            acked.append(json.loads(row))
            if len(acked) >= 1000:
                half_way.set()

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        process.stdin.write(b"\n".join(lines[:1500]) + b"\n")
        process.stdin.flush()
        assert half_way.wait(60)
        leader = asyncio.run(own_group.leader())
        assert leader is not None
        process.stdin.write(b"\n".join(lines[1500:2000]) + b"\n")
        process.stdin.flush()
        own_group.send_signal(leader, signal.SIGKILL)
        process.stdin.write(b"\n".join(lines[2000:]))
        process.stdin.close()
        collector.join(90)
        errors = process.stderr.read() if process.stderr else b""
        assert process.wait(90) == 0, errors
    finally:
        process.kill()
        process.wait()
        collector.join(10)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    assert sorted(row["line"] for row in acked) == list(range(len(lines)))
    read = rows(ok(own_group, "tail", "-J"))
    assert [row["body"].encode() for row in read] == lines
    index_of = {row["line"]: row["index"] for row in acked}
    assert [index_of[n] for n in range(len(lines))] == [row["index"] for row in read]


def test_without_a_quorum_everything_says_three(own_group: LocalGroup) -> None:
    ok(own_group, "append", "before")
    leader = asyncio.run(own_group.leader())
    for node in [node for node in own_group.nodes if node != leader]:
        asyncio.run(own_group.kill(node))
    began = time.monotonic()
    status = dledger(own_group, "status", "-o", "json")
    assert time.monotonic() - began < 5
    assert status.returncode == ExitCode.NO_QUORUM
    assert [node["up"] for node in json.loads(status.stdout)["nodes"]].count(False) == 2
    lost = dledger(own_group, "append", "-J", "-", "--timeout", "1s", stdin=b"x\n")
    assert lost.returncode == ExitCode.NO_QUORUM, lost
    assert b"line 0: " in lost.stderr
    assert lost.stdout == b""
    assert dledger(own_group, "get", "0", "--timeout", "1s").returncode == ExitCode.NO_QUORUM


def test_start_refuses_a_folder_in_use_a_port_in_use_and_another_nodes_folder(
    own_group: LocalGroup, tmp_path: Path
) -> None:
    node = own_group.nodes["n0"]
    conf = str(node.conf_path)
    locked = dledger(own_group, "start", "-c", conf, "-D", "bindPort=0")
    assert locked.returncode == ExitCode.FAILED
    assert str(node.pid).encode() in locked.stderr, locked.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        in_use = dledger(
            own_group, "start", "-c", conf, "-D", f"bindPort={port}", "-D", f"storePathRootDir={tmp_path}/x"
        )
    assert in_use.returncode == ExitCode.FAILED
    assert str(port).encode() in in_use.stderr
    asyncio.run(own_group.stop())
    node.data_dir.rename(node.data_dir.with_name("dledger-n1x"))
    own_group.nodes["n1"].data_dir.rename(node.data_dir)
    foreign = dledger(own_group, "start", "-c", conf)
    assert foreign.returncode == ExitCode.FAILED
    assert b"n1" in foreign.stderr
    assert b"Traceback" not in locked.stderr + in_use.stderr + foreign.stderr


def test_sigterm_ends_a_node_with_zero_and_takes_the_pid_file_away(tmp_path: Path) -> None:
    pid_file = tmp_path / "run" / "node.pid"
    process = subprocess.Popen(
        [sys.executable, "-m", "dledger", "start", "-D", "group=g", "-D", "selfId=n0", "-D", "peers=n0-127.0.0.1:0",
         "-D", f"storePathRootDir={tmp_path}", "--pid-file", str(pid_file)],
        stderr=subprocess.PIPE, cwd=REPOSITORY, env=CLEAN,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        ready = next(event for event in events if event["event"] == "ready")
        assert ready["pid"] == process.pid
        assert (ready["group_id"], ready["node_id"]) == ("g", "n0")
        assert pid_file.read_text() == f"{process.pid}\n"
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(30) == 0
        assert not pid_file.exists()
    finally:
        process.kill()
        process.communicate()


def test_a_terminated_bench_leaves_no_node_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dledger", "bench", "--for", "60s", "--data-dir", str(tmp_path)],
        stderr=subprocess.DEVNULL, cwd=REPOSITORY, env=CLEAN,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/n2.log")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running_from(tmp_path) > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == ExitCode.INTERRUPTED
    finally:
        process.kill()
        process.wait()
    assert running_from(tmp_path) == 0
    assert not list(tmp_path.iterdir())


def running_from(directory: Path) -> int:
    """How many nodes run on configuration files below ``directory``."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            count += f"{directory}/".encode() in entry.read_bytes()
        except OSError:
            # It ended while we looked.
            continue
    return count


@pytest.mark.parametrize("count", [1, 2, 400])
def test_the_quick_start_passes_on_files_of_any_length(count: int, tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_bytes(b"".join(b"line %d\n" % (n // 2) for n in range(count)))
    found = subprocess.run(
        [sys.executable, "-m", "dledger.quickstart", str(file), "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=CLEAN,
        timeout=90,
        check=False,
    )
    assert found.returncode == 0, found
    verdict = found.stdout.splitlines()[-1]
    assert verdict.startswith(
        f"PASS  {count} acknowledged, 0 lost, 0 duplicated, 0 reordered; 3 of 3 logs identical; write gap "
    )
    assert "kill -9 n" in found.stdout
    assert not (tmp_path / "data").exists()
