"""The rows of the suite: what is measured, beside whom, and what it is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dledger.bench.load import Load

__all__ = ["ASYNC", "ECHO", "OURS", "ROWS", "Figures", "Row"]

OURS: Final = "dledger"
ASYNC: Final = "async"
ECHO: Final = "echo"

Figures = Mapping[str, float]
"""The median of a row by contender: ``dledger``, ``async`` (ASYNC_FLUSH), ``echo``, or a peer's name."""


@dataclass(frozen=True, slots=True)
class Row:
    """``met`` says whether the target is met, None where what it is compared with was not measured.

    ``load``: put on the group and on every peer that knows it (``kind`` "appends") or on the group and the echo
    ("plain"); ``echo_load`` is what the echo gets where it knows no such load. The other kinds are measured each in its
    own way.
    """

    key: str
    title: str
    unit: str
    target: str
    met: Callable[[Figures], bool | None]
    load: Load | None = None
    kind: str = "appends"
    lower_is_better: bool = False
    echo_load: Load | None = None
    awake: bool = False
    """With processors that are kept from sleeping: by the setting in our group, by the suite for the peers."""


def _below_all(*peers: str) -> Callable[[Figures], bool | None]:
    def met(figures: Figures) -> bool | None:
        known = [figures[peer] for peer in peers if peer in figures]
        return figures[OURS] < min(known) if known else None

    return met


def _at_least(floor: float) -> Callable[[Figures], bool | None]:
    return lambda figures: figures[OURS] >= floor


def _at_most(ceiling: float) -> Callable[[Figures], bool | None]:
    return lambda figures: figures[OURS] <= ceiling


def _of_echo(share: float) -> Callable[[Figures], bool | None]:
    return lambda figures: figures[OURS] >= share * figures[ECHO] if ECHO in figures else None


ROWS: Final = (
    Row("one", "one append at a time, p50", "ms", "below etcd and RabbitMQ", _below_all("etcd", "rabbitmq"),
        Load("append", 1), lower_is_better=True),
    Row("one-awake", "the same, processors kept awake (`keepCpusAwake=busy`; for the peers, too)", "ms",
        "below etcd and RabbitMQ", _below_all("etcd", "rabbitmq"), Load("append", 1), lower_is_better=True, awake=True),
    Row("c64", "64 concurrent single appends", "/s", "≥ 30 000/s", _at_least(30_000), Load("append", 64)),
    Row("c1000", "1000 concurrent single appends", "/s", "≥ 100 000/s", _at_least(100_000), Load("append", 1000)),
    Row("batch", "64 batches of 64 in flight", "/s", "≥ 150 000/s", _at_least(150_000),
        Load("append-batch", 64, batch=64)),
    Row("batch-1k", "the same with 1 KiB", "/s", "≥ 70 000/s", _at_least(70_000),
        Load("append-batch", 64, 1024, batch=64)),
    Row("nats-1k", "1000 concurrent single appends of 1 KiB", "/s", "above NATS", lambda figures: (
        figures[OURS] > figures["nats"] if "nats" in figures else None), Load("append", 1000, 1024)),
    Row("unary", "plain gRPC `Append`, 64 callers, one connection", "/s", "≥ 85 % of the echo", _of_echo(0.85),
        Load("unary", 64), "plain"),
    Row("unary-64", "plain gRPC `Append`, 64 callers with a connection each", "/s", "≥ 85 % of the echo",
        _of_echo(0.85), Load("unary", 64, channels=64), "plain"),
    Row("get", "`get` of the client at random, 64 in flight", "/s", "≥ 85 % of the echo", _of_echo(0.85),
        Load("get", 64), "plain", echo_load=Load("unary-get", 64)),
    Row("get-plain", "plain gRPC `Get` at random, 64 in flight", "/s", "≥ 85 % of the echo", _of_echo(0.85),
        Load("unary-get", 64), "plain"),
    Row("read-warm", "sequential `Read`, in the page cache", "MB/s", "≥ 80 % of a gRPC stream", _of_echo(0.8),
        Load("unary-read", 1), "plain"),
    Row("read-cold", "sequential `Read`, from the disk", "MB/s", "≥ 80 % of a gRPC stream", _of_echo(0.8),
        Load("unary-read", 1), "plain"),
    Row("catch-up", "an empty follower catches up", "MB/s", "≥ 150 MB/s", _at_least(150), kind="catch-up"),
    Row("catch-up-loss", "appends lost meanwhile", "%", "< 30 %", lambda figures: figures[OURS] < 30,
        kind="catch-up", lower_is_better=True),
    Row("open-large", "opening the large store after kill -9", "s", "≤ 0.5 s", _at_most(0.5), kind="opening",
        lower_is_better=True),
    Row("open-small", "opening the small store after kill -9", "s", "≤ 0.5 s", _at_most(0.5), kind="opening",
        lower_is_better=True),
    Row("rss", "resident memory after the log was appended", "MiB", "≤ 120 MiB", _at_most(120), kind="memory",
        lower_is_better=True),
    Row("rss-overload", "growth of memory under ten times overload, first third to last", "MiB", "flat (≤ 8 MiB)",
        _at_most(8), kind="memory", lower_is_better=True),
    Row("follower-cpu", "CPU of a follower per entry, batches of 64", "µs", "≤ 3 µs", _at_most(3), kind="derived",
        lower_is_better=True),
    Row("idle", "idle CPU per node", "% of a core", "< 1 %", lambda figures: figures[OURS] < 1, kind="idle",
        lower_is_better=True),
)  # fmt: skip
"""In the order of the table."""
