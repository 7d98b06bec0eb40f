"""The broker's page for Prometheus under RocketMQ 5's metric names, so that dashboards made for RocketMQ keep working.

Everything but the latency of requests exists already and is read when somebody scrapes. Of the requests, one in
`RpcWatch.EVERY` is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final

from broker_adapter.broker.offsets import split_offset_key
from broker_adapter.remoting.codes import RequestCode
from broker_adapter.remoting.command import RemotingCommand
from dledger.metrics.http import HttpAnswer
from dledger.metrics.registry import CONTENT_TYPE, Family, Histogram, counter, gauge, histogram, render

if TYPE_CHECKING:
    from broker_adapter.broker.broker import Broker
    from broker_adapter.broker.clients import ClientInfo
    from broker_adapter.remoting.connection import RemotingConnection

__all__ = ["BrokerMetrics", "RpcWatch"]

_MILLISECONDS: Final = (1.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
_MAX_SERIES: Final = 256
_PERMISSIONS: Final = {"2": 2, "4": 4, "6": 6}


class RpcWatch:
    """Times one request in `EVERY`: from its decoding to the writing of its answer. A held pull counts as long polling.

    Invariant: at most `_MAX_OPEN` requests are being timed; one that is never answered is replaced in time.
    """

    EVERY: ClassVar[int] = 16
    _MAX_OPEN: ClassVar[int] = 1024

    def __init__(self) -> None:
        self.latency: dict[tuple[int, int], Histogram] = {}
        """(request code, response code) → milliseconds."""
        self._turn = 0
        self._open: dict[tuple[int, int], float] = {}

    def began(self, connection: RemotingConnection, request: RemotingCommand) -> None:
        """A request was decoded and goes to its handler."""
        self._turn += 1
        if self._turn >= self.EVERY:
            self._turn = 0
            if len(self._open) >= self._MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[id(connection), request.opaque] = monotonic()

    def ended(self, connection: RemotingConnection, request: RemotingCommand, response_code: int) -> None:
        """The answer to a request is being written."""
        if not self._open:
            return
        began = self._open.pop((id(connection), request.opaque), None)
        if began is None:
            return
        key = (request.code, response_code)
        measured = self.latency.get(key)
        if measured is None:
            if len(self.latency) >= _MAX_SERIES:
                return
            measured = self.latency[key] = Histogram(_MILLISECONDS)
        measured.observe((monotonic() - began) * 1000)


def _code_name(code: int) -> str:
    try:
        return RequestCode(code).name.lower()
    except ValueError:
        return str(code)


class BrokerMetrics:
    """The page of one started broker."""

    def __init__(self, broker: Broker, watch: RpcWatch) -> None:
        self._broker = broker
        self._watch = watch
        config = broker.config
        self._labels = {
            "cluster": config.broker_cluster_name,
            "node_type": "broker",
            "node_id": config.broker_name,
            "broker_id": "",
        }

    def answer(self) -> HttpAnswer:
        """Answer a scrape."""
        return HttpAnswer(200, render(self.families()), CONTENT_TYPE)

    def livez(self) -> HttpAnswer:
        """The loop turns and the store has not failed."""
        failure = self._broker.failure
        if failure is not None and failure.done():
            return HttpAnswer(503, b"the store has failed\n")
        return HttpAnswer(200, b"ok\n")

    def readyz(self) -> HttpAnswer:
        """A master is known: this broker, or one that requests are handed to."""
        if self.livez().status != 200:
            return self.livez()
        roles = self._broker.roles
        if roles.is_dledger and not roles.is_master and roles.master is None:
            return HttpAnswer(503, b"no master is known here\n")
        return HttpAnswer(200, b"ok\n")

    def families(self) -> Iterator[Family]:
        """Yield every metric of the broker."""
        self._labels["broker_id"] = str(self._broker.roles.broker_id)
        yield from self._messages()
        yield from self._store()
        yield from self._clients()
        yield from self._lag()
        yield from self._requests()

    def _gauge(self, name: str, text: str, value: float) -> Family:
        return gauge(name, text, self._labels, value)

    def _counter(self, name: str, text: str, value: float) -> Family:
        return counter(name, text, self._labels, value)

    def _messages(self) -> Iterator[Family]:
        stats = self._broker.context.stats
        taken = Family("rocketmq_messages_in_total", "counter", "Messages stored for producers, by topic.")
        for topic, number in sorted(stats.put_by_topic.items()):
            taken.add({**self._labels, "topic": topic}, number)
        yield taken
        given = Family("rocketmq_messages_out_total", "counter", "Messages handed to consumers, by topic and group.")
        for (group, topic), number in sorted(stats.consumed.items()):
            given.add({**self._labels, "topic": topic, "consumer_group": group}, number)
        yield given
        yield self._counter("rocketmq_throughput_in_total", "Bytes stored for producers.", stats.put_bytes)
        yield self._counter("rocketmq_throughput_out_total", "Bytes handed to consumers.", stats.get_bytes)
        yield self._counter("rocketmq_send_to_dlq_messages_total", "Messages given up.", stats.dead_letter_count)
        yield self._counter("rocketmq_broker_put_failed_total", "Sends that failed here.", stats.put_failed_count)

    def _store(self) -> Iterator[Family]:
        broker = self._broker
        store = broker.store
        size = store.max_physical_offset - store.min_physical_offset
        yield self._gauge("rocketmq_storage_size", "Bytes of the commit log that are there.", size)
        yield self._gauge(
            "rocketmq_storage_dispatch_behind_bytes",
            "Bytes committed and not yet in the queues.",
            store.dispatch_behind_bytes(),
        )
        yield self._gauge(
            "rocketmq_broker_permission",
            "2: writable, 4: readable, 6: both.",
            _PERMISSIONS.get(str(broker.config.broker_permission), 0),
        )
        yield self._gauge(
            "rocketmq_broker_is_master", "1 while this broker is the master (BID 0).", int(broker.roles.is_master)
        )
        yield self._gauge("rocketmq_topic_number", "Topics.", len(broker.topics.all()))
        groups = {group for group, _ in self._offsets()}
        yield self._gauge("rocketmq_consumer_group_number", "Groups that have committed an offset.", len(groups))

    def _clients(self) -> Iterator[Family]:
        table = self._broker.clients
        producers = Family("rocketmq_producer_connections", "gauge", "Connections of producers.")
        for labels, number in self._by_language([(c, "") for g in table.producers.values() for c in g.values()]):
            producers.add(labels, number)
        consumers = Family("rocketmq_consumer_connections", "gauge", "Connections of consumers, by group.")
        infos = [(info, group.name) for group in table.consumers.values() for info in group.clients.values()]
        for labels, number in self._by_language(infos):
            consumers.add(labels, number)
        yield from (producers, consumers)

    def _by_language(self, clients: list[tuple[ClientInfo, str]]) -> Iterator[tuple[dict[str, str], int]]:
        counts: dict[tuple[str, str, str], int] = {}
        for info, group in clients:
            key = (info.language, str(info.version), group)
            counts[key] = counts.get(key, 0) + 1
        for (language, version, group), number in sorted(counts.items()):
            labels = {**self._labels, "language": language.lower(), "version": version}
            yield ({**labels, "consumer_group": group} if group else labels), number

    def _offsets(self) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """Return (group, topic) → (queue, committed offset) of each."""
        found: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for key, offset in self._broker.offsets.table().items():
            parts = split_offset_key(key)
            if parts is not None:
                found.setdefault((parts[1], parts[0]), []).append((parts[2], offset))
        return found

    def _lag(self) -> Iterator[Family]:
        lag = Family("rocketmq_consumer_lag_messages", "gauge", "Messages stored and not yet consumed.")
        store = self._broker.store
        for (group, topic), queues in sorted(self._offsets().items()):
            behind = sum(max(store.max_offset(topic, queue) - offset, 0) for queue, offset in queues)
            lag.add({**self._labels, "topic": topic, "consumer_group": group}, behind)
        yield lag

    def _requests(self) -> Iterator[Family]:
        server = self._broker.remoting_server
        yield self._gauge("rocketmq_processor_watermark", "Requests being handled.", server.inflight_count)
        yield self._gauge("rocketmq_remoting_connections", "Connections that are open.", len(server.connections))
        yield self._counter(
            "rocketmq_remoting_connections_refused_total", "Refused for there being too many.", server.refused_count
        )
        acl = self._broker.acl
        if acl is not None:
            yield self._counter("rocketmq_acl_denied_total", "Requests refused by access control.", acl.denied_count)
        yield histogram(
            "rocketmq_rpc_latency",
            f"Milliseconds from a request to its answer; one request in {RpcWatch.EVERY} is timed.",
            [
                (
                    {
                        **self._labels,
                        "protocol_type": "remoting",
                        "request_code": _code_name(request),
                        "response_code": str(response),
                    },
                    measured,
                )
                for (request, response), measured in sorted(self._watch.latency.items())
            ],
        )
