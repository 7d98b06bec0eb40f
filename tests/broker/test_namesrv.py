"""Name server: registration, routes, who is master, liveness, KV, operators' commands."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_adapter.namesrv.kv import KvStore
from broker_adapter.namesrv.register_body import decode_register_body, encode_register_body
from broker_adapter.namesrv.route import DataVersion, Registration, RouteTable, StaleMasterError
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.errors import CommandError
from tests.broker.harness import HOST, eventually, name_server

TOPIC = {"readQueueNums": 4, "writeQueueNums": 3, "perm": 6, "topicSysFlag": 0}


def registration(address: str, broker_id: int, **changes: Any) -> Registration:
    values: dict[str, Any] = {
        "cluster": "C",
        "broker_name": "b",
        "address": address,
        "broker_id": broker_id,
        "ha_address": f"ha-{address}",
        "topics": {"T": TOPIC},
        "data_version": DataVersion(1, 1),
        **changes,
    }
    return Registration(**values)


def addresses(table: RouteTable, topic: str = "T") -> dict[str, str]:
    route = table.route(topic)
    assert route is not None
    return route["brokerDatas"][0]["brokerAddrs"]  # type: ignore[index, no-any-return]


# ---------------------------------------------------------------------- the table


def test_a_slave_learns_its_master() -> None:
    table = RouteTable()
    assert table.register(registration("s:1", 1), "ch2", 0).master_address == ""
    table.register(registration("m:1", 0), "ch1", 0)
    answer = table.register(registration("s:1", 1), "ch2", 0)
    assert (answer.master_address, answer.ha_address) == ("m:1", "ha-m:1")
    assert addresses(table) == {"0": "m:1", "1": "s:1"}


def test_only_a_masters_topics_count() -> None:
    table = RouteTable()
    table.register(registration("s:1", 1), "ch", 0)
    assert table.route("T") is None
    table.register(registration("m:1", 0), "ch1", 0)
    route = table.route("T")
    assert route is not None
    assert route["queueDatas"] == [
        {"brokerName": "b", "readQueueNums": 4, "writeQueueNums": 3, "perm": 6, "topicSysFlag": 0, "topicSynFlag": 0}
    ]


def test_a_switch_of_roles_leaves_one_master_and_no_address_twice() -> None:
    table = RouteTable()
    table.register(registration("a:1", 0, term=1), "a", 0)
    table.register(registration("b:1", 2, term=1), "b", 0)
    table.register(registration("b:1", 0, term=2), "b", 0)
    assert addresses(table) == {"0": "b:1"}
    table.register(registration("a:1", 1, term=2), "a", 0)
    assert addresses(table) == {"0": "b:1", "1": "a:1"}


def test_an_old_master_does_not_take_the_route_back() -> None:
    """Upstream's #1464: whoever registers last as 0 wins there."""
    table = RouteTable()
    table.register(registration("a:1", 0, term=1), "a", 0)
    table.register(registration("b:1", 0, term=2), "b", 0)
    with pytest.raises(StaleMasterError):
        table.register(registration("a:1", 0, term=1), "a", 0)
    assert addresses(table) == {"0": "b:1"}
    # Gone is gone: then an old one is better than none.
    table.unregister("b", "b:1")
    table.register(registration("a:1", 0, term=1), "a", 0)
    assert addresses(table) == {"0": "a:1"}


def test_a_former_slaves_topics_are_taken_when_it_becomes_master() -> None:
    table = RouteTable()
    table.register(registration("a:1", 0, topics={"T": TOPIC}), "a", 0)
    both = {"T": TOPIC, "U": TOPIC}
    version = DataVersion(2, 2)
    table.register(registration("b:1", 1, topics=both, data_version=version), "b", 0)
    assert table.route("U") is None
    table.register(registration("b:1", 0, topics=both, data_version=version), "b", 0)
    assert table.route("U") is not None


def test_wiped_write_permission_outlasts_the_next_registration() -> None:
    table = RouteTable()
    table.register(registration("a:1", 0), "a", 0)
    assert table.change_write_perm("b", False) == 1
    table.register(registration("a:1", 0), "a", 0)
    assert table.topics["T"]["b"].perm == 4
    table.change_write_perm("b", True)
    assert table.topics["T"]["b"].perm == 6


def test_unregistering_the_last_address_forgets_the_name() -> None:
    table = RouteTable()
    table.register(registration("a:1", 0), "a", 0)
    table.register(registration("b:1", 1), "b", 0)
    table.unregister("b", "a:1")
    assert addresses(table) == {"1": "b:1"}
    table.unregister("b", "b:1")
    assert table.route("T") is None
    assert (table.brokers, table.clusters, table.topics, table.live) == ({}, {}, {}, {})


def test_a_closed_channel_takes_only_its_own_addresses() -> None:
    table = RouteTable()
    table.register(registration("a:1", 0), "a", 0)
    table.register(registration("b:1", 1), "b", 0)
    # The broker has come back over a new connection; the old one's end means nothing any more.
    table.register(registration("a:1", 0), "a2", 0)
    assert table.channel_closed("a") == []
    assert table.channel_closed("a2") == ["a:1"]
    assert addresses(table) == {"1": "b:1"}


def test_expiry() -> None:
    table = RouteTable()
    table.register(registration("a:1", 0), "a", 0)
    table.register(registration("b:1", 1), "b", 500)
    assert table.expire(1000, 1000) == []
    assert table.expire(1001, 1000) == ["a:1"]
    assert addresses(table) == {"1": "b:1"}


def test_two_broker_names_share_a_topic() -> None:
    table = RouteTable()
    table.register(registration("a:1", 0), "a", 0)
    table.register(registration("x:1", 0, broker_name="b2"), "x", 0)
    route = table.route("T")
    assert route is not None
    assert [data["brokerName"] for data in route["brokerDatas"]] == ["b", "b2"]  # type: ignore[attr-defined]
    table.delete_topic("T", ["b"])
    assert list(table.topics["T"]) == ["b2"]
    table.delete_topic("T")
    assert table.route("T") is None
    table.delete_topic("T")


# ---------------------------------------------------------------------- the register body


def test_the_body_survives() -> None:
    body = encode_register_body({"T": TOPIC}, DataVersion(5, 6))
    assert decode_register_body(body, False) == ({"T": TOPIC}, DataVersion(5, 6))
    assert decode_register_body(b"", True) == ({}, DataVersion())


def test_upstreams_deflated_body() -> None:
    def part(data: bytes) -> bytes:
        return struct.pack(">i", len(data)) + data

    plain = part(b'{"counter":6,"timestamp":5}') + struct.pack(">i", 1) + part(b"T 4 3 6 SINGLE_TAG") + part(b"[]")
    topics, version = decode_register_body(zlib.compress(plain), True)
    assert version == DataVersion(5, 6)
    assert topics["T"]["writeQueueNums"] == 3


@given(st.binary(min_size=1, max_size=80), st.booleans(), st.booleans())
def test_garbage_bodies_are_refused(data: bytes, compressed: bool, deflate: bool) -> None:
    try:
        decode_register_body(zlib.compress(data) if deflate else data, compressed)
    except CommandError as error:
        assert error.code == ResponseCode.SYSTEM_ERROR


def test_a_deflated_bomb_is_refused() -> None:
    with pytest.raises(CommandError):
        decode_register_body(zlib.compress(b"\0" * (80 * 1024 * 1024)), True)


# ---------------------------------------------------------------------- key-value


def test_kv_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "namesrv" / "kvConfig.json"
    store = KvStore(path)
    store.put("n", "k", "v")
    store.put("n", "gone", "v")
    store.delete("n", "gone")
    assert KvStore(path).namespace("n") == {"k": "v"}
    assert json.loads(path.read_text()) == {"configTable": {"n": {"k": "v"}}}


# ---------------------------------------------------------------------- the server


class Registered:
    def __init__(self, address: str) -> None:
        self.address = address
        self.client = RemotingClient()

    async def ask(self, code: int, ext: dict[str, Any] | None = None, body: bytes = b"") -> RemotingCommand:
        return await self.client.invoke(self.address, RemotingCommand(int(code), ext or {}, body))

    async def register(self, address: str, broker_id: int, **ext: object) -> RemotingCommand:
        body = encode_register_body({"T": TOPIC}, DataVersion(1, 1))
        header = {
            "brokerName": "b",
            "brokerAddr": address,
            "clusterName": "C",
            "haServerAddr": f"ha-{address}",
            "brokerId": broker_id,
            "compressed": "false",
            "bodyCrc32": zlib.crc32(body) & 0x7FFFFFFF,
            **ext,
        }
        return await self.ask(RequestCode.REGISTER_BROKER, header, body)


@pytest.mark.asyncio
async def test_over_the_wire() -> None:
    async with name_server() as server:
        one = Registered(f"{HOST}:{server.port}")
        missing = await one.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"})
        assert missing.code == ResponseCode.TOPIC_NOT_EXIST
        assert (await one.register("m:1", 0)).code == 0
        slave = await one.register("s:1", 1)
        assert slave.ext == {"masterAddr": "m:1", "haServerAddr": "ha-m:1"}
        route = (await one.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"})).json_object()
        assert route["brokerDatas"] == [{"brokerName": "b", "cluster": "C", "brokerAddrs": {"0": "m:1", "1": "s:1"}}]
        info = (await one.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).json_object()
        assert info["clusterAddrTable"] == {"C": ["b"]}
        topics = (await one.ask(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)).json_object()
        assert topics["topicList"] == ["T"]
        by_cluster = (await one.ask(RequestCode.GET_TOPICS_BY_CLUSTER, {"cluster": "C"})).json_object()
        assert by_cluster["topicList"] == ["T"]
        system = (await one.ask(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS)).json_object()
        assert system["topicList"] == ["C", "b"]
        same = await one.ask(RequestCode.QUERY_DATA_VERSION, {"brokerAddr": "m:1"}, b'{"timestamp":1,"counter":1}')
        other = await one.ask(RequestCode.QUERY_DATA_VERSION, {"brokerAddr": "m:1"}, b'{"timestamp":1,"counter":2}')
        assert (same.text("changed"), other.text("changed")) == ("false", "true")
        wiped = await one.ask(RequestCode.WIPE_WRITE_PERM_OF_BROKER, {"brokerName": "b"})
        assert wiped.integer("wipeTopicCount") == 1
        added = await one.ask(RequestCode.ADD_WRITE_PERM_OF_BROKER, {"brokerName": "b"})
        assert added.integer("addTopicCount") == 1
        assert (await one.ask(RequestCode.DELETE_TOPIC_IN_NAMESRV, {"topic": "T"})).code == 0
        assert (await one.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"})).code == 17
        gone = await one.ask(RequestCode.UNREGISTER_BROKER, {"brokerName": "b", "brokerAddr": "m:1", "brokerId": 0})
        assert gone.code == 0
        await one.client.close()


@pytest.mark.asyncio
async def test_kv_and_order_configuration() -> None:
    async with name_server() as server:
        one = Registered(f"{HOST}:{server.port}")
        key = {"namespace": "ORDER_TOPIC_CONFIG", "key": "T"}
        assert (await one.ask(RequestCode.GET_KV_CONFIG, key)).code == ResponseCode.QUERY_NOT_FOUND
        assert (await one.ask(RequestCode.PUT_KV_CONFIG, {**key, "value": "b:4"})).code == 0
        assert (await one.ask(RequestCode.GET_KV_CONFIG, key)).text("value") == "b:4"
        registered = await one.register("m:1", 0)
        assert registered.json_object() == {"table": {"T": "b:4"}}
        route = (await one.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"})).json_object()
        assert route["orderTopicConf"] == "b:4"
        listed = await one.ask(RequestCode.GET_KVLIST_BY_NAMESPACE, {"namespace": "ORDER_TOPIC_CONFIG"})
        assert listed.json_object() == {"table": {"T": "b:4"}}
        assert (await one.ask(RequestCode.DELETE_KV_CONFIG, key)).code == 0
        assert (await one.ask(RequestCode.GET_KVLIST_BY_NAMESPACE, {"namespace": "x"})).code == 22
        await one.client.close()


@pytest.mark.asyncio
async def test_wrong_registrations_change_nothing() -> None:
    async with name_server() as server:
        one = Registered(f"{HOST}:{server.port}")
        assert (await one.register("m:1", 0, bodyCrc32=1)).code == ResponseCode.SYSTEM_ERROR
        assert (await one.register("m:1", 0, brokerId="x")).code == ResponseCode.SYSTEM_ERROR
        assert (await one.ask(RequestCode.REGISTER_BROKER, {"brokerName": "b"})).code == ResponseCode.SYSTEM_ERROR
        assert server.routes.brokers == {}
        await one.register("m:1", 0, term=3)
        assert (await one.register("old:1", 0, term=2)).code == ResponseCode.SYSTEM_ERROR
        assert server.routes.brokers["b"].addresses == {0: "m:1"}
        await one.client.close()


@pytest.mark.asyncio
async def test_a_broken_connection_takes_the_broker_out_at_once() -> None:
    async with name_server() as server:
        one = Registered(f"{HOST}:{server.port}")
        await one.register("m:1", 0)
        await one.client.close()
        await eventually(lambda: not server.routes.brokers)


@pytest.mark.asyncio
async def test_a_silent_broker_expires() -> None:
    async with name_server(broker_timeout_ms=50, scan_interval_ms=10) as server:
        one = Registered(f"{HOST}:{server.port}")
        await one.register("m:1", 0)
        await eventually(lambda: not server.routes.brokers)
        await one.client.close()
