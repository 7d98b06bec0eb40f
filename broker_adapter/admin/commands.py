"""The commands themselves."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from broker_adapter.admin.client import (
    AdminClient,
    BrokerAddress,
    NotFoundError,
    QueueRow,
    parse_consume_tps,
    parse_offset_table,
)
from broker_adapter.admin.main import EXIT_NOT_FOUND, cli, output_option, runs
from broker_adapter.admin.output import message_fields, print_json, print_table, time_text
from broker_adapter.message import Message, MessageFormatError, format_properties, parse_message_id
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.connection import format_address
from broker_adapter.remoting.errors import CommandError, RemotingError

__all__: list[str] = []

_TOOLS_GROUP = "TOOLS_CONSUMER"
_SEND_STATUS = {
    ResponseCode.SUCCESS: "SEND_OK",
    ResponseCode.FLUSH_DISK_TIMEOUT: "FLUSH_DISK_TIMEOUT",
    ResponseCode.FLUSH_SLAVE_TIMEOUT: "FLUSH_SLAVE_TIMEOUT",
    ResponseCode.SLAVE_NOT_AVAILABLE: "SLAVE_NOT_AVAILABLE",
}


async def _runtime(client: AdminClient, address: str) -> dict[str, str]:
    answer = await client.ask(address, RequestCode.GET_BROKER_RUNTIME_INFO)
    table = answer.json_object().get("table", {})
    return {str(key): str(value) for key, value in table.items()}


async def _targets(client: AdminClient, broker: str | None, cluster: str | None) -> list[BrokerAddress]:
    """Return the broker of ``-b`` or the masters of ``-c``."""
    if broker:
        return [BrokerAddress("", "", 0, broker)]
    if cluster:
        return await client.masters(cluster)
    raise click.UsageError("give a broker (-b) or a cluster (-c)")


async def _all_of(client: AdminClient, broker: str | None, cluster: str | None) -> list[BrokerAddress]:
    """Return the broker of ``-b`` or every broker of ``-c`` (of all clusters without one)."""
    return [BrokerAddress("", "", 0, broker)] if broker else await client.brokers(cluster)


# ---------------------------------------------------------------------- cluster and topics


def _load(table: dict[str, str], tps: str, queue: str) -> str:
    first = (table.get(tps, "0").split() or ["0"])[0]
    size = table.get(f"{queue}ThreadPoolQueueSize", "0")
    wait = table.get(f"{queue}ThreadPoolQueueHeadWaitTimeMills", "0")
    return f"{float(first):.2f}({size},{wait}ms)"


@cli.command("clusterList", help="List brokers by cluster: BID 0 is the master.")
@click.option("-c", "--clusterName", "cluster", help="Only this cluster.")
@output_option
@runs
async def cluster_list(client: AdminClient, cluster: str | None, output: str) -> None:
    rows: list[dict[str, Any]] = []
    for broker in await client.brokers(cluster):
        row: dict[str, Any] = {
            "cluster": broker.cluster,
            "brokerName": broker.broker_name,
            "brokerId": broker.broker_id,
            "address": broker.address,
            "up": True,
        }
        try:
            table = await _runtime(client, broker.address)
        except RemotingError as error:
            row.update(up=False, note=str(error))
            table = {}
        earliest = int(table.get("earliestMessageTimeStamp", "-1"))
        hours = (time.time() * 1000 - earliest) / 3_600_000 if earliest > 0 else 0.0
        row.update(
            version=table.get("brokerVersionDesc", ""),
            inTps=_load(table, "putTps", "send") if table else "",
            outTps=_load(table, "getTransferedTps", "pull") if table else "",
            pcWaitMs=table.get("pageCacheLockTimeMills", ""),
            hours=round(hours, 2),
            space=float(table.get("commitLogDiskRatio", "0") or 0),
        )
        rows.append(row)
    if output == "json":
        print_json(rows)
        return
    header = ["Cluster Name", "Broker Name", "BID", "Addr", "Version"]
    header += ["InTPS(LOAD)", "OutTPS(LOAD)", "PCWait(ms)", "Hour", "SPACE"]
    print_table(
        header,
        [
            [
                row["cluster"],
                row["brokerName"],
                row["brokerId"],
                row["address"],
                row["version"] if row["up"] else "DOWN",
                row["inTps"],
                row["outTps"],
                row["pcWaitMs"],
                f"{row['hours']:.2f}",
                f"{row['space']:.4f}",
            ]
            for row in rows
        ],
    )


@cli.command("topicList", help="List all topics that a broker has registered.")
@click.option("-c", "--clusterModel", "by_cluster", is_flag=True, help="With cluster and consumer groups.")
@output_option
@runs
async def topic_list(client: AdminClient, by_cluster: bool, output: str) -> None:
    answer = await client.ask_namesrv(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
    topics = sorted(answer.json_object().get("topicList") or [])
    if not by_cluster:
        if output == "json":
            print_json(topics)
        else:
            for topic in topics:
                click.echo(topic)
        return
    rows = []
    for topic in topics:
        for broker in await client.topic_brokers(topic):
            groups = await client.ask(broker.address, RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, {"topic": topic})
            names = groups.json_object().get("groupList") or [""]
            rows += [[broker.cluster, topic, name] for name in names]
    if output == "json":
        print_json([dict(zip(("cluster", "topic", "group"), row, strict=True)) for row in rows])
    else:
        print_table(["Cluster Name", "Topic", "Consumer Group"], rows)


@cli.command("updateTopic", help="Make or change a topic, at one broker (-b) or at all masters of a cluster (-c).")
@click.option("-b", "--brokerAddr", "broker")
@click.option("-c", "--clusterName", "cluster")
@click.option("-t", "--topic", required=True)
@click.option("-r", "--readQueueNums", "read", type=click.IntRange(0), default=8, show_default=True)
@click.option("-w", "--writeQueueNums", "write", type=click.IntRange(0), default=8, show_default=True)
@click.option("-p", "--perm", type=click.Choice(["2", "4", "6"]), default="6", show_default=True)
@click.option("-o", "--order", "order", type=click.Choice(["true", "false"]), default="false", show_default=True)
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@runs
async def update_topic(
    client: AdminClient,
    broker: str | None,
    cluster: str | None,
    topic: str,
    read: int,
    write: int,
    perm: str,
    order: str,
    output: str,
) -> None:
    done = []
    for target in await _targets(client, broker, cluster):
        await client.ask(
            target.address,
            RequestCode.UPDATE_AND_CREATE_TOPIC,
            {
                "topic": topic,
                "defaultTopic": "TBW102",
                "readQueueNums": read,
                "writeQueueNums": write,
                "perm": perm,
                "topicFilterType": "SINGLE_TAG",
                "topicSysFlag": 0,
                "order": order,
            },
        )
        done.append(target.address)
        if output == "table":
            click.echo(f"create topic to {target.address} success.")
    if output == "json":
        print_json({"topic": topic, "brokers": done})
        return
    click.echo(
        f"TopicConfig [topicName={topic}, readQueueNums={read}, writeQueueNums={write}, perm={perm}, order={order}]"
    )


@cli.command("deleteTopic", help="Remove a topic from all masters of a cluster and from the name servers.")
@click.option("-c", "--clusterName", "cluster", required=True)
@click.option("-t", "--topic", required=True)
@output_option
@runs
async def delete_topic(client: AdminClient, cluster: str, topic: str, output: str) -> None:
    for target in await client.masters(cluster):
        await client.ask(target.address, RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": topic})
    await client.ask_all_namesrv(RequestCode.DELETE_TOPIC_IN_NAMESRV, {"topic": topic})
    if output == "json":
        print_json({"topic": topic, "cluster": cluster, "deleted": True})
        return
    click.echo(f"delete topic [{topic}] from cluster [{cluster}] success.")
    click.echo(f"delete topic [{topic}] from NameServer success.")


@cli.command("topicRoute", help="Show who has a topic.")
@click.option("-t", "--topic", required=True)
@click.option("-l", "--list", "as_list", is_flag=True, help="One queue set a line.")
@output_option
@runs
async def topic_route(client: AdminClient, topic: str, as_list: bool, output: str) -> None:
    route = await client.route(topic)
    if not as_list or output == "json":
        print_json(route)
        return
    addresses = {data["brokerName"]: data for data in route["brokerDatas"]}
    rows = [
        [
            addresses[queues["brokerName"]]["cluster"],
            queues["brokerName"],
            json.dumps(addresses[queues["brokerName"]]["brokerAddrs"]),
            queues["readQueueNums"],
            queues["writeQueueNums"],
            queues["perm"],
        ]
        for queues in route["queueDatas"]
    ]
    print_table(["ClusterName", "BrokerName", "BrokerAddrs", "ReadQueue", "WriteQueue", "Perm"], rows)


@cli.command("topicStatus", help="Show each queue's range.")
@click.option("-t", "--topic", required=True)
@output_option
@runs
async def topic_status(client: AdminClient, topic: str, output: str) -> None:
    rows: list[QueueRow] = []
    for broker in await client.topic_brokers(topic):
        answer = await client.ask(broker.address, RequestCode.GET_TOPIC_STATS_INFO, {"topic": topic})
        rows += parse_offset_table(bytes(answer.body))
    if output == "json":
        print_json([{"brokerName": r.broker_name, "queueId": r.queue_id, **r.value} for r in rows])
        return
    print_table(
        ["Broker Name", "QID", "Min Offset", "Max Offset", "Last Updated"],
        [
            [
                row.broker_name,
                row.queue_id,
                row.value["minOffset"],
                row.value["maxOffset"],
                time_text(row.value["lastUpdateTimestamp"]),
            ]
            for row in rows
        ],
    )


# ---------------------------------------------------------------------- groups


@cli.command("updateSubGroup", help="Make or change a subscription group.")
@click.option("-b", "--brokerAddr", "broker")
@click.option("-c", "--clusterName", "cluster")
@click.option("-g", "--groupName", "group", required=True)
@click.option("-s", "--consumeEnable", "consume", type=bool, default=True, show_default=True)
@click.option("-m", "--consumeFromMinEnable", "from_min", type=bool, default=True, show_default=True)
@click.option("-d", "--consumeBroadcastEnable", "broadcast", type=bool, default=True, show_default=True)
@click.option("-q", "--retryQueueNums", "retry_queues", type=click.IntRange(0), default=1, show_default=True)
@click.option("-r", "--retryMaxTimes", "retry_times", type=click.IntRange(0), default=16, show_default=True)
@click.option("-i", "--brokerId", "broker_id", type=click.IntRange(0), default=0, show_default=True)
@click.option("-w", "--whichBrokerWhenConsumeSlowly", "slow_id", type=click.IntRange(0), default=1, show_default=True)
@output_option
@runs
async def update_sub_group(
    client: AdminClient,
    broker: str | None,
    cluster: str | None,
    group: str,
    consume: bool,
    from_min: bool,
    broadcast: bool,
    retry_queues: int,
    retry_times: int,
    broker_id: int,
    slow_id: int,
    output: str,
) -> None:
    value = {
        "groupName": group,
        "consumeEnable": consume,
        "consumeFromMinEnable": from_min,
        "consumeBroadcastEnable": broadcast,
        "retryQueueNums": retry_queues,
        "retryMaxTimes": retry_times,
        "brokerId": broker_id,
        "whichBrokerWhenConsumeSlowly": slow_id,
        "notifyConsumerIdsChangedEnable": True,
    }
    body = json.dumps(value).encode()
    for target in await _targets(client, broker, cluster):
        await client.ask(target.address, RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=body)
        if output == "table":
            click.echo(f"create subscription group to {target.address} success.")
    if output == "json":
        print_json(value)


async def _group_rows(client: AdminClient, group: str, topic: str | None) -> tuple[list[QueueRow], float]:
    """Return a group's rows from every master, and the messages a second that it is handed."""
    rows: list[QueueRow] = []
    tps = 0.0
    for broker in await client.brokers():
        if broker.is_master:
            answer = await client.ask(
                broker.address, RequestCode.GET_CONSUME_STATS, {"consumerGroup": group, "topic": topic or ""}
            )
            rows += parse_offset_table(bytes(answer.body))
            tps += parse_consume_tps(bytes(answer.body))
    return rows, tps


@cli.command("consumerProgress", help="Show how far consumer groups are; -g for one, queue by queue.")
@click.option("-g", "--groupName", "group")
@click.option("-t", "--topicName", "topic")
@output_option
@runs
async def consumer_progress(client: AdminClient, group: str | None, topic: str | None, output: str) -> int:
    if group is None:
        return await _all_progress(client, output)
    rows, tps = await _group_rows(client, group, topic)
    if not rows:
        raise NotFoundError(f'group "{group}" has consumed nothing and has no consumer')
    total = sum(row.value["brokerOffset"] - row.value["consumerOffset"] for row in rows)
    if output == "json":
        queues = [
            {
                "topic": row.topic,
                "brokerName": row.broker_name,
                "queueId": row.queue_id,
                **row.value,
                "diff": row.value["brokerOffset"] - row.value["consumerOffset"],
            }
            for row in rows
        ]
        print_json({"group": group, "consumeTps": tps, "diffTotal": total, "queues": queues})
        return 0
    print_table(
        ["Topic", "Broker Name", "QID", "Broker Offset", "Consumer Offset", "Diff", "LastTime"],
        [
            [
                row.topic,
                row.broker_name,
                row.queue_id,
                row.value["brokerOffset"],
                row.value["consumerOffset"],
                row.value["brokerOffset"] - row.value["consumerOffset"],
                time_text(row.value["lastTimestamp"]),
            ]
            for row in rows
        ],
    )
    click.echo("")
    click.echo(f"Consume TPS: {tps:.2f}")
    click.echo(f"Diff Total: {total}")
    return 0


async def _all_progress(client: AdminClient, output: str) -> int:
    """Every group that has a retry topic, as upstream finds them."""
    answer = await client.ask_namesrv(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
    topics = answer.json_object().get("topicList") or []
    groups = sorted(topic.removeprefix("%RETRY%") for topic in topics if topic.startswith("%RETRY%"))
    masters = [broker for broker in await client.brokers() if broker.is_master]
    rows: list[dict[str, Any]] = []
    for group in groups:
        queues, tps = await _group_rows(client, group, None)
        row: dict[str, Any] = {"group": group, "count": 0, "version": "", "type": "", "model": "", "tps": tps}
        for broker in masters:
            try:
                info = await client.ask(
                    broker.address, RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": group}
                )
            except CommandError:
                continue
            data = info.json_object()
            clients = {item["clientId"] for item in data.get("connectionSet") or []}
            row.update(count=max(row["count"], len(clients)), type=data.get("consumeType"))
            row.update(model=data.get("messageModel"))
        row["diffTotal"] = sum(q.value["brokerOffset"] - q.value["consumerOffset"] for q in queues)
        rows.append(row)
    if output == "json":
        print_json(rows)
    else:
        print_table(
            ["Group", "Count", "Version", "Type", "Model", "TPS", "Diff Total"],
            [
                [r["group"], r["count"], r["version"], r["type"], r["model"], f"{r['tps']:.2f}", r["diffTotal"]]
                for r in rows
            ],
        )
    return 0


# ---------------------------------------------------------------------- brokers


@cli.command("brokerStatus", help="Show a broker's figures.")
@click.option("-b", "--brokerAddr", "broker")
@click.option("-c", "--clusterName", "cluster")
@output_option
@runs
async def broker_status(client: AdminClient, broker: str | None, cluster: str | None, output: str) -> None:
    tables = {t.address: await _runtime(client, t.address) for t in await _all_of(client, broker, cluster)}
    if output == "json":
        print_json(tables)
        return
    for address, table in tables.items():
        prefix = "" if broker else f"{address:<24}"
        for key, value in sorted(table.items()):
            click.echo(f"{prefix}{key:<32}: {value}")


@cli.command("haStatus", help="Show masters and how far their slaves are behind.")
@click.option("-b", "--brokerAddr", "broker")
@click.option("-c", "--clusterName", "cluster")
@output_option
@runs
async def ha_status(client: AdminClient, broker: str | None, cluster: str | None, output: str) -> None:
    found = {}
    for target in await _all_of(client, broker, cluster):
        found[target.address] = (await client.ask(target.address, RequestCode.GET_BROKER_HA_STATUS)).json_object()
    if output == "json":
        print_json(found)
        return
    for address, status in found.items():
        click.echo(f"#BrokerAddr {address}  #Role {status['brokerRole']}")
        if status.get("dledger"):
            click.echo("  the log replicates itself: see dledgerStatus")
        elif status["master"]:
            click.echo(
                f"  #MaxOffset {status['masterCommitLogMaxOffset']}  #SlaveNum {len(status['haConnectionInfo'])}  "
                f"#InSyncNum {status['inSyncSlaveNums']}"
            )
            print_table(
                ["SlaveAddr", "SlaveAckOffset", "Diff", "InSync", "TransferredByteInSecond"],
                [
                    [s["addr"], s["slaveAckOffset"], s["diff"], s["inSync"], s["transferredByteInSecond"]]
                    for s in status["haConnectionInfo"]
                ],
            )
        else:
            info = status["haClientRuntimeInfo"]
            click.echo(
                f"  #MasterAddr {info['masterAddr']}  #Connected {info['connected']}  #MaxOffset {info['maxOffset']}"
            )


@cli.command("dledgerStatus", help="Show every node of the replicated logs: role, term, lag.")
@click.option("-b", "--brokerAddr", "broker")
@click.option("-c", "--clusterName", "cluster")
@output_option
@runs
async def dledger_status(client: AdminClient, broker: str | None, cluster: str | None, output: str) -> int:
    rows: list[dict[str, Any]] = []
    for target in await _all_of(client, broker, cluster):
        try:
            answer = await client.ask(target.address, RequestCode.GET_DLEDGER_STATUS)
            rows.append({"brokerAddr": target.address, "up": True, **answer.json_object()})
        except CommandError as error:
            if error.code != ResponseCode.REQUEST_CODE_NOT_SUPPORTED:
                raise
        except RemotingError as error:
            if broker:
                raise
            rows.append({"brokerAddr": target.address, "up": False, "note": str(error)})
    if not rows:
        click.echo("mqadmin: no broker here has a replicated log", err=True)
        return EXIT_NOT_FOUND
    lags: dict[tuple[str, str], int] = {}
    for row in rows:
        for peer in row.get("peers", []):
            if row.get("role") == "leader":
                lags[row["group"], peer["node_id"]] = peer["lag_entries"]
    for row in rows:
        if row["up"]:
            row["lagEntries"] = 0 if row["role"] == "leader" else lags.get((row["group"], row["node_id"]), -1)
    if output == "json":
        print_json(rows)
        return 0
    print_table(
        ["Group", "Node", "BID", "BrokerAddr", "Role", "Term", "Leader", "Last", "Commit", "Applied", "Lag", "Note"],
        [
            [
                row["group"],
                row["node_id"],
                row["brokerId"],
                row["brokerAddr"],
                row["role"].upper(),
                row["term"],
                row["leader_id"],
                row["last_index"],
                row["commit_index"],
                row["applied_index"],
                row["lagEntries"],
                row["roleNote"] or row["note"],
            ]
            if row["up"]
            else ["", "", "", row["brokerAddr"], "DOWN", "", "", "", "", "", "", row["note"]]
            for row in rows
        ],
    )
    return 0


# ---------------------------------------------------------------------- messages


def _show_message(message: Message, output: str) -> None:
    fields = message_fields(message)
    if output == "json":
        print_json(fields)
        return
    for label, value in fields.items():
        click.echo(f"{label + ':':<20} {value}")


@cli.command("queryMsgById", help="Show a message by its offset id.")
@click.option("-i", "--msgId", "message_id", required=True)
@click.option("-b", "--brokerAddr", "broker", help="Ask this broker instead of the one in the id.")
@output_option
@runs
async def query_by_id(client: AdminClient, message_id: str, broker: str | None, output: str) -> None:
    try:
        (host, port), offset = parse_message_id(message_id)
    except MessageFormatError as error:
        raise click.UsageError(str(error)) from None
    _show_message(await client.view_message(broker or format_address(host, port), offset), output)


@cli.command("queryMsgByKey", help="List the messages of a topic with a key.")
@click.option("-t", "--topic", required=True)
@click.option("-k", "--msgKey", "key", required=True)
@click.option("-c", "--maxNum", "count", type=click.IntRange(1), default=64, show_default=True)
@output_option
@runs
async def query_by_key(client: AdminClient, topic: str, key: str, count: int, output: str) -> int:
    found: list[Message] = []
    for broker in await client.topic_brokers(topic):
        found += await client.query_by_key(broker.address, topic, key, count)
    if output == "json":
        print_json([message_fields(message) for message in found])
    else:
        print_table(
            ["Message ID", "QID", "Offset"],
            [[m.get("UNIQ_KEY") or m.message_id, m.queue_id, m.queue_offset] for m in found],
        )
    return 0 if found else EXIT_NOT_FOUND


@cli.command("queryMsgByOffset", help="Show the message at an offset of a queue.")
@click.option("-t", "--topic", required=True)
@click.option("-b", "--brokerName", "broker_name", required=True)
@click.option("-i", "--queueId", "queue_id", type=click.IntRange(0), required=True)
@click.option("-o", "--offset", type=click.IntRange(0), required=True)
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@runs
async def query_by_offset(
    client: AdminClient, topic: str, broker_name: str, queue_id: int, offset: int, output: str
) -> int:
    for broker in await client.topic_brokers(topic):
        if broker.broker_name == broker_name:
            messages, _ = await client.pull(broker.address, _TOOLS_GROUP, topic, queue_id, offset, 1)
            if messages and messages[0].queue_offset == offset:
                _show_message(messages[0], output)
                return 0
            raise NotFoundError(f"no message at offset {offset} of queue {queue_id}")
    raise NotFoundError(f'broker "{broker_name}" does not have the topic')


@cli.command("sendMessage", help="Send one message.")
@click.option("-t", "--topic", required=True)
@click.option("-p", "--body", required=True)
@click.option("-k", "--key", "keys", default="")
@click.option("-c", "--tags", default="")
@click.option("-b", "--broker", "broker_name", help="Broker name.")
@click.option("-i", "--qid", "queue_id", type=click.IntRange(0))
@output_option
@runs
async def send_message(
    client: AdminClient,
    topic: str,
    body: str,
    keys: str,
    tags: str,
    broker_name: str | None,
    queue_id: int | None,
    output: str,
) -> int:
    try:
        brokers = [b for b in await client.topic_brokers(topic) if broker_name in {None, b.broker_name}]
    except NotFoundError:
        brokers = [b for b in await client.topic_brokers("TBW102") if broker_name in {None, b.broker_name}]
    if not brokers:
        raise NotFoundError(f'broker "{broker_name}" does not have the topic')
    target = brokers[0]
    properties = {name: value for name, value in (("KEYS", keys), ("TAGS", tags)) if value}
    answer = await client.ask(
        target.address,
        RequestCode.SEND_MESSAGE_V2,
        {
            "a": "TOOLS_PRODUCER",
            "b": topic,
            "c": "TBW102",
            "d": 4,
            "e": -1 if queue_id is None else queue_id,
            "f": 0,
            "g": int(time.time() * 1000),
            "h": 0,
            "i": format_properties(properties).decode(),
            "j": 0,
            "k": False,
            "l": 16,
            "m": False,
        },
        body.encode(),
        accept=frozenset(int(code) for code in _SEND_STATUS),
    )
    status = _SEND_STATUS[ResponseCode(answer.code)]
    row = [target.broker_name, answer.integer("queueId"), status, answer.text("msgId")]
    if output == "json":
        row_names = ("brokerName", "queueId", "sendResult", "msgId")
        print_json({**dict(zip(row_names, row, strict=True)), "queueOffset": answer.integer("queueOffset")})
    else:
        print_table(["Broker Name", "QID", "Send Result", "MsgId"], [row])
    return 0


async def _read_queue(
    client: AdminClient, address: str, group: str, topic: str, queue_id: int, offset: int | None, left: int
) -> list[Message]:
    """Return up to ``left`` messages of a queue from ``offset`` (its start without one) to its present end."""
    first = await client.ask(address, RequestCode.GET_MIN_OFFSET, {"topic": topic, "queueId": queue_id})
    last = await client.ask(address, RequestCode.GET_MAX_OFFSET, {"topic": topic, "queueId": queue_id})
    at, end = max(first.integer("offset"), offset or 0), last.integer("offset")
    found: list[Message] = []
    while at < end and len(found) < left:
        messages, at = await client.pull(address, group, topic, queue_id, at, min(32, left - len(found)))
        found += messages
        if not messages and at >= end:
            break
    return found[:left]


@cli.command("consumeMessage", help="Print the messages of a topic, oldest first within a queue.")
@click.option("-t", "--topic", required=True)
@click.option("-b", "--brokerName", "broker_name")
@click.option("-i", "--queueId", "queue_id", type=click.IntRange(0))
@click.option("-o", "--offset", type=click.IntRange(0))
@click.option("-c", "--MessageNumber", "count", type=click.IntRange(1), default=128, show_default=True)
@click.option("-g", "--consumerGroup", "group", default=_TOOLS_GROUP, show_default=True)
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@runs
async def consume_message(
    client: AdminClient,
    topic: str,
    broker_name: str | None,
    queue_id: int | None,
    offset: int | None,
    count: int,
    group: str,
    output: str,
) -> None:
    if offset is not None and queue_id is None:
        raise click.UsageError("an offset (-o) needs a queue (-i)")
    route = await client.route(topic)
    nums = {data["brokerName"]: int(data["readQueueNums"]) for data in route["queueDatas"]}
    left = count
    for broker in await client.topic_brokers(topic):
        if broker_name not in {None, broker.broker_name}:
            continue
        queues = range(nums.get(broker.broker_name, 0)) if queue_id is None else [queue_id]
        for number in queues:
            if left <= 0:
                return
            messages = await _read_queue(client, broker.address, group, topic, number, offset, left)
            left -= len(messages)
            for message in messages:
                if output == "json":
                    click.echo(json.dumps(message_fields(message), ensure_ascii=False))
                else:
                    body = message.body.decode("utf-8", "replace")
                    click.echo(f"MSGID: {message.message_id} {message.topic} {message.queue_id} BODY: {body}")


def _timestamp(text: str) -> int:
    """Read ``now``, ``-1``, milliseconds, or ``yyyy-MM-dd#HH:mm:ss:SSS`` (upstream's form)."""
    if text in {"now", "currentTimeMillis"}:
        return int(time.time() * 1000)
    try:
        return int(text)
    except ValueError:
        pass
    day, _, rest = text.partition("#")
    clock, _, millis = rest.rpartition(":")
    try:
        at = time.mktime(time.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S"))
        return int(at * 1000) + int(millis)
    except ValueError:
        raise click.UsageError(f"-s {text}: write now, -1, milliseconds or yyyy-MM-dd#HH:mm:ss:SSS") from None


@cli.command("resetOffsetByTime", help="Set a group's offsets in a topic to a time.")
@click.option("-g", "--group", required=True)
@click.option("-t", "--topic", required=True)
@click.option("-s", "--timestamp", "when", required=True, help="now, -1 (the end), ms, or yyyy-MM-dd#HH:mm:ss:SSS")
@click.option("-f", "--force", type=bool, default=True, show_default=True, help="Also forwards.")
@output_option
@runs
async def reset_offset_by_time(
    client: AdminClient, group: str, topic: str, when: str, force: bool, output: str
) -> None:
    timestamp = _timestamp(when)
    rows: list[QueueRow] = []
    for broker in await client.topic_brokers(topic):
        answer = await client.ask(
            broker.address,
            RequestCode.INVOKE_BROKER_TO_RESET_OFFSET,
            {"topic": topic, "group": group, "timestamp": timestamp, "isForce": force},
        )
        rows += parse_offset_table(bytes(answer.body))
    if output == "json":
        print_json([{"brokerName": r.broker_name, "queueId": r.queue_id, "offset": r.value} for r in rows])
        return
    click.echo(
        f"rollback consumer offset by specified group[{group}], topic[{topic}], force[{force}], timestamp[{when}]"
    )
    print_table(["brokerName", "queueId", "offset"], [[r.broker_name, r.queue_id, r.value] for r in rows])
