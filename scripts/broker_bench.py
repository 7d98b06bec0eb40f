#!/usr/bin/env python3
"""Throughput through real brokers: sends a second, pull consumption in MB/s, and the CPU of each process.

python scripts/broker_bench.py [--mode dledger,sync,async] [--client cpp|own] [--seconds 5] [-o table|json]

Starts a name server and brokers as processes of their own below --data-dir: three on one replicated log (``dledger``,
fsync on a majority), or a master and a slave (``sync``: SYNC_MASTER, ``async``: ASYNC_MASTER). ``--client cpp`` drives
them with PyPI's ``rocketmq`` from the environment that tests/interop makes; ``own`` with this project's client. All of
it runs on one machine, so clients and brokers share its cores: the CPU columns say who used them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from dledger.local_group import free_ports  # noqa: E402 - works without an installation

HOST = "127.0.0.1"
CPP_PYTHON = REPOSITORY / ".venv-interop-cpp" / "bin" / "python"
WAIT_S = 60.0
QUEUES = 4


@dataclass(frozen=True)
class Row:
    """One measurement. CPU in microseconds a message: of the master, of all other brokers, of the client."""

    mode: str
    load: str
    threads: int
    batch: int
    size: int
    per_s: float
    mb_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    master_us: float
    others_us: float
    client_us: float


class Brokers:
    """A name server and the brokers of one mode, as processes of this script."""

    def __init__(self, root: Path, mode: str) -> None:
        self.root = root
        self.mode = mode
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        (port,) = free_ports(1)
        self.namesrv = f"{HOST}:{port}"
        self._spawn("namesrv", "broker_adapter.namesrv.main", "--port", str(port))
        common = f"brokerClusterName=Bench\nbrokerName=bench\nbrokerIP1={HOST}\nnamesrvAddr={self.namesrv}\n"
        self.ports: dict[str, int] = {}
        if mode == "dledger":
            peers = ";".join(f"n{n}-{HOST}:{p}" for n, p in enumerate(free_ports(3)))
            for number in range(3):
                own = f"enableDLegerCommitLog=true\ndLegerGroup=bench\ndLegerPeers={peers}\ndLegerSelfId=n{number}\n"
                self._start(f"n{number}", common + own)
        else:
            role = f"{mode.upper()}_MASTER"
            self._start("master", f"{common}brokerId=0\nbrokerRole={role}\nflushDiskType=ASYNC_FLUSH\n")
            self._start("slave", f"{common}brokerId=1\nbrokerRole=SLAVE\nflushDiskType=ASYNC_FLUSH\n")

    def _start(self, name: str, text: str) -> None:
        (port,) = free_ports(1)
        self.ports[name] = port
        conf = self.root / f"{name}.conf"
        conf.write_text(f"{text}listenPort={port}\nstorePathRootDir={self.root / name}\n", encoding="utf-8")
        self._spawn(name, "broker_adapter.broker.main", "-c", str(conf))

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )

    def admin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run mqadmin against this name server."""
        return subprocess.run(
            [sys.executable, "-m", "broker_adapter.admin", *arguments, "-n", self.namesrv],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    def master(self) -> str:
        """Return the name of the master once there is one, and in the classic modes once its slave has connected."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            rows = json.loads(self.admin("clusterList", "-o", "json").stdout or "[]")
            masters = [row["address"] for row in rows if row["brokerId"] == 0 and row["up"]]
            if masters and len(rows) == len(self.ports) and self._slave_connected(masters[0]):
                return next(n for n, port in self.ports.items() if masters[0].endswith(f":{port}"))
            for name, child in self.children.items():
                if child.poll() is not None:
                    raise click.ClickException(f"{name} has ended; see {self.root / name}.log")
            time.sleep(0.2)
        raise click.ClickException(f"no master after {WAIT_S:.0f} s; logs in {self.root}")

    def _slave_connected(self, master: str) -> bool:
        if self.mode == "dledger":
            return True
        found = json.loads(self.admin("haStatus", "-b", master, "-o", "json").stdout or "{}")
        return any(status["haConnectionInfo"] for status in found.values())

    def make_topic(self, topic: str) -> None:
        """Make a topic and wait until clients can see it."""
        self.admin("updateTopic", "-c", "Bench", "-t", topic, "-r", str(QUEUES), "-w", str(QUEUES))
        deadline = time.monotonic() + WAIT_S
        while topic not in self.admin("topicList").stdout.split():
            if time.monotonic() > deadline:
                raise click.ClickException(f"the topic was not registered; logs in {self.root}")
            time.sleep(0.1)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by broker."""
        tick = os.sysconf("SC_CLK_TCK")
        used = {}
        for name, child in self.children.items():
            fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
            used[name] = (int(fields[11]) + int(fields[12])) / tick
        return used

    def stop(self) -> None:
        """End what was started."""
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def measure(
    brokers: Brokers,
    master: str,
    client: str,
    load: str,
    topic: str,
    threads: int,
    seconds: float,
    batch: int,
    size: int,
) -> Row:
    """Run one load against the brokers."""
    python = str(CPP_PYTHON) if client == "cpp" else sys.executable
    script = str(REPOSITORY / "scripts" / "broker_bench_client.py")
    arguments = [client, load, brokers.namesrv, topic, str(threads), str(seconds), str(batch), str(size)]
    before = brokers.cpu_s()
    done = subprocess.run(
        [python, script, *arguments],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
        env={**os.environ, "HOME": str(brokers.root)},  # the C++ client writes logs there
    )
    after = brokers.cpu_s()
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise click.ClickException(f"the client failed: {done.stderr[-500:]}")
    found = json.loads(lines[-1])
    each = 1e6 / max(1, found["all_messages"])
    others = sum(after[name] - before[name] for name in after if name != master)
    return Row(
        brokers.mode, load, threads, batch, size, found["per_s"], found["mb_per_s"], found["p50_ms"], found["p99_ms"],
        found["failed"], round((after[master] - before[master]) * each, 1), round(others * each, 1),
        round(found["client_cpu_s"] * 1e6 / max(1, found["messages"]), 1),
    )  # fmt: skip


def show(row: Row) -> None:
    click.echo(
        f"{row.mode:8}{row.load:6}{row.threads:7}{row.batch:6}{row.size:6}{row.per_s:11.0f}{row.mb_per_s:9.1f}"
        f"{row.p50_ms:9.2f}{row.p99_ms:9.2f}{row.failed:7}{row.master_us:10.1f}{row.others_us:10.1f}{row.client_us:10.1f}"
    )


def run_mode(
    root: Path, mode: str, client: str, plan: list[tuple[str, int, int, int]], seconds: float, show_rows: bool
) -> list[Row]:
    """Start the brokers of a mode, run the plan's (load, threads, batch, size), end them."""
    brokers = Brokers(root, mode)
    try:
        master = brokers.master()
        brokers.make_topic("Send")
        brokers.make_topic("Pull")
        if any(load == "pull" for load, *_ in plan):
            size = next(size for load, *_, size in plan if load == "pull")
            measure(brokers, master, "own", "send", "Pull", 8, max(2.0, seconds / 2), 32, size)
        rows = []
        for load, threads, batch, size in plan:
            topic = "Pull" if load == "pull" else "Send"
            rows.append(measure(brokers, master, client, load, topic, threads, seconds, batch, size))
            if show_rows:
                show(rows[-1])
        return rows
    finally:
        brokers.stop()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


@click.command()
@click.option("--mode", "modes", default="dledger,sync,async", show_default=True)
@click.option("--client", type=click.Choice(["cpp", "own"]), default=None, help="Default: cpp where it is installed.")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.5), help="Of each measurement.")
@click.option("--threads", default="1,16,64", show_default=True)
@click.option("--batch", default="1,32", show_default=True, help="Messages a request.")
@click.option("--size", default=128, show_default=True, type=click.IntRange(1), help="Body bytes of sends.")
@click.option("--pull-size", default=1024, show_default=True, type=click.IntRange(0), help="Of consumption; 0: none.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(), help="Where the run's folder is made.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(
    modes: str, client: str | None, seconds: float, threads: str, batch: str, size: int, pull_size: int, data_dir: Path,
    output: str,
) -> None:  # fmt: skip
    """Measure brokers in each mode."""
    kind = client or ("cpp" if CPP_PYTHON.exists() else "own")
    plan = [("send", t, b, size) for b in numbers(batch) for t in numbers(threads)]
    if pull_size:
        plan.append(("pull", QUEUES, 1, pull_size))
    if output == "table":
        click.echo(f"client {kind}, {os.cpu_count()} cores, {seconds:g} s each; CPU in us a message")
        click.echo(
            "MODE    LOAD  THREADS BATCH  SIZE MESSAGES/s     MB/s   P50 ms   P99 ms FAILED"
            "    MASTER    OTHERS    CLIENT"
        )
    rows: list[Row] = []
    for mode in modes.split(","):
        if mode not in {"dledger", "sync", "async"}:
            raise click.UsageError(f"--mode {mode}: dledger, sync and async are there")
        data_dir.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="dledger-broker-bench-", dir=data_dir)).resolve()
        rows += run_mode(root, mode, kind, plan, seconds, output == "table")
        shutil.rmtree(root)
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
