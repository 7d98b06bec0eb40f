"""The broker's file: upstream's keys and defaults, every mistake at once with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_adapter.broker.manage import effective_properties
from broker_adapter.config import KEYS, BrokerConfig, BrokerRole, FlushDiskType
from broker_adapter.config.loader import dledger_config
from dledger.config.accepted import BROKER_KEYS
from dledger.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = {
    "bindAddress", "physicalMemoryBytes", "masterPromotionWait", "forwardTimeout", "forwardMaxPending", "logLevel",
    "logFormat", "channelExpiredTimeout", "aclFile", "maxConnections",
}  # fmt: skip


def written(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "broker.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def problems(tmp_path: Path, *lines: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        BrokerConfig.from_file(written(tmp_path, *lines))
    return [problem.replace(str(tmp_path), "") for problem in caught.value.problems]


def test_defaults_are_upstreams() -> None:
    config = BrokerConfig()
    assert config.listen_port == 10911
    assert config.broker_cluster_name == "DefaultCluster"
    assert config.broker_role is BrokerRole.ASYNC_MASTER
    assert config.effective_flush_disk_type is FlushDiskType.ASYNC_FLUSH
    assert config.access_message_in_memory_max_ratio == 40
    assert config.slave_read_enable is False
    assert config.file_reserved_time_hours == 72
    assert config.max_message_size_bytes == 4 * 1024 * 1024
    assert config.message_delay_level.split()[2] == "10s"
    assert len(config.message_delay_level.split()) == 18
    assert config.default_topic_queue_count == 8
    assert config.ha_port == 10912
    assert config.ha_slave_fallbehind_max_bytes == 268_435_456
    assert config.sync_flush_timeout_ms == 5000
    assert config.slave_timeout_ms == 3000
    assert config.offset_flush_ms == 5000


def test_every_key_is_upstreams_or_declared_ours() -> None:
    upstream = BROKER_KEYS | {"storePathRootDir", "flushDiskType", "dLegerGroup", "dLegerPeers", "dLegerSelfId"}
    upstream |= {"deleteWhen", "shortPollingTimeMillis", "rebalanceLockMaxLiveTime", "flushDelayOffsetInterval"}
    unknown = {key.name for key in KEYS} - upstream - OURS
    assert unknown <= {
        "maxMessageSize", "messageDelayLevel", "maxHashSlotNum", "maxIndexNum", "messageIndexEnable",
        "mappedFileSizeCommitLog", "mappedFileSizeConsumeQueue", "autoCreateTopicEnable",
        "autoCreateSubscriptionGroup", "defaultTopicQueueNums", "registerNameServerPeriod",
        "flushConsumerOffsetInterval", "defaultQueryMaxNum",
        "metricsExporterType", "metricsPromExporterPort", "metricsPromExporterHost",
    }, unknown  # fmt: skip
    assert len({name for key in KEYS for name in key.names}) == sum(len(key.names) for key in KEYS)


def test_a_file_as_people_write_it(tmp_path: Path) -> None:
    config = BrokerConfig.from_file(
        written(
            tmp_path,
            "# a comment",
            "brokerClusterName = C1",
            "brokerName=a",
            "brokerId=1",
            "brokerRole=SLAVE",
            "flushDiskType=sync_flush",
            "namesrvAddr=127.0.0.1:1;127.0.0.2:2",
            "slaveReadEnable=TRUE",
            "maxMessageSize=1MiB",
            "sendMessageThreadPoolNums=16",
        )
    )
    assert config.broker_cluster_name == "C1"
    assert config.broker_role is BrokerRole.SLAVE
    assert config.effective_flush_disk_type is FlushDiskType.SYNC_FLUSH
    assert config.namesrv_addr == ("127.0.0.1:1", "127.0.0.2:2")
    assert config.slave_read_enable is True
    assert config.max_message_size_bytes == 1024 * 1024
    assert [note.rpartition(":")[2] for note in config.notes] == [" sendMessageThreadPoolNums has no effect here"]


def test_every_mistake_at_once_with_its_place(tmp_path: Path) -> None:
    assert problems(
        tmp_path,
        "brokerNme=x",
        "listenPort=99999",
        "brokerRole=BOSS",
        "slaveReadEnable=perhaps",
        "namesrvAddr=nowhere",
        "messageDelayLevel=1s 5x",
        "electionTimeoutMs=2",
        "brokerName=a",
        "brokerName=b",
        "nonsense",
    ) == [
        '/broker.conf:10:1: expected key=value, found "nonsense"',
        '/broker.conf:1:1: unknown key "brokerNme"; did you mean "brokerName"?',
        "/broker.conf:2:12: listenPort: 99999 is out of range 0 to 65535",
        '/broker.conf:3:12: brokerRole: "BOSS" is not one of ASYNC_MASTER, SYNC_MASTER, SLAVE',
        '/broker.conf:4:17: slaveReadEnable: "perhaps" is neither true nor false',
        '/broker.conf:5:13: namesrvAddr: "nowhere" is not HOST:PORT',
        '/broker.conf:6:19: messageDelayLevel: "5x" is no delay; write numbers with s, m, h or d',
        "/broker.conf:7:19: electionTimeoutMs: 2 is out of range 15–600000 ms",
        "/broker.conf:9:12: brokerName is set twice; first at /broker.conf:8:12",
    ]


def test_roles_and_ids_must_agree(tmp_path: Path) -> None:
    assert "a SLAVE has a brokerId above 0" in problems(tmp_path, "brokerRole=SLAVE")[0]
    assert "is a slave's" in problems(tmp_path, "brokerRole=SYNC_MASTER", "brokerId=1")[0]


def test_dledger_mode_needs_its_keys(tmp_path: Path) -> None:
    found = problems(tmp_path, "enableDLegerCommitLog=true")
    assert [problem.rpartition(" ")[2] for problem in found] == ["dLegerGroup", "dLegerPeers", "dLegerSelfId"]
    peers = "dLegerPeers=n0-h:1;n1-h:2"
    bad = problems(tmp_path, "enableDLegerCommitLog=true", "dLegerGroup=g", peers, "dLegerSelfId=node")
    assert "not a letter and a number" in bad[0]
    stranger = problems(tmp_path, "enableDLegerCommitLog=true", "dLegerGroup=g", peers, "dLegerSelfId=n5")
    assert stranger[0].startswith("/broker.conf:4:14:")
    assert "not in dLegerPeers" in stranger[0]


def test_an_unreadable_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        BrokerConfig.from_file("nowhere/broker.conf")


@pytest.mark.parametrize("number", range(3))
def test_the_sample_files_are_a_group(number: int) -> None:
    config = BrokerConfig.from_file(REPOSITORY / "conf" / "dledger" / f"broker-n{number}.conf")
    assert config.listen_port == 30911 + 10 * number
    assert config.namesrv_addr == ("127.0.0.1:9876",)
    assert config.slave_broker_id == number + 1
    assert config.broker_name == config.dledger_group == "RaftNode00"
    node = dledger_config(config)
    assert [peer.port for peer in node.peers] == [40911, 40912, 40913]
    assert node.flush_disk_type == "SYNC_FLUSH"


@pytest.mark.parametrize(
    ("path", "role", "broker_id"),
    [
        ("broker.conf", BrokerRole.ASYNC_MASTER, 0),
        ("2m-2s-sync/broker-a.properties", BrokerRole.SYNC_MASTER, 0),
        ("2m-2s-sync/broker-a-s.properties", BrokerRole.SLAVE, 1),
        ("2m-2s-sync/broker-b.properties", BrokerRole.SYNC_MASTER, 0),
        ("2m-2s-sync/broker-b-s.properties", BrokerRole.SLAVE, 1),
        ("2m-2s-async/broker-a.properties", BrokerRole.ASYNC_MASTER, 0),
        ("2m-2s-async/broker-a-s.properties", BrokerRole.SLAVE, 1),
        ("2m-2s-async/broker-b.properties", BrokerRole.ASYNC_MASTER, 0),
        ("2m-2s-async/broker-b-s.properties", BrokerRole.SLAVE, 1),
    ],
)
def test_the_classic_sample_files(path: str, role: BrokerRole, broker_id: int) -> None:
    config = BrokerConfig.from_file(REPOSITORY / "conf" / path)
    assert (config.broker_role, config.broker_id) == (role, broker_id)
    assert config.enable_dledger_commit_log is False
    assert config.file_reserved_time_hours == 48


def test_printed_settings_load_again(tmp_path: Path) -> None:
    text = effective_properties(BrokerConfig(broker_name="x", flush_disk_type=FlushDiskType.SYNC_FLUSH))
    again = BrokerConfig.from_file(written(tmp_path, *(line for line in text.splitlines() if line.partition("=")[2])))
    assert effective_properties(again) == text
