"""Access control of the broker: RocketMQ's signature, the accounts' file, and who may do what over real connections."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from broker_adapter.remoting.acl import AccessControl, parse_acl, signature, signer, signer_from_environment
from broker_adapter.remoting.client import RemotingClient
from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand
from broker_adapter.remoting.errors import CommandError, RemotingError
from dledger.errors import ConfigError
from tests.broker.harness import dledger_configs, local_config, name_server, running
from tests.broker.test_dledger_broker import Group
from tests.security.conftest import until

SECRET = "s3cret-12345678"
FILE = f"""
# accounts of the test
globalWhiteRemoteAddresses:
- 10.10.103.*
- 192.168.0.0/24

accounts:
- accessKey: producer
  secretKey: {SECRET}-p
  whiteRemoteAddress:
  admin: false
  defaultTopicPerm: DENY
  defaultGroupPerm: DENY
  topicPerms:
  - orders=PUB
  - news=PUB|SUB
  groupPerms:
  # the group should convert to retry topic
  - readers=SUB

- accessKey: 'operator'
  secretKey: "{SECRET}-o"   # quoted
  whiteRemoteAddress: 192.168.1.*
  admin: true
"""


def write(path, text=FILE):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return str(path)


# ---- the signature


def test_the_signature_is_over_the_values_by_name_then_the_body():
    command = RemotingCommand(10, {"topic": "T", "b": 1, "a": True, "n": None, "AccessKey": "key"}, body=b"body")
    content = b"keytrue1Tbody"  # AccessKey, a, b, topic: upper case before lower, as Java's TreeMap
    expected = base64.b64encode(hmac.digest(b"secret", content, hashlib.sha1)).decode()
    assert signature(command, b"secret") == expected
    command.ext["Signature"] = "whatever"
    assert signature(command, b"secret") == expected


# ---- the file


def test_upstreams_file_is_read():
    rules = parse_acl(FILE, "f")
    producer, operator = rules.accounts["producer"], rules.accounts["operator"]
    assert rules.white == ("10.10.103.*", "192.168.0.0/24")
    assert (producer.admin, operator.admin) == (False, True)
    assert operator.secret == f"{SECRET}-o".encode()
    assert operator.white == ("192.168.1.*",)
    for resource, perm, may in (
        ("orders", 1, True),
        ("orders", 2, False),
        ("news", 2, True),
        ("other", 1, False),
        ("%RETRY%readers", 2, True),
        ("%RETRY%others", 2, False),
    ):
        assert producer.may(resource, perm) is may, (resource, perm)
        assert operator.may(resource, perm)
    assert SECRET not in repr(rules)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "nothing in it"),
        ("accounts\n", "not KEY: VALUE"),
        ("accounts:\n\t- accessKey: a\n", "a tab"),
        ("accounts:\n- accessKey: short\n  secretKey: s3cret-1\n", "6 characters"),
        (FILE + "\n- accessKey: producer\n  secretKey: s3cret-s3cret\n", "stands twice"),
        (FILE.replace("orders=PUB", "orders=FLY"), '"FLY" is not DENY'),
        (FILE.replace("orders=PUB", "orders"), "not NAME=PERMISSION"),
        ("- 1\n- 2\n", "no mapping"),
    ],
)
def test_a_bad_file_is_named_and_its_secrets_not_shown(text, what):
    with pytest.raises(ConfigError, match=r"^f:") as caught:
        parse_acl(text, "f")
    assert what in str(caught.value)
    assert "s3cret" not in str(caught.value)


# ---- the check


def ask(acl, code, ext, *, by="producer", secret=f"{SECRET}-p", remote="127.0.0.1:5", body=b""):
    command = RemotingCommand(int(code), dict(ext), body)
    if by:
        signer(by, secret)(command)
    acl.check(command, remote)


@pytest.fixture
def acl(tmp_path):
    return AccessControl(write(tmp_path / "plain_acl.yml"))


@pytest.mark.parametrize(
    ("code", "ext", "may"),
    [
        (RequestCode.SEND_MESSAGE, {"topic": "orders"}, True),
        (RequestCode.SEND_MESSAGE_V2, {"b": "orders"}, True),
        (RequestCode.SEND_MESSAGE_V2, {"b": "secrets"}, False),
        (RequestCode.SEND_BATCH_MESSAGE, {"b": "secrets"}, False),
        (RequestCode.PULL_MESSAGE, {"topic": "news", "consumerGroup": "readers"}, True),
        (RequestCode.PULL_MESSAGE, {"topic": "orders", "consumerGroup": "readers"}, False),
        (RequestCode.PULL_MESSAGE, {"topic": "news", "consumerGroup": "others"}, False),
        (RequestCode.LITE_PULL_MESSAGE, {"topic": "orders", "consumerGroup": "readers"}, False),
        (RequestCode.CONSUMER_SEND_MSG_BACK, {"group": "others"}, False),
        (RequestCode.UPDATE_CONSUMER_OFFSET, {"topic": "news", "consumerGroup": "readers"}, True),
        (RequestCode.UPDATE_CONSUMER_OFFSET, {"topic": "news", "consumerGroup": "others"}, False),
        (RequestCode.UPDATE_AND_CREATE_TOPIC, {"topic": "news"}, False),
        (RequestCode.DELETE_SUBSCRIPTIONGROUP, {"groupName": "readers"}, False),
        (RequestCode.GET_MAX_OFFSET, {"topic": "x"}, True),
    ],
)
def test_permissions(acl, code, ext, may):
    ask(acl, code, ext, by="operator", secret=f"{SECRET}-o")
    if may:
        ask(acl, code, ext)
        return
    with pytest.raises(CommandError) as caught:
        ask(acl, code, ext)
    assert caught.value.code == ResponseCode.NO_PERMISSION


def test_a_heartbeat_needs_what_it_subscribes_to(acl):
    def body(topic):
        topics = [{"topic": topic}, {"topic": "%RETRY%readers"}]
        return json.dumps({"consumerDataSet": [{"groupName": "readers", "subscriptionDataSet": topics}]}).encode()

    ask(acl, RequestCode.HEART_BEAT, {}, body=body("news"))
    with pytest.raises(CommandError, match="may not subscribe to orders"):
        ask(acl, RequestCode.HEART_BEAT, {}, body=body("orders"))


def test_who_is_not_known_or_signs_wrong_gets_the_same_answer(acl):
    answers = set()
    for by, secret in (("producer", "wrong"), ("nobody", "wrong"), ("operator", f"{SECRET}-p")):
        with pytest.raises(CommandError) as caught:
            ask(acl, RequestCode.SEND_MESSAGE, {"topic": "orders"}, by=by, secret=secret)
        answers.add(caught.value.remark)
    assert len(answers) == 1
    with pytest.raises(CommandError, match="no AccessKey"):
        ask(acl, RequestCode.SEND_MESSAGE, {"topic": "orders"}, by="")


def test_a_changed_request_is_refused(acl):
    for change in ({"topic": "news"}, {"extra": "1"}):
        command = RemotingCommand(int(RequestCode.SEND_MESSAGE), {"topic": "orders"}, b"body")
        signer("producer", f"{SECRET}-p")(command)
        command.ext.update(change)
        with pytest.raises(CommandError):
            acl.check(command, "127.0.0.1:5")
    command = RemotingCommand(int(RequestCode.SEND_MESSAGE), {"topic": "orders"}, b"body")
    signer("producer", f"{SECRET}-p")(command)
    command.body = b"another"
    with pytest.raises(CommandError):
        acl.check(command, "127.0.0.1:5")


@pytest.mark.parametrize(
    ("remote", "by", "passes"),
    [
        ("10.10.103.7:1", "", True),
        ("10.10.104.7:1", "", False),
        ("192.168.0.77:1", "", True),
        ("[::1]:1", "", False),
        ("192.168.1.9:1", "operator", True),
        ("192.168.1.9:1", "producer", False),
    ],
)
def test_white_addresses(acl, remote, by, passes):
    command = RemotingCommand(int(RequestCode.SEND_MESSAGE), {"topic": "t", "AccessKey": by or None})
    if passes:
        acl.check(command, remote)
    else:
        with pytest.raises(CommandError):
            acl.check(command, remote)


def test_every_signature_is_compared_in_constant_time(acl, monkeypatch):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, two: compared.append((len(one), len(two))) or one == two)
    for by in ("producer", "nobody"):
        with pytest.raises(CommandError):
            ask(acl, RequestCode.SEND_MESSAGE, {"topic": "orders"}, by=by, secret="wrong-wrong")
    assert compared == [(28, 28)] * 2


# ---- a broker


@asynccontextmanager
async def guarded_broker(tmp_path):
    config = local_config(tmp_path / "b", acl_enable=True, acl_file=write(tmp_path / "acl.yml"))
    async with running(config) as broker:
        yield broker


async def code_of(broker, by, code, ext, body=b"") -> int:
    client = RemotingClient(signer=None if by is None else signer(*by))
    try:
        return (await client.invoke(broker.address, RemotingCommand(int(code), dict(ext), body))).code
    finally:
        await client.close()


@pytest.mark.asyncio
async def test_a_broker_lets_in_who_signs_and_forgets_who_is_taken_out(tmp_path):
    operator, producer = ("operator", f"{SECRET}-o"), ("producer", f"{SECRET}-p")
    topic = {"topic": "orders", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6, "defaultTopic": "TBW102"}
    send = {"a": "g", "b": "orders", "c": "TBW102", "d": 4, "e": 0, "f": 0, "g": 1, "h": 0, "i": "", "j": 0}
    denied = ResponseCode.NO_PERMISSION
    with capture_logs() as logs:
        async with guarded_broker(tmp_path) as broker:
            for who, code, ext, expected in (
                (None, RequestCode.SEND_MESSAGE_V2, send, denied),
                (("producer", "wrong-wrong"), RequestCode.SEND_MESSAGE_V2, send, denied),
                (producer, RequestCode.UPDATE_AND_CREATE_TOPIC, topic, denied),
                (operator, RequestCode.UPDATE_AND_CREATE_TOPIC, topic, ResponseCode.SUCCESS),
                (producer, RequestCode.SEND_MESSAGE_V2, send, ResponseCode.SUCCESS),
                (None, RequestCode.GET_BROKER_CONFIG, {}, denied),
            ):
                assert await code_of(broker, who, code, ext, b"x") == expected, (who, code)
            assert broker.acl is not None
            assert broker.acl.denied_count == 4
            write(tmp_path / "acl.yml", FILE.replace("accessKey: producer", "accessKey: replaced"))

            async def refused():
                return await code_of(broker, producer, RequestCode.SEND_MESSAGE_V2, send, b"x") == denied

            await until(refused)
    assert SECRET not in str(logs)


@pytest.mark.asyncio
async def test_a_slave_hands_on_what_it_has_checked_and_the_master_takes_it(tmp_path):
    """Between brokers a request carries fields that its client did not sign: the slave signs it anew, as an admin."""
    operator, producer = ("operator", f"{SECRET}-o"), ("producer", f"{SECRET}-p")
    topic = {"topic": "orders", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6, "defaultTopic": "TBW102"}
    send = {"a": "g", "b": "orders", "c": "TBW102", "d": 1, "e": 0, "f": 0, "g": 1, "h": 0, "i": "", "j": 0}
    async with name_server() as server:
        settings = {"acl_enable": True, "acl_file": write(tmp_path / "acl.yml")}
        group = Group(server, dledger_configs(tmp_path / "brokers", server, **settings))
        try:
            await asyncio.gather(*(group.start(number) for number in range(3)))
            master = await group.master()
            slave = (await group.slaves())[0]
            assert await code_of(master, operator, RequestCode.UPDATE_AND_CREATE_TOPIC, topic) == ResponseCode.SUCCESS

            async def sent_through_the_slave():
                return await code_of(slave, producer, RequestCode.SEND_MESSAGE_V2, send, b"x") == ResponseCode.SUCCESS

            await until(sent_through_the_slave)
            assert slave.gate.forwarded_count > 0
            wrong = ("producer", "wrong-wrong")
            denied = await code_of(slave, wrong, RequestCode.SEND_MESSAGE_V2, send, b"x")
            assert denied == ResponseCode.NO_PERMISSION
        finally:
            await asyncio.gather(*(group.stop(number) for number in range(3)))


@pytest.mark.asyncio
async def test_a_broker_without_its_accounts_does_not_start(tmp_path):
    with pytest.raises(ConfigError, match="aclFile"):
        async with running(local_config(tmp_path / "b", acl_enable=True)):
            pass


@pytest.mark.asyncio
async def test_connections_beyond_the_limit_are_closed(tmp_path):
    async with running(local_config(tmp_path / "b", max_connections=8)) as broker:
        clients = [RemotingClient() for _ in range(20)]
        served = 0
        for client in clients:
            try:
                await client.invoke(broker.address, RemotingCommand(int(RequestCode.GET_BROKER_CONFIG)))
                served += 1
            except RemotingError:
                pass
        assert served == 8
        assert broker.remoting_server.refused_count == 12
        for client in clients:
            await client.close()

        async def served_again():
            return await code_of(broker, None, RequestCode.GET_BROKER_CONFIG, {}) == ResponseCode.SUCCESS

        await until(served_again)


def test_operators_tools_take_their_keys_from_the_environment(monkeypatch):
    monkeypatch.delenv("ROCKETMQ_ACCESS_KEY", raising=False)
    assert signer_from_environment() is None
    monkeypatch.setenv("ROCKETMQ_ACCESS_KEY", "operator")
    monkeypatch.setenv("ROCKETMQ_SECRET_KEY", f"{SECRET}-o")
    sign = signer_from_environment()
    assert sign is not None
    command = RemotingCommand(10, {"topic": "t"})
    sign(command)
    assert command.ext["AccessKey"] == "operator"
    assert command.ext["Signature"] == signature(command, f"{SECRET}-o".encode())
