#!/usr/bin/env python3
"""The load of scripts/broker_bench.py, a process of its own: one measurement, one JSON line on standard output.

broker_bench_client.py KIND LOAD NAMESRV TOPIC THREADS SECONDS [BATCH SIZE]

KIND ``cpp``: PyPI's ``rocketmq`` (Apache's C++ client), with whose interpreter this file is then run; ``own``: this
project's remoting client. LOAD ``send``: BATCH messages of SIZE bytes a request; ``pull``: read every queue from its
start again and again.
"""

# ruff: noqa: PLC0415 - each kind of client is imported where it is used: the other may not be installed

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PULL_COUNT = 32
WARM_UP_S = 1.0
"""The C++ client makes its one connection under a lock with a time-out: with many threads, some first sends fail."""


class Tally:
    """What one thread did."""

    def __init__(self) -> None:
        self.messages = 0
        self.total = 0  # with those of warming up
        self.bytes = 0
        self.failed = 0
        self.latencies: list[float] = []


def report(tallies: list[Tally], seconds: float, cpu_s: float) -> None:
    """Print the sum of all threads. Latencies in ms, one for each request."""
    latencies = sorted(value for tally in tallies for value in tally.latencies) or [0.0]
    messages = sum(tally.messages for tally in tallies)
    everything = sum(max(tally.total, tally.messages) for tally in tallies)

    def quantile(part: float) -> float:
        return round(latencies[min(len(latencies) - 1, int(part * len(latencies)))] * 1000, 2)

    line = {
        "messages": messages,
        "all_messages": everything,
        "per_s": round(messages / seconds, 1),
        "mb_per_s": round(sum(tally.bytes for tally in tallies) / seconds / 1e6, 2),
        "failed": sum(tally.failed for tally in tallies),
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
        "seconds": round(seconds, 2),
        "client_cpu_s": round(cpu_s, 2),
    }
    print(json.dumps(line), flush=True)


def run_threads(work: list[threading.Thread], tallies: list[Tally], seconds: float, stop: threading.Event) -> None:
    """Run the threads, and report what they did in ``seconds`` after a second of warming up."""
    for thread in work:
        thread.start()
    time.sleep(WARM_UP_S)
    began, cpu = time.monotonic(), time.process_time()
    first = [(tally.messages, tally.bytes, tally.failed, len(tally.latencies)) for tally in tallies]
    time.sleep(seconds)
    took, used = time.monotonic() - began, time.process_time() - cpu
    last = [(tally.messages, tally.bytes, tally.failed, len(tally.latencies)) for tally in tallies]
    stop.set()
    for thread in work:
        thread.join(10)
    for tally, before, after in zip(tallies, first, last, strict=True):
        tally.total = tally.messages
        tally.messages, tally.bytes, tally.failed = (after[n] - before[n] for n in range(3))
        tally.latencies = tally.latencies[before[3] : after[3]]
    report(tallies, took, used)


# ---------------------------------------------------------------------- the C++ client


def cpp_send(namesrv: str, topic: str, threads: int, seconds: float, batch: int, size: int) -> None:
    """Synchronous sends from ``threads`` threads over one producer, as an application would."""
    from rocketmq.client import Message, Producer

    producer = Producer(f"bench-{threads}-{batch}", timeout=10_000)
    producer.set_namesrv_addr(namesrv)
    producer.start()
    body = bytes(index % 95 + 32 for index in range(size))
    stop = threading.Event()
    tallies = [Tally() for _ in range(threads)]

    def message() -> Message:
        made = Message(topic)
        made.set_body(body)
        return made

    def work(tally: Tally) -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                if batch > 1:
                    producer.send_batch([message() for _ in range(batch)])
                else:
                    producer.send_sync(message())
            except Exception as error:
                tally.failed += 1
                if tally.failed == 1:
                    print(repr(error), file=sys.stderr)
                continue
            tally.latencies.append(time.monotonic() - began)
            tally.messages += batch
            tally.bytes += batch * size

    run_threads([threading.Thread(target=work, args=(t,), daemon=True) for t in tallies], tallies, seconds, stop)


def cpp_pull(namesrv: str, topic: str, threads: int, seconds: float) -> None:
    """Synchronous pulls, a thread for each of up to ``threads`` queues."""
    from rocketmq.client import PullConsumer
    from rocketmq.ffi import _CMessageQueue, _CPullStatus, dll

    consumer = PullConsumer("bench-pull")
    consumer.set_namesrv_addr(namesrv)
    consumer.start()
    queues = ctypes.POINTER(_CMessageQueue)()
    count = ctypes.c_int()
    dll.FetchSubscriptionMessageQueues(consumer._handle, topic.encode(), ctypes.pointer(queues), ctypes.pointer(count))
    stop = threading.Event()
    tallies = [Tally() for _ in range(min(threads, count.value))]

    def work(number: int, tally: Tally) -> None:
        queue, offset = queues[number], 0
        while not stop.is_set():
            began = time.monotonic()
            found = dll.Pull(consumer._handle, ctypes.pointer(queue), b"*", ctypes.c_longlong(offset), PULL_COUNT)
            if found.pullStatus == _CPullStatus.FOUND:
                tally.latencies.append(time.monotonic() - began)
                tally.messages += found.size
                tally.bytes += found.size * dll.GetMessageStoreSize(found.msgFoundList[0])
                offset = found.nextBeginOffset
            elif found.pullStatus == _CPullStatus.NO_NEW_MSG:
                offset = 0
            else:
                tally.failed += 1
            dll.ReleasePullResult(found)

    workers = [threading.Thread(target=work, args=(n, t), daemon=True) for n, t in enumerate(tallies)]
    run_threads(workers, tallies, seconds, stop)


# ---------------------------------------------------------------------- this project's client


async def own(load: str, namesrv: str, topic: str, workers: int, seconds: float, batch: int, size: int) -> None:
    """Send or pull with ``workers`` requests in flight over one connection for each broker."""
    sys.path.insert(0, str(REPOSITORY))
    from broker_adapter.message import join_batch
    from broker_adapter.remoting.client import RemotingClient
    from broker_adapter.remoting.codes import RequestCode
    from broker_adapter.remoting.command import RemotingCommand

    client = RemotingClient()
    answer = await client.invoke(
        namesrv, RemotingCommand(int(RequestCode.GET_ROUTEINFO_BY_TOPIC), {"topic": topic}), 5000
    )
    route = json.loads(bytes(answer.body))
    masters = {data["brokerName"]: data["brokerAddrs"]["0"] for data in route["brokerDatas"]}
    queues = [
        (masters[data["brokerName"]], number) for data in route["queueDatas"] for number in range(data["readQueueNums"])
    ]
    body = bytes(index % 95 + 32 for index in range(size))
    payload = join_batch([(0, body, b"")] * batch) if batch > 1 else body
    tallies = [Tally() for _ in range(workers if load == "send" else min(workers, len(queues)))]
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    def send_request(number: int) -> RemotingCommand:
        ext = {
            "a": "bench", "b": topic, "c": "TBW102", "d": "4", "e": str(number), "f": "0", "h": "0", "i": "",
            "g": str(int(time.time() * 1000)), "j": "0", "k": "false", "l": "16", "m": "true" if batch > 1 else "false",
        }  # fmt: skip
        code = RequestCode.SEND_BATCH_MESSAGE if batch > 1 else RequestCode.SEND_MESSAGE_V2
        return RemotingCommand(int(code), ext, payload)

    async def send(number: int, tally: Tally) -> None:
        while loop.time() < end:
            address, queue = queues[number % len(queues)]
            number += 1
            began = loop.time()
            sent = await client.invoke(address, send_request(queue), 10_000)
            tally.latencies.append(loop.time() - began)
            if sent.code:
                tally.failed += 1
            else:
                tally.messages += batch
                tally.bytes += batch * size

    async def pull(number: int, tally: Tally) -> None:
        address, queue = queues[number]
        offset = 0
        while loop.time() < end:
            ext = {
                "consumerGroup": "bench", "topic": topic, "queueId": str(queue), "queueOffset": str(offset),
                "maxMsgNums": str(PULL_COUNT), "sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0",
                "subscription": "*", "subVersion": "1", "expressionType": "TAG",
            }  # fmt: skip
            began = loop.time()
            found = await client.invoke(address, RemotingCommand(int(RequestCode.PULL_MESSAGE), ext), 10_000)
            if found.code:
                offset = 0
                continue
            tally.latencies.append(loop.time() - began)
            following = found.integer("nextBeginOffset")
            tally.messages += following - offset
            tally.bytes += len(found.body)
            offset = following

    began, cpu = loop.time(), time.process_time()
    await asyncio.gather(*((send if load == "send" else pull)(n, t) for n, t in enumerate(tallies)))
    report(tallies, loop.time() - began, time.process_time() - cpu)
    await client.close()


def main(arguments: list[str]) -> None:
    """Run one measurement."""
    kind, load, namesrv, topic, threads, seconds, *more = arguments
    batch, size = (int(more[0]), int(more[1])) if more else (1, 128)
    if kind == "own":
        asyncio.run(own(load, namesrv, topic, int(threads), float(seconds), batch, size))
    elif load == "send":
        cpp_send(namesrv, topic, int(threads), float(seconds), batch, size)
    else:
        cpp_pull(namesrv, topic, int(threads), float(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
    # The C++ library's threads may take long to end.
    os._exit(0)
