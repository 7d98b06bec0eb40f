"""A work queue for plain threads: no asyncio anywhere.

    python examples/work_queue_blocking.py PEERS GROUP        (of a running group, see README)

Producers put jobs into the log; each acknowledged job is there once, whatever happens to the leader meanwhile. A
consumer reads from where it left off. How far it has come is its own to keep, best beside its results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from dledger import BlockingLedgerClient, connect_blocking


def produce(queue: BlockingLedgerClient, producer: int, count: int) -> None:
    """Put jobs, one after another; returns when a majority has them all."""
    for number in range(count):
        queue.append(f"job {number} of producer {producer}".encode())


def consume(queue: BlockingLedgerClient, start: int) -> Iterator[tuple[int, str]]:
    """Yield every job from ``start`` on, with the place to go on from after it."""
    for entry in queue.read(start):
        yield entry.index + 1, entry.body.decode()


def main(peers: str, group: str) -> None:
    with connect_blocking(peers, group=group, timeout=30) as queue:
        start = queue.commit_index() + 1
        with ThreadPoolExecutor() as threads:  # the client may be shared by any number of threads
            for _ in threads.map(lambda producer: produce(queue, producer, count=5), range(4)):
                pass
        done = 0
        for next_start, job in consume(queue, start):
            done += 1
            print(f"done: {job}; would go on at {next_start}")
        print(f"{done} jobs")


if __name__ == "__main__":
    main(*sys.argv[1:])
